"""The update kernels: one gradient-descent step over a flat buffer of parameters.

Each overwrites its ``param`` and state arrays and reads ``grad``; all are flat (n,) arrays of one
dtype. ``lr`` and ``step`` (1 for the first update) are Python numbers or 0-d float64 arrays of the
device: a recorded step must be able to replay with another learning rate. The formulas are those of
    Ruder, "An overview of gradient descent optimization algorithms" (2016), in
the variants that PyTorch documents. A definition here may be run on any slice of the buffers, which
is how the CPU keeps its temporaries in cache.

Two further arguments, which all of them take, are what clipping and a scaled loss ask for, without
another pass over the gradient and without waiting for the device:

* ``scale`` multiplies the gradient before anything else is done with it (a clipping factor, one
  over the scale of the loss, or their product): a Python number or a 0-d float array of the device;
  None for 1. The gradient itself stays as it is.
* ``skip`` leaves parameters and state as they are where it is true (the gradient has elements that
  are not finite): a boolean or a 0-d boolean array of the device; None for false.
"""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.composites import Composites
from gpubackprop.backends.primitives import Array

Scalar = float | Array
Flag = bool | Array


class Updates(Composites):
    """Gradient descent and its descendants, and what is asked of a gradient before a step."""

    def square_norm(self, grad: Array) -> tuple[Array, Array]:
        """The sum of the squares of a gradient's elements, and whether one of them is not finite.

        Parameters
        ----------
        grad : floats of any shape.

        Returns
        -------
        squares : 0-d float64, in which squares of float32 can neither overflow nor vanish. Those of
            several buffers may be added up.
        nonfinite : 0-d bool; true where there is an infinity or a NaN.
        """
        squares = self.sum(self.square(self.astype(grad, np.float64)))
        return squares, self.logical_not(self.all(self.isfinite(grad)))

    def _gradient(self, grad: Array, scale: Scalar | None) -> Array:
        """The gradient times its scale, in its own dtype."""
        if scale is None:
            return grad
        if isinstance(scale, (int, float)):
            return self.multiply(grad, float(scale))
        return self.multiply(grad, self.astype(scale, grad.dtype))

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
        """param -= lr * v, with v = momentum * v + (1 - dampening) * (grad + weight_decay * param);
        the first v is the gradient.

        `velocity` may be None where momentum is 0. Nesterov looks ahead: grad + momentum * v in
        place of v.
        """
        if skip is not None and bool(skip):
            return
        grad = self._gradient(grad, scale)
        lr, step = float(lr), float(step)
        if weight_decay:
            grad = self.add(grad, self.multiply(param, weight_decay))
        if velocity is not None and momentum:
            if step <= 1:
                self.copyto(velocity, grad)
            else:
                self.multiply(velocity, momentum, out=velocity)
                self.add(velocity, self.multiply(grad, 1.0 - dampening), out=velocity)
            grad = self.add(grad, self.multiply(velocity, momentum)) if nesterov else velocity
        self.subtract(param, self.multiply(grad, lr), out=param)

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
        """total += grad**2; param -= lr / (1 + (step - 1) * lr_decay) * grad / (sqrt(total) + eps)
        (Duchi et al. 2011)."""
        if skip is not None and bool(skip):
            return
        grad = self._gradient(grad, scale)
        lr, step = float(lr), float(step)
        if weight_decay:
            grad = self.add(grad, self.multiply(param, weight_decay))
        self.add(total, self.square(grad), out=total)
        rate = lr / (1.0 + (step - 1.0) * lr_decay)
        denominator = self.add(self.sqrt(total), eps)
        self.subtract(param, self.multiply(self.divide(grad, denominator), rate), out=param)

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
        """s = alpha * s + (1 - alpha) * grad**2; param -= lr * grad / (sqrt(s) + eps) (Tieleman &
        Hinton 2012).

        With `mean_grad` (centred) the running mean's square is taken from s first, and what
        rounding leaves below 0 counts as 0; with `velocity` the quotient is accumulated with
        `momentum`.
        """
        if skip is not None and bool(skip):
            return
        grad = self._gradient(grad, scale)
        lr = float(lr)
        if weight_decay:
            grad = self.add(grad, self.multiply(param, weight_decay))
        self.multiply(mean_square, alpha, out=mean_square)
        self.add(mean_square, self.multiply(self.square(grad), 1.0 - alpha), out=mean_square)
        spread = mean_square
        if mean_grad is not None:
            self.multiply(mean_grad, alpha, out=mean_grad)
            self.add(mean_grad, self.multiply(grad, 1.0 - alpha), out=mean_grad)
            spread = self.subtract(mean_square, self.square(mean_grad))
            self.maximum(spread, 0.0, out=spread)
        quotient = self.divide(grad, self.add(self.sqrt(spread), eps))
        if velocity is not None and momentum:
            self.multiply(velocity, momentum, out=velocity)
            self.add(velocity, quotient, out=velocity)
            quotient = velocity
        self.subtract(param, self.multiply(quotient, lr), out=param)

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
        """Adam (Kingma & Ba 2015, algorithm 1); with `decoupled` weight decay AdamW (Loshchilov &
        Hutter 2019).

        m = beta1*m + (1-beta1)*g; v = beta2*v + (1-beta2)*g**2;
        param -= lr / (1-beta1**step) * m / (sqrt(v) / sqrt(1-beta2**step) + eps).
        """
        if skip is not None and bool(skip):
            return
        grad = self._gradient(grad, scale)
        lr, step = float(lr), float(step)
        if weight_decay and decoupled:
            self.multiply(param, 1.0 - lr * weight_decay, out=param)
        elif weight_decay:
            grad = self.add(grad, self.multiply(param, weight_decay))
        self.multiply(mean, beta1, out=mean)
        self.add(mean, self.multiply(grad, 1.0 - beta1), out=mean)
        self.multiply(mean_square, beta2, out=mean_square)
        self.add(mean_square, self.multiply(self.square(grad), 1.0 - beta2), out=mean_square)
        move = self.sqrt(mean_square)
        self.multiply(move, (1.0 - beta2**step) ** -0.5, out=move)
        self.add(move, eps, out=move)
        self.divide(mean, move, out=move)
        self.multiply(move, lr / (1.0 - beta1**step), out=move)
        self.subtract(param, move, out=param)
