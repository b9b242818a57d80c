"""The tables of optimizers and schedules that a recipe can name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpubackprop import nn, optim
from gpubackprop.optim import schedules
from gpubackprop.recipes.options import ANY, Option

Options = Mapping[str, Any]


def _rate(default: float) -> Option:
    return Option(float, default, least=0.0, most=1e6)


def _share(default: float) -> Option:
    return Option(float, default, least=0.0, below=1.0)


_DECAY = Option(float, 0.0, least=0.0, most=1e3)
_EPS = Option(float, 1e-8, least=0.0, most=1.0)
_BETAS = Option(float, (0.9, 0.999), least=0.0, below=1.0, length=2)


@dataclass(frozen=True)
class Method:
    """A row of the table of optimizers.

    Attributes
    ----------
    name : what a recipe calls it.
    summary : one line.
    make : the class; its keyword arguments are the options.
    options : what may be set.
    """

    name: str
    summary: str
    make: Callable[..., optim.Optimizer]
    options: Mapping[str, Option]


OPTIMIZERS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(
            "sgd",
            "gradient descent, with momentum and Nesterov's look-ahead",
            optim.SGD,
            {
                "lr": _rate(0.1),
                "momentum": _share(0.0),
                "dampening": Option(float, 0.0, least=0.0, most=1.0),
                "nesterov": Option(bool, False),
                "weight_decay": _DECAY,
            },
        ),
        Method(
            "adagrad",
            "steps divided by the root of all squared gradients",
            optim.Adagrad,
            {
                "lr": _rate(0.01),
                "lr_decay": Option(float, 0.0, least=0.0, most=1e3),
                "eps": Option(float, 1e-10, least=0.0, most=1.0),
                "weight_decay": _DECAY,
            },
        ),
        Method(
            "rmsprop",
            "steps divided by the root of a running mean square",
            optim.RMSprop,
            {
                "lr": _rate(0.01),
                "alpha": _share(0.99),
                "eps": _EPS,
                "momentum": _share(0.0),
                "centered": Option(bool, False),
                "weight_decay": _DECAY,
            },
        ),
        Method(
            "adam",
            "running means of the gradient and of its square",
            optim.Adam,
            {"lr": _rate(1e-3), "betas": _BETAS, "eps": _EPS, "weight_decay": _DECAY},
        ),
        Method(
            "adamw",
            "Adam whose weight decay shrinks the weights themselves",
            optim.AdamW,
            {
                "lr": _rate(1e-3),
                "betas": _BETAS,
                "eps": _EPS,
                "weight_decay": Option(float, 0.01, least=0.0, most=1e3),
            },
        ),
    )
}
"""Every optimizer by name."""

DECAY = {"decay_vectors": Option(bool, None)}
"""What every optimizer may have: false spares biases and the factors of normalisations, which have
one axis, from weight decay."""


def make_optimizer(
    name: str, options: Options, parameters: Iterable[tuple[str, nn.Parameter]]
) -> optim.Optimizer:
    """The optimizer of a run.

    Parameters
    ----------
    name : a key of ``OPTIMIZERS``.
    options : its options and those of ``DECAY``.
    parameters : (path, parameter) of the network.
    """
    rest = dict(options)
    named = list(parameters)
    groups: Any = named
    if rest.pop("decay_vectors") is False:
        matrices = [pair for pair in named if pair[1].ndim > 1]
        vectors = [pair for pair in named if pair[1].ndim <= 1]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
    return OPTIMIZERS[name].make(groups, **rest)


@dataclass(frozen=True)
class Course:
    """A row of the table of schedules.

    Attributes
    ----------
    name : what a recipe calls it.
    summary : one line.
    make : ``make(options, steps, per_epoch)``: the schedule of a run of so many steps.
    stretches : whether it depends on the number of epochs.
    options : what may be set.
    """

    name: str
    summary: str
    make: Callable[[Options, int, int], schedules.Schedule]
    stretches: bool
    options: Mapping[str, Option] = field(default_factory=dict)


_FLOOR = Option(float, 0.0, least=0.0, most=1.0)


def _milestones(shares: Sequence[float], steps: int) -> tuple[int, ...]:
    """The steps at these shares of a run."""
    return tuple(max(1, round(share * steps)) for share in shares)


SCHEDULES: dict[str, Course] = {
    row.name: row
    for row in (
        Course(
            "constant", "the same rate", lambda o, steps, per_epoch: schedules.Constant(), False
        ),
        Course(
            "step",
            "multiplied by gamma after every so many epochs",
            lambda o, steps, per_epoch: schedules.StepDecay(
                max(1, round(o["epochs"] * per_epoch)), o["gamma"]
            ),
            False,
            {
                "epochs": Option(float, above=0.0, most=1e6),
                "gamma": Option(float, 0.1, above=0.0, most=1.0),
            },
        ),
        Course(
            "milestones",
            "multiplied by gamma at these shares of the run",
            lambda o, steps, per_epoch: schedules.MultiStepDecay(
                _milestones(o["at"], steps), o["gamma"]
            ),
            True,
            {
                "at": Option(float, above=0.0, below=1.0, length=ANY),
                "gamma": Option(float, 0.1, above=0.0, most=1.0),
            },
        ),
        Course(
            "exponential",
            "multiplied by gamma over each epoch, a little at each step",
            lambda o, steps, per_epoch: schedules.Exponential(o["gamma"] ** (1.0 / per_epoch)),
            False,
            {"gamma": Option(float, above=0.0, most=1.0)},
        ),
        Course(
            "cosine",
            "half a cosine wave down to the floor",
            lambda o, steps, per_epoch: schedules.Cosine(steps, o["floor"]),
            True,
            {"floor": _FLOOR},
        ),
        Course(
            "linear",
            "a straight line down to the floor",
            lambda o, steps, per_epoch: schedules.Polynomial(steps, 1.0, o["floor"]),
            True,
            {"floor": _FLOOR},
        ),
        Course(
            "one-cycle",
            "up to the rate and far below the start again",
            lambda o, steps, per_epoch: schedules.OneCycle(
                max(2, steps), o["rise"], "cos", o["div_factor"], o["final_div_factor"]
            ),
            True,
            {
                "rise": Option(float, 0.3, above=0.0, below=1.0),
                "div_factor": Option(float, 25.0, least=1.0, most=1e9),
                "final_div_factor": Option(float, 1e4, least=1.0, most=1e12),
            },
        ),
    )
}
"""Every schedule by name. Options that count time count epochs, or are shares of the run."""

WARMUP = {"warmup_epochs": Option(float, 0.0, least=0.0, most=1e6)}
"""What every schedule may have: a straight line up to its first rate before it begins."""


def make_schedule(name: str, options: Options, epochs: int, per_epoch: int) -> schedules.Schedule:
    """The schedule of a run.

    Parameters
    ----------
    name : a key of ``SCHEDULES``.
    options : its options and those of ``WARMUP``.
    epochs : length of the run.
    per_epoch : steps in an epoch.
    """
    rest = dict(options)
    warmup = min(round(rest.pop("warmup_epochs") * per_epoch), epochs * per_epoch)
    steps = max(1, epochs * per_epoch - warmup)
    schedule = SCHEDULES[name].make(rest, steps, per_epoch)
    return schedules.LinearWarmup(warmup, schedule) if warmup else schedule
