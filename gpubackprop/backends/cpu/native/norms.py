"""Native normalisation over a batch and over groups of channels: which calls the kernels of
``norm_kernels.py`` serve."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native import norm_kernels as kernels
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers

Outs = tuple[np.ndarray, ...]
Instructions = list[Instruction] | None

SERIAL = 1 << 14
"""Numbers that are left to one thread."""
STRIP = 128
"""Numbers of the rows that are taken together."""


def strip(x: np.ndarray) -> tuple[int, int]:
    """The sizes of x as a table whose rows are a few neighbouring rows of channels."""
    channels = x.shape[-1]
    rows = x.size // channels
    together = max(1, min(STRIP // channels, rows))
    while rows % together:
        together -= 1
    return rows // together, together * channels


def _fit(x: np.ndarray, *others: np.ndarray | None) -> bool:
    return x.ndim > 1 and x.size > 0 and fit(x, *[a for a in others if a is not None])


def _of(x: np.ndarray | None) -> Any:
    return 0 if x is None else x


@lowers("batch_norm")
def lower_batch_norm(
    site: Site,
    outs: Outs,
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
) -> Instructions:
    """Normalisation by the moments of the batch. Sums are divided among the parts."""
    y, mean, var, rstd = outs
    if not _fit(x, weight, bias, *outs):
        return None
    (rows, columns), channels = strip(x), x.shape[-1]
    parallel = x.size > SERIAL
    used = site.parts if parallel else 1
    memory = site.scratch((used, 2, columns))
    means = site.scratch((used, columns), np.float64)
    sums = site.scratch((used, columns), np.float64)
    strips = site.scratch((3, columns))
    join = [means, sums, used, rows, columns, channels, _of(weight), _of(bias), float(eps)]
    return [
        Instruction(kernels.moments, [x, rows, columns, memory, means, sums], parallel=parallel),
        Instruction(kernels.join_moments, [*join, mean, var, rstd, strips], parallel=False),
        Instruction(kernels.affine, [x, y, rows, columns, strips], parallel=parallel),
    ]


@lowers("batch_norm_backward")
def lower_batch_norm_backward(
    site: Site,
    outs: Outs,
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    dmean: np.ndarray | None = None,
    dvar: np.ndarray | None = None,
) -> Instructions:
    """Its cotangents. Sums are divided among the parts."""
    dx, dweight, dbias = outs
    if not _fit(x, dy, weight, mean, rstd, dmean, dvar, *outs) or dy.shape != x.shape:
        return None
    (rows, columns), channels = strip(x), x.shape[-1]
    parallel = x.size > SERIAL
    used = site.parts if parallel else 1
    memory = site.scratch((used, 3, columns))
    sums = site.scratch((2, used, columns), np.float64)
    strips = site.scratch((4, columns))
    add = [dy, x, rows, columns, mean, channels, memory, sums]
    join = [sums, used, columns, channels, x.size // channels, mean, rstd, _of(weight)]
    join += [_of(dmean), _of(dvar), dweight, dbias, strips]
    return [
        Instruction(kernels.products, add, parallel=parallel),
        Instruction(kernels.join_products, join, parallel=False),
        Instruction(kernels.cotangents, [dy, x, dx, rows, columns, strips], parallel=parallel),
    ]


@lowers("scale_shift", inplace=("x",))
def lower_scale_shift(
    site: Site, outs: Outs, x: np.ndarray, scale: np.ndarray, shift: np.ndarray | None = None
) -> Instructions:
    """Batch normalisation by fixed moments."""
    y = outs[0]
    if not _fit(x, scale, shift, y):
        return None
    (rows, columns), channels = strip(x), x.shape[-1]
    strips = site.scratch((3, columns))
    slots = [scale, _of(shift), channels, columns, strips]
    return [
        Instruction(kernels.spread, slots, parallel=False),
        Instruction(kernels.affine, [x, y, rows, columns, strips], parallel=x.size > SERIAL),
    ]


def _of_samples(x: np.ndarray, site: Site) -> tuple[list[int], bool, int]:
    """Samples, places and channels; whether several threads work; and how many."""
    parallel = x.size > SERIAL and len(x) > 1
    sizes = [len(x), x[0].size // x.shape[-1], x.shape[-1]]
    return sizes, parallel, site.parts if parallel else 1


@lowers("group_norm")
def lower_group_norm(
    site: Site,
    outs: Outs,
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    groups: int,
    eps: float,
) -> Instructions:
    """Normalisation of groups of channels."""
    y, mean, rstd = outs
    if not _fit(x, weight, bias, *outs):
        return None
    sizes, parallel, used = _of_samples(x, site)
    memory = site.scratch((used, 4, sizes[2]))
    totals = site.scratch((used, sizes[2]), np.float64)
    slots = [x, y, *sizes, groups, _of(weight), _of(bias), float(eps), mean, rstd, memory, totals]
    return [Instruction(kernels.group_norm, slots, parallel=parallel)]


@lowers("group_norm_backward")
def lower_group_norm_backward(
    site: Site,
    outs: Outs,
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    groups: int,
) -> Instructions:
    """Its cotangents. Those of weight and bias are divided among the parts."""
    dx, dweight, dbias = outs
    if not _fit(x, dy, weight, mean, rstd, *outs) or dy.shape != x.shape:
        return None
    sizes, parallel, used = _of_samples(x, site)
    channels = sizes[2]
    memory = site.scratch((used, 6, channels))
    totals = site.scratch((used, 2, channels), np.float64)
    sums = site.scratch((2, used, channels), np.float64)
    slots = [dy, x, dx, *sizes, groups, _of(weight), mean, rstd, memory, totals, sums]
    add = [sums, used, channels, dbias, dweight]
    return [
        Instruction(kernels.group_norm_backward, slots, parallel=parallel),
        Instruction(kernels.add_parts, add, parallel=False),
    ]
