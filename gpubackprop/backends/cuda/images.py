"""Kernels of ``images.py`` on a GPU, faster than by their definition."""

from __future__ import annotations

from typing import Any

from gpubackprop.backends.cuda import geometry
from gpubackprop.backends.cuda.arrays import DeviceArrays
from gpubackprop.backends.images import pooled_sizes, winner_dtype
from gpubackprop.backends.primitives import Array, Shape

AXES = 3  # spatial axes of the kernels
PLACES = {"uint8": "u8", "int32": "int"}  # dtype of the winners' places -> the C++ type


def _numbers(image: Shape, *axes: Shape) -> tuple[int, ...] | None:
    """What the kernels are told of an image (N, *spatial, C) and its windows: axes of one element
    stand in for the missing ones. None where there are too many."""
    n = len(image) - 2
    if n > AXES:
        return None
    missing = AXES - n
    # Sizes and strides of a missing axis are 1, its padding is 0.
    fill = (1, 1, 1, 1, 0, 1)
    numbers = (image[1:-1], *axes)
    return (
        image[0],
        image[-1],
        *(k for f, a in zip(fill, numbers, strict=False) for k in (*(f,) * missing, *a)),
    )


class CudaImage(DeviceArrays):
    """Overrides of the kernels of ``images.py``."""

    def max_pool(
        self,
        x: Array,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        dilation: Shape,
        ceil: bool = False,
    ) -> tuple[Array, Array]:
        out = pooled_sizes(x.shape[1:-1], kernel, stride, padding, dilation, ceil)
        numbers = _numbers(x.shape, out, kernel, stride, padding, dilation)
        element = self._element(x)
        if element is None or numbers is None:
            return super().max_pool(x, kernel, stride, padding, dilation, ceil)
        shape = (x.shape[0], *out, x.shape[-1])
        y, winner = self.empty(shape, x.dtype), self.empty(shape, winner_dtype(kernel))
        if y.size:
            template = (element, PLACES[winner.dtype.name])
            arrays = (self._packed(x), y, winner)
            self.kernels.launch("max_pool", template, geometry.over(y.size), *arrays, *numbers)
        return y, winner

    def max_pool_backward(
        self,
        dy: Array,
        winner: Array,
        spatial: Shape,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        dilation: Shape,
    ) -> Array:
        shape = (dy.shape[0], *spatial, dy.shape[-1])
        numbers = _numbers(shape, dy.shape[1:-1], kernel, stride, padding, dilation)
        element = self._element(dy)
        place = PLACES.get(winner.dtype.name)
        if element is None or numbers is None or place is None or winner.shape != dy.shape:
            return super().max_pool_backward(dy, winner, spatial, kernel, stride, padding, dilation)
        dx = self.empty(shape, dy.dtype)
        if dx.size:
            arrays = (self._packed(dy), self._packed(winner), dx)
            launch = geometry.over(dx.size)
            self.kernels.launch("max_pool_backward", (element, place), launch, *arrays, *numbers)
        return dx

    def avg_pool(
        self,
        x: Array,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        ceil: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Array:
        out = pooled_sizes(x.shape[1:-1], kernel, stride, padding, (1,) * len(kernel), ceil)
        numbers = _numbers(x.shape, out, kernel, stride, padding)
        if self._element(x) is None or numbers is None:
            return super().avg_pool(
                x, kernel, stride, padding, ceil, count_include_pad, divisor_override
            )
        y = self.empty((x.shape[0], *out, x.shape[-1]), x.dtype)
        options = (int(count_include_pad), divisor_override or 0)
        return self._averaged("avg_pool", x, y, *numbers, *options)

    def avg_pool_backward(
        self,
        dy: Array,
        spatial: Shape,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        ceil: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Array:
        shape = (dy.shape[0], *spatial, dy.shape[-1])
        numbers = _numbers(shape, dy.shape[1:-1], kernel, stride, padding)
        if self._element(dy) is None or numbers is None:
            return super().avg_pool_backward(
                dy, spatial, kernel, stride, padding, ceil, count_include_pad, divisor_override
            )
        dx = self.empty(shape, dy.dtype)
        options = (int(count_include_pad), divisor_override or 0)
        return self._averaged("avg_pool_backward", dy, dx, *numbers, *options)

    def _averaged(self, name: str, given: Array, result: Array, *numbers: Any) -> Array:
        if result.size:
            template, launch = (self._element(given),), geometry.over(result.size)
            self.kernels.launch(name, template, launch, self._packed(given), result, *numbers)
        return result
