"""The update kernels: one gradient-descent step over a flat buffer of parameters.

Each overwrites its ``param`` and state arrays and reads ``grad``; all are flat (n,) arrays of one
dtype. ``lr`` and ``step`` (1 for the first update) are Python numbers or 0-d float64 arrays of the
device: a recorded step must be able to replay with another learning rate. The formulas are those of
    Ruder, "An overview of gradient descent optimization algorithms" (2016), in
the variants that PyTorch documents. A definition here may be run on any slice of the buffers, which
is how the CPU keeps its temporaries in cache.
"""

from __future__ import annotations

from gpubackprop.backends.composites import Composites
from gpubackprop.backends.primitives import Array

Scalar = float | Array


class Updates(Composites):
    """Gradient descent and its descendants."""

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
    ) -> None:
        """param -= lr * v, with v = momentum * v + (1 - dampening) * (grad + weight_decay * param);
        the first v is the gradient.

        `velocity` may be None where momentum is 0. Nesterov looks ahead: grad + momentum * v in
        place of v.
        """
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
    ) -> None:
        """total += grad**2; param -= lr / (1 + (step - 1) * lr_decay) * grad / (sqrt(total) + eps)
        (Duchi et al. 2011)."""
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
    ) -> None:
        """s = alpha * s + (1 - alpha) * grad**2; param -= lr * grad / (sqrt(s) + eps) (Tieleman &
        Hinton 2012).

        With `mean_grad` (centred) the running mean's square is taken from s first, and what
        rounding leaves below 0 counts as 0; with `velocity` the quotient is accumulated with
        `momentum`.
        """
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
    ) -> None:
        """Adam (Kingma & Ba 2015, algorithm 1); with `decoupled` weight decay AdamW (Loshchilov &
        Hutter 2019).

        m = beta1*m + (1-beta1)*g; v = beta2*v + (1-beta2)*g**2;
        param -= lr / (1-beta1**step) * m / (sqrt(v) / sqrt(1-beta2**step) + eps).
        """
        lr, step = float(lr), float(step)
        if weight_decay and decoupled:
            self.multiply(param, 1.0 - lr * weight_decay, out=param)
        elif weight_decay:
            grad = self.add(grad, self.multiply(param, weight_decay))
        self.multiply(mean, beta1, out=mean)
        self.add(mean, self.multiply(grad, 1.0 - beta1), out=mean)
        self.multiply(mean_square, beta2, out=mean_square)
        self.add(mean_square, self.multiply(self.square(grad), 1.0 - beta2), out=mean_square)
        scale = self.sqrt(mean_square)
        self.multiply(scale, (1.0 - beta2**step) ** -0.5, out=scale)
        self.add(scale, eps, out=scale)
        self.divide(mean, scale, out=scale)
        self.multiply(scale, lr / (1.0 - beta1**step), out=scale)
        self.subtract(param, scale, out=param)
