"""SGD, Adagrad, RMSprop, Adam and AdamW: signatures, defaults and options of the update kernels.

The formulas are in ``gpubackprop.backends.updates``; names and defaults are PyTorch's.
"""

from __future__ import annotations

from typing import Any

from gpubackprop.errors import ConfigError
from gpubackprop.optim.optimizer import Group, Optimizer
from gpubackprop.optim.ranges import FINITE, FRACTIONS, NON_NEGATIVE

Betas = tuple[float, float]


def _pick(group: Group, *names: str) -> dict[str, Any]:
    return {name: group[name] for name in names}


class SGD(Optimizer):
    """Gradient descent, with momentum and Nesterov's look-ahead if asked for.

    Parameters
    ----------
    params : see :class:`Optimizer`.
    lr : learning rate.
    momentum : share of the velocity that is kept at each step.
    dampening : share of the gradient that does not enter the velocity.
    weight_decay : L2 penalty: this times the parameter is added to the gradient.
    nesterov : step along the gradient plus `momentum` times the velocity. Needs a momentum and no
        dampening.
    maximize : climb instead of descend.
    """

    kernel = "sgd_update"
    ranges = {
        "lr": NON_NEGATIVE,
        "momentum": NON_NEGATIVE,
        "dampening": FINITE,
        "weight_decay": NON_NEGATIVE,
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
        )

    def check(self, group: Group) -> None:
        if group["nesterov"] and (not group["momentum"] or group["dampening"]):
            raise ConfigError(
                "SGD: nesterov needs momentum > 0 and dampening = 0, not "
                f"momentum={group['momentum']} and dampening={group['dampening']}"
            )

    def slots(self, group: Group) -> tuple[str | None, ...]:
        return ("momentum_buffer" if group["momentum"] else None,)

    def options(self, group: Group) -> dict[str, Any]:
        return _pick(group, "lr", "momentum", "dampening", "weight_decay", "nesterov")


class Adagrad(Optimizer):
    """Steps divided by the root of the sum of all squared gradients so far (Duchi et al. 2011).

    Parameters
    ----------
    params : see :class:`Optimizer`.
    lr : learning rate.
    lr_decay : the rate of update t (from 1) is ``lr / (1 + (t - 1) * lr_decay)``.
    weight_decay : L2 penalty.
    initial_accumulator_value : what the sum of squares begins with.
    eps : added to the root.
    maximize : climb instead of descend.
    """

    kernel = "adagrad_update"
    ranges = {
        "lr": NON_NEGATIVE,
        "lr_decay": NON_NEGATIVE,
        "weight_decay": NON_NEGATIVE,
        "initial_accumulator_value": NON_NEGATIVE,
        "eps": NON_NEGATIVE,
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "eps": eps,
                "maximize": maximize,
            },
        )

    def slots(self, group: Group) -> tuple[str | None, ...]:
        return ("sum",)

    def options(self, group: Group) -> dict[str, Any]:
        return _pick(group, "lr", "lr_decay", "eps", "weight_decay")

    def initial(self, slot: str, group: Group) -> float:
        return group["initial_accumulator_value"]


class RMSprop(Optimizer):
    """Steps divided by the root of a running mean of squared gradients (Tieleman & Hinton 2012).

    Parameters
    ----------
    params : see :class:`Optimizer`.
    lr : learning rate.
    alpha : share of the running mean that is kept at each step.
    eps : added to the root.
    weight_decay : L2 penalty.
    momentum : share of the velocity that is kept at each step.
    centered : divide by the estimated deviation instead: the mean gradient's square is taken off.
    maximize : climb instead of descend.
    """

    kernel = "rmsprop_update"
    ranges = {
        "lr": NON_NEGATIVE,
        "alpha": NON_NEGATIVE,
        "eps": NON_NEGATIVE,
        "weight_decay": NON_NEGATIVE,
        "momentum": NON_NEGATIVE,
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "maximize": maximize,
            },
        )

    def slots(self, group: Group) -> tuple[str | None, ...]:
        return (
            "square_avg",
            "grad_avg" if group["centered"] else None,
            "momentum_buffer" if group["momentum"] else None,
        )

    def options(self, group: Group) -> dict[str, Any]:
        return _pick(group, "lr", "alpha", "eps", "weight_decay", "momentum")


class Adam(Optimizer):
    """Steps along a running mean of the gradient over the root of that of its square.

    Kingma & Ba, "Adam: a method for stochastic optimization" (2015), algorithm 1.

    Parameters
    ----------
    params : see :class:`Optimizer`.
    lr : learning rate.
    betas : shares of the two running means that are kept at each step.
    eps : added to the root of the second mean.
    weight_decay : L2 penalty, added to the gradient.
    maximize : climb instead of descend.
    """

    kernel = "adam_update"
    ranges = {
        "lr": NON_NEGATIVE,
        "betas": FRACTIONS,
        "eps": NON_NEGATIVE,
        "weight_decay": NON_NEGATIVE,
    }
    decoupled = False

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
            },
        )

    def slots(self, group: Group) -> tuple[str | None, ...]:
        return ("exp_avg", "exp_avg_sq")

    def options(self, group: Group) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {
            **_pick(group, "lr", "eps", "weight_decay"),
            "beta1": beta1,
            "beta2": beta2,
            "decoupled": self.decoupled,
        }


class AdamW(Adam):
    """Adam whose weight decay shrinks the parameter itself (Loshchilov & Hutter 2019).

    Parameters
    ----------
    params, lr, betas, eps, maximize : as for :class:`Adam`.
    weight_decay : the parameter is multiplied by ``1 - lr * weight_decay`` before each update.
    """

    decoupled = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize)
