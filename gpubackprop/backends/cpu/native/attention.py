"""Native attention: which calls the kernels of ``attention_kernels.py`` serve, and the memory that
they work in."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.attention import Options
from gpubackprop.backends.cpu.native import attention_kernels as kernels
from gpubackprop.backends.cpu.native.abi import Kernel
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers
from gpubackprop.backends.cpu.native.panels import WIDE
from gpubackprop.backends.cpu.native.vectors import whole

f32 = np.dtype(np.float32)
SERIAL = 50_000
"""Multiply-adds that are left to one thread."""

Array = np.ndarray


def _heads(*arrays: Array) -> bool:
    """Whether all are (B, H, T, D) of float32, and features lie beside one another."""
    return all(
        x.dtype == f32 and x.ndim == 4 and x.size and (x.strides[3] == 4 or x.shape[3] == 1)
        for x in arrays
    )


def _mask(mask: Array | None, shape: tuple[int, ...]) -> tuple[int, Array | int, list[int]] | None:
    """Kind, array and strides of a mask for scores of a shape; None where it is not served."""
    if mask is None:
        return kernels.NO_MASK, 0, [0, 0, 0]
    if mask.dtype not in (f32, np.dtype(bool)):
        return None
    full = np.broadcast_to(mask, shape)
    if full.strides[3] != mask.itemsize and shape[3] > 1:
        return None
    kind = kernels.BOOLEANS if mask.dtype == bool else kernels.NUMBERS
    return kind, mask, list(full.strides[:3])


def _instruction(
    site: Site,
    kernel: Kernel,
    backward: bool,
    arrays: list[Array],
    mask: Array | None,
    lse: Array,
    options: Options,
) -> list[Instruction] | None:
    """The call of a kernel. `arrays` are q, k, v, y and, backward, dy, dq, dk and dv."""
    if options.p or not _heads(*arrays) or not fit(lse):
        return None
    q, k, v = arrays[:3]
    (b, h, tq, d), (groups, tk), out = q.shape, k.shape[1:3], v.shape[3]
    seen = _mask(mask, (b, h, tq, tk))
    if seen is None:
        return None
    block, wide = kernels.BLOCK, -(-tk // WIDE) * WIDE
    room, out_room = whole(d), whole(out)
    sizes = {
        kernels.SCORES: 4 * block * wide,
        kernels.KEYS_T: 4 * d * wide,
        kernels.PACKED: 4 * tk * (room if backward else out_room),
        kernels.FOUND: 4 * block * (room if backward else out_room),
        kernels.SUMS: 4 * block,
        kernels.TOPS: 4 * block,
        kernels.UNIT: 8 * max(d, out, tk),
        kernels.Q_ROWS: 8 * block,
        kernels.S_ROWS: 8 * block,
        kernels.OUT_ROWS: 8 * max(block, tk),
    }
    if backward:
        sizes |= {
            kernels.SLOPES: 4 * block * wide,
            kernels.VALUES_T: 4 * out * wide,
            kernels.DKEYS: 4 * tk * room,
            kernels.DVALUES: 4 * tk * out_room,
            kernels.BLOCK_Q: 4 * block * room,
            kernels.BLOCK_DY: 4 * block * out_room,
            kernels.DY_ROWS: 8 * block,
            kernels.WIDTH_ROWS: 8 * max(block, tk),
        }
    slots: list[Any] = [0] * kernels.SLOTS
    part = 0
    for place, size in sizes.items():
        slots[place] = part
        part += -(-size // 64) * 64
    slots[: kernels.SCALE] = b, groups, h // groups, tq, tk, d, out, *map(int, options[:2])
    slots[kernels.SCALE] = float(options.scale)
    slots[kernels.LSE] = lse
    slots[kernels.ZEROS] = np.zeros(max(WIDE, room, out_room), np.float32)
    slots[kernels.MASKED], slots[kernels.MASK], strides = seen
    slots[kernels.MASK + 1 : kernels.MASK + 4] = strides
    for i, x in enumerate(arrays):
        at = kernels.Q + 4 * i
        slots[at : at + 4] = x, *x.strides[:3]
    slots[kernels.ROOM], slots[kernels.PART] = site.scratch((site.parts, part), np.uint8), part
    parallel = b * h * tq * tk * (d + out) > SERIAL and b * groups > 1
    return [Instruction(kernel, slots, parallel=parallel)]


@lowers("attention")
def lower_attention(
    site: Site,
    outs: tuple[Array, ...],
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    causal: bool = False,
    past: int = 0,
    scale: float = 1.0,
    p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
) -> list[Instruction] | None:
    """Attention without dropout."""
    y, lse = outs
    options = Options(causal, past, scale, p)
    return _instruction(site, kernels.attention_heads, False, [q, k, v, y], mask, lse, options)


@lowers("attention_backward")
def lower_attention_backward(
    site: Site,
    outs: tuple[Array, ...],
    dy: Array,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    y: Array,
    lse: Array,
    causal: bool = False,
    past: int = 0,
    scale: float = 1.0,
    p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
) -> list[Instruction] | None:
    """Its cotangents."""
    arrays, options = [q, k, v, y, dy, *outs], Options(causal, past, scale, p)
    kernel = kernels.attention_heads_backward
    return _instruction(site, kernel, True, arrays, mask, lse, options)
