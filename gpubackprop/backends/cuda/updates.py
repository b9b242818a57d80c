"""Optimizer updates as one CUDA kernel each: one pass over the flat buffers, the same bits as the
definitions on NumPy (in bfloat16, of which NumPy has no rules of its own, the same but for
rounding).

Learning rate and step may be 0-d float64 arrays of the device, the gradient's scale a 0-d float
array. They are then read by the kernel when it runs, so that a captured graph replays with whatever
they hold; so is the flag that lets a step be left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.cuda import geometry, sources
from gpubackprop.backends.cuda.arrays import DeviceArrays
from gpubackprop.backends.primitives import Array
from gpubackprop.backends.updates import Flag, Scalar


class FusedUpdates(DeviceArrays):
    """The ``*_update`` kernels of the contract."""

    def sgd_update(
        self,
        param: Array,
        grad: Array,
        velocity: Array | None,
        *,
        lr: Scalar,
        step: Scalar = 1,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        scale: Scalar | None = None,
        skip: Flag | None = None,
    ) -> None:
        if not self._flat(param, grad, velocity):
            super().sgd_update(
                param,
                grad,
                velocity,
                lr=lr,
                step=step,
                momentum=momentum,
                dampening=dampening,
                nesterov=nesterov,
                weight_decay=weight_decay,
                scale=scale,
                skip=skip,
            )
            return
        options = (momentum, dampening, nesterov, weight_decay)
        numbers = (*self._given(lr), *self._given(step), *options)
        self._update("sgd", (param, grad, velocity), scale, skip, *numbers)

    def adagrad_update(
        self,
        param: Array,
        grad: Array,
        total: Array,
        *,
        lr: Scalar,
        step: Scalar = 1,
        lr_decay: float = 0.0,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        scale: Scalar | None = None,
        skip: Flag | None = None,
    ) -> None:
        if not self._flat(param, grad, total):
            super().adagrad_update(
                param,
                grad,
                total,
                lr=lr,
                step=step,
                lr_decay=lr_decay,
                eps=eps,
                weight_decay=weight_decay,
                scale=scale,
                skip=skip,
            )
            return
        numbers = (*self._given(lr), *self._given(step), lr_decay, eps, weight_decay)
        self._update("adagrad", (param, grad, total), scale, skip, *numbers)

    def rmsprop_update(
        self,
        param: Array,
        grad: Array,
        mean_square: Array,
        mean_grad: Array | None,
        velocity: Array | None,
        *,
        lr: Scalar,
        step: Scalar = 1,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        scale: Scalar | None = None,
        skip: Flag | None = None,
    ) -> None:
        arrays = (param, grad, mean_square, mean_grad, velocity)
        if not self._flat(*arrays):
            super().rmsprop_update(
                param,
                grad,
                mean_square,
                mean_grad,
                velocity,
                lr=lr,
                step=step,
                alpha=alpha,
                eps=eps,
                weight_decay=weight_decay,
                momentum=momentum,
                scale=scale,
                skip=skip,
            )
            return
        numbers = (*self._given(lr), alpha, eps, weight_decay, momentum)
        self._update("rmsprop", arrays, scale, skip, *numbers)

    def adam_update(
        self,
        param: Array,
        grad: Array,
        mean: Array,
        mean_square: Array,
        *,
        lr: Scalar,
        step: Scalar,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        scale: Scalar | None = None,
        skip: Flag | None = None,
    ) -> None:
        arrays = (param, grad, mean, mean_square)
        if not self._flat(*arrays):
            super().adam_update(
                param,
                grad,
                mean,
                mean_square,
                lr=lr,
                step=step,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
                weight_decay=weight_decay,
                decoupled=decoupled,
                scale=scale,
                skip=skip,
            )
            return
        numbers = (*self._given(lr), *self._given(step), beta1, beta2, eps, weight_decay, decoupled)
        self._update("adam", arrays, scale, skip, *numbers)

    def square_norm(self, grad: Array) -> tuple[Array, Array]:
        element = self._element(grad)
        if element is None or not grad.size:
            return super().square_norm(grad)
        shape = geometry.over_packs(grad.size, grad.dtype.itemsize)
        sums, counts = self.empty((shape.grid,), np.float64), self.empty((shape.grid,), np.int32)
        squares, nonfinite = self.empty((), np.float64), self.empty((), np.bool_)
        self.kernels.launch(
            "square_norm",
            (element, geometry.BLOCK),
            shape,
            self._packed(grad),
            sums,
            counts,
            grad.size,
        )
        total = (sums, counts, shape.grid, squares, nonfinite)
        self.kernels.launch("square_norm_total", (geometry.BLOCK,), geometry.Launch(1), *total)
        return squares, nonfinite

    def _update(
        self,
        kernel: str,
        arrays: tuple[Any, ...],
        scale: Scalar | None,
        skip: Flag | None,
        *numbers: Any,
    ) -> None:
        param = arrays[0]
        flag = skip if self._is_array(skip) else None
        if not param.size or (flag is None and skip):
            return
        factor = self._factor(scale, param.dtype)
        template = (sources.FLOATS[param.dtype.name],)
        shape, size = geometry.over_packs(param.size, param.dtype.itemsize), param.size
        self.kernels.launch(kernel, template, shape, *arrays, size, *factor, flag, *numbers)

    def _factor(self, scale: Any, dtype: np.dtype) -> tuple[Array | None, float]:
        """What multiplies the gradient, as the kernels take it."""
        if self._is_array(scale):
            return self.astype(scale, dtype), 0.0
        return None, 1.0 if scale is None else float(scale)

    def _flat(self, param: Array, *others: Array | None) -> bool:
        """Whether the kernels can update these arrays in place: floats of one dtype, no gaps."""
        if param.dtype.name not in sources.FLOATS:
            return False
        arrays = (param, *(o for o in others if o is not None))
        return all(
            a.dtype == param.dtype and a.shape == param.shape and a.flags.c_contiguous
            for a in arrays
        )

    def _given(self, value: Any) -> tuple[Array | None, float]:
        """A number as the kernels take it: its place on the device, or None and its value."""
        if self._is_array(value) and value.dtype == np.float64 and value.size == 1:
            return value, 0.0
        return None, float(value)
