"""Kernels of ``attention.py`` on a GPU, faster than by their definition."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.attention import Options
from gpubackprop.backends.cuda.arrays import DeviceArrays, threshold_of
from gpubackprop.backends.cuda.geometry import Launch
from gpubackprop.backends.primitives import Array

# What attention.cu has room for: features of a head, and rows of a block forwards and backwards.
FEATURES = {"double": 64}
ROWS = {"double": (16, 8)}
MOST_FEATURES, MOST_ROWS = 128, (32, 16)
_MAX_BLOCKS = 65536


class CudaAttention(DeviceArrays):
    """Overrides of the kernels of ``attention.py``."""

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
        y = self.empty((b, h, tq, v.shape[3]), q.dtype)
        lse = self.empty((b, h, tq), np.float64 if element == "double" else np.float32)
        masks, numbers = self._attention_numbers(q, k, v, mask, options)
        arrays = (self._packed(q), self._packed(k), self._packed(v), *masks, y, lse)
        rows = ROWS.get(element, MOST_ROWS)[0]
        self.kernels.launch("attention", (element,), _tiles(b * h, tq, rows), *arrays, *numbers)
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
        dy, q, k, v, y, lse = (self._packed(x) for x in (dy, q, k, v, y, lse))
        dq, dk, dv = (self.empty(x.shape, x.dtype) for x in (q, k, v))
        inner = self.empty(lse.shape, lse.dtype)
        masks, numbers = self._attention_numbers(q, k, v, mask, options)
        given = (dy, q, k, v, *masks)
        rows = ROWS.get(element, MOST_ROWS)[1]
        shape = _tiles(b * h, tq, rows)
        arrays = (*given, y, lse, dq, inner)
        self.kernels.launch("attention_queries", (element,), shape, *arrays, *numbers)
        shape = _tiles(b * k.shape[1], k.shape[2], rows)
        arrays = (*given, lse, inner, dk, dv)
        self.kernels.launch("attention_keys", (element,), shape, *arrays, *numbers)
        return dq, dk, dv

    def _attends(self, q: Array, k: Array, v: Array, mask: Array | None) -> str | None:
        """The C++ type of the elements where the kernels know it and have room, else None."""
        numbers = None if mask is None or mask.dtype == np.bool_ else mask
        element = self._element(q, k, v, numbers)
        if element is None or not (q.size and k.size and v.size):
            return None
        most = FEATURES.get(element, MOST_FEATURES)
        return element if max(q.shape[3], v.shape[3]) <= most else None

    def _attention_numbers(
        self, q: Array, k: Array, v: Array, mask: Array | None, options: Options
    ) -> tuple[tuple[Array | None, Array | None], tuple[Any, ...]]:
        """The mask as booleans or as numbers, and the arguments behind the arrays."""
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
        return masks, (*sizes, *steps, int(causal), past, scale, *drop)


def _tiles(heads: int, length: int, rows: int) -> Launch:
    """A block for each tile of some rows of a head; the loops cover what is beyond the grid."""
    return Launch(min(heads * -(-length // rows), _MAX_BLOCKS))
