"""Kernels of ``attention.py`` on a GPU, faster than by their definition."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.attention import Options
from gpubackprop.backends.cuda.arrays import DeviceArrays, threshold_of
from gpubackprop.backends.cuda.geometry import Launch
from gpubackprop.backends.primitives import Array

# What attention.cu has room for, features of a head; it is compiled for each of them.
FEATURES = (32, 64, 128)
MOST_BYTES = 512
_MAX_BLOCKS = 65536


class CudaAttention(DeviceArrays):
    """Overrides of the kernels of ``attention.py``."""

    leaves_gaps = frozenset({"attention", "attention_backward"})

    def attention(
        self,
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
    ) -> tuple[Array, Array]:
        options = Options(causal, past, scale, p, seed, stream, offset)
        element = self._attends(q, k, v, mask)
        if element is None:
            return super().attention(q, k, v, mask, *options)
        b, h, tq, _ = q.shape
        q, k, v = (self._in_rows(x) for x in (q, k, v))
        y = self._laid_out_as(q, (b, h, tq, v.shape[3]))
        lse = self.empty((b, h, tq), np.float64 if element == "double" else np.float32)
        masks, sizes, numbers = self._attention_numbers(q, k, v, mask, options)
        template, rows = self._making(element, q, v)
        arrays, steps = (q, k, v, *masks, y, lse), _steps(q, k, v, y)
        self.kernels.launch(
            "attention", template, _tiles(b * h, tq, rows), *arrays, *sizes, *steps, *numbers
        )
        return y, lse

    def attention_backward(
        self,
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
    ) -> tuple[Array, Array, Array]:
        options = Options(causal, past, scale, p, seed, stream, offset)
        element = self._attends(q, k, v, mask)
        wide = np.float64 if element == "double" else np.float32
        if element is None or self._element(q, dy, y) is None or lse.dtype != wide:
            return super().attention_backward(dy, q, k, v, mask, y, lse, *options)
        b, h, tq, _ = q.shape
        dy, q, k, v, y = (self._in_rows(x) for x in (dy, q, k, v, y))
        dq, dk, dv = (self._laid_out_as(x, x.shape) for x in (q, k, v))
        lse, inner = self._packed(lse), self.empty(lse.shape, lse.dtype)
        masks, sizes, numbers = self._attention_numbers(q, k, v, mask, options)
        template, rows = self._making(element, q, v)
        given = (dy, q, k, v, *masks)
        steps = (*_steps(dy, q, k, v, y, dq), *numbers)
        shape = _tiles(b * h, tq, rows)
        self.kernels.launch(
            "attention_queries", template, shape, *given, y, lse, dq, inner, *sizes, *steps
        )
        steps = (*_steps(dy, q, k, v, dk, dv), *numbers)
        shape = _tiles(b * k.shape[1], k.shape[2], rows)
        self.kernels.launch(
            "attention_keys", template, shape, *given, lse, inner, dk, dv, *sizes, *steps
        )
        return dq, dk, dv

    def _attends(self, q: Array, k: Array, v: Array, mask: Array | None) -> str | None:
        """The C++ type of the elements where the kernels know it and have room, else None."""
        numbers = None if mask is None or mask.dtype == np.bool_ else mask
        element = self._element(q, k, v, numbers)
        if element is None or not (q.size and k.size and v.size):
            return None
        most = min(FEATURES[-1], MOST_BYTES // q.dtype.itemsize)
        return element if max(q.shape[3], v.shape[3]) <= most else None

    def _making(self, element: str, q: Array, v: Array) -> tuple[tuple[str, str, str], int]:
        """The kernels' template arguments, and how many rows a block has (``Tiles`` there). Half
        precision is multiplied by the tensor cores, float under the policy ``tf32``."""
        features = next(f for f in FEATURES if f >= max(q.shape[3], v.shape[3]))
        tensor = q.dtype.itemsize == 2 or (element == "float" and self.precision == "tf32")
        rows = 32 if features * q.dtype.itemsize == MOST_BYTES else 64
        return (element, str(features), str(int(tensor))), rows

    def _in_rows(self, x: Array) -> Array:
        """`x` with the features of a row side by side."""
        return x if x.strides[3] == x.itemsize or x.shape[3] == 1 else self._packed(x)

    def _attention_numbers(
        self, q: Array, k: Array, v: Array, mask: Array | None, options: Options
    ) -> tuple[tuple[Array | None, Array | None], tuple[int, ...], tuple[Any, ...]]:
        """The mask as booleans or as numbers; the sizes; and the arguments behind the steps."""
        steps = [0, 0, 0, 0]
        masks: tuple[Array | None, Array | None] = (None, None)
        if mask is not None:
            mask = self._packed(mask)
            step = 1
            for axis in range(1, mask.ndim + 1):
                steps[-axis] = step if mask.shape[-axis] > 1 else 0
                step *= mask.shape[-axis]
            masks = (mask, None) if mask.dtype == np.bool_ else (None, mask)
        causal, past, scale, p, *place = options
        # A weight below 0 says that nothing is dropped.
        threshold = threshold_of(1.0 - p)
        weight = -1.0 if not p else 0.0 if p >= 1.0 else 1.0 / (1.0 - p)
        sizes = (*q.shape[:2], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3])
        drop = (threshold, weight, *self._place(*place))
        return masks, sizes, (*steps, int(causal), past, scale, *drop)


def _tiles(heads: int, length: int, rows: int) -> Launch:
    """A block for each tile of some rows of a head, a warp for each 16 of them; the loops cover
    what is beyond the grid."""
    return Launch(min(heads * -(-length // rows), _MAX_BLOCKS), 2 * rows)


def _steps(*arrays: Array) -> tuple[int, ...]:
    """How far apart batches, heads and rows of each array are, in elements."""
    return tuple(step // x.itemsize for x in arrays for step in x.strides[:3])
