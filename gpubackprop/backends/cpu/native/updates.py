"""Native optimizer updates: one pass over the arena. The formulas are those of ``updates.py`` in
the contract."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native.abi import (
    doubles,
    floats,
    inline_fast,
    kernel,
    number,
    octets,
    share,
)
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site, fit, lowers

SERIAL = 1 << 15
"""Elements that are left to one thread."""


@inline_fast
def factor_of(single, double, value):
    """What multiplies the gradient: the number at one of two addresses, else the slot's."""
    if single:
        return floats(single, 1)[0]
    if double:
        return np.float32(doubles(double, 1)[0])
    return np.float32(number(value))


@inline_fast
def skipped(flag):
    """Whether there is a flag, and it is set."""
    return octets(flag, 1)[0] != 0 if flag else False


# Every frame ends with: address of a float32 scale (0 for none), of a float64 one, a scale by
# value, address of the flag that skips the step (0 for none).
@kernel
def sgd(frame, part, parts):
    """Frame: param, grad, velocity (0 for none), n, lr, step, momentum, dampening, nesterov,
    weight_decay, scales, skip."""
    if skipped(frame[13]):
        return
    factor = factor_of(frame[10], frame[11], frame[12])
    n = frame[3]
    start, stop = share(n, part, parts, 64)
    lr, momentum = np.float32(number(frame[4])), np.float32(number(frame[6]))
    rest, decay = np.float32(1.0 - number(frame[7])), np.float32(number(frame[9]))
    first, nesterov = frame[5] <= 1, frame[8]
    decayed = decay != 0  # 0 times infinity is no number
    p, g = floats(frame[0], n)[start:stop], floats(frame[1], n)[start:stop]
    if not frame[2]:
        for i in range(p.size):
            slope = factor * g[i]
            if decayed:
                slope += decay * p[i]
            p[i] -= lr * slope
        return
    v = floats(frame[2], n)[start:stop]
    for i in range(p.size):
        slope = factor * g[i]
        if decayed:
            slope += decay * p[i]
        speed = slope if first else momentum * v[i] + rest * slope
        v[i] = speed
        p[i] -= lr * (slope + momentum * speed if nesterov else speed)


@kernel
def adam(frame, part, parts):
    """Frame: param, grad, mean, mean_square, n, lr, step, beta1, beta2, eps, weight_decay,
    decoupled, scales, skip."""
    if skipped(frame[15]):
        return
    factor = factor_of(frame[12], frame[13], frame[14])
    n = frame[4]
    start, stop = share(n, part, parts, 64)
    lr, step, beta1, beta2 = number(frame[5]), frame[6], number(frame[7]), number(frame[8])
    decay = number(frame[10])
    keep = np.float32(1.0 - lr * decay) if frame[11] else np.float32(1.0)
    l2 = np.float32(0.0) if frame[11] else np.float32(decay)
    rate = np.float32(lr / (1.0 - beta1 ** np.float64(step)))
    scale = np.float32(1.0 / np.sqrt(1.0 - beta2 ** np.float64(step)))
    eps, b1, b2 = np.float32(number(frame[9])), np.float32(beta1), np.float32(beta2)
    c1, c2 = np.float32(1.0 - beta1), np.float32(1.0 - beta2)
    decayed = l2 != 0
    p, g = floats(frame[0], n)[start:stop], floats(frame[1], n)[start:stop]
    m, v = floats(frame[2], n)[start:stop], floats(frame[3], n)[start:stop]
    for i in range(p.size):
        slope = factor * g[i]
        if decayed:
            slope += l2 * p[i]
        mean = b1 * m[i] + c1 * slope
        square = b2 * v[i] + c2 * (slope * slope)
        m[i] = mean
        v[i] = square
        p[i] = p[i] * keep - rate * (mean / (np.sqrt(square) * scale + eps))


@kernel
def adagrad(frame, part, parts):
    """Frame: param, grad, total, n, lr, step, lr_decay, eps, weight_decay, scales, skip."""
    if skipped(frame[12]):
        return
    factor = factor_of(frame[9], frame[10], frame[11])
    n = frame[3]
    start, stop = share(n, part, parts, 64)
    rate = np.float32(number(frame[4]) / (1.0 + (frame[5] - 1.0) * number(frame[6])))
    eps, decay = np.float32(number(frame[7])), np.float32(number(frame[8]))
    p, g = floats(frame[0], n)[start:stop], floats(frame[1], n)[start:stop]
    t = floats(frame[2], n)[start:stop]
    decayed = decay != 0
    for i in range(p.size):
        slope = factor * g[i]
        if decayed:
            slope += decay * p[i]
        total = t[i] + slope * slope
        t[i] = total
        p[i] -= rate * (slope / (np.sqrt(total) + eps))


@inline_fast
def rmsprop_loop(p, g, s, c, v, numbers, centred, moving):
    """One pass; with flags known where it is called, arrays that are absent are not looked at."""
    lr, alpha, rest, eps, decay, momentum, factor = numbers
    decayed = decay != 0
    for i in range(p.size):
        slope = factor * g[i]
        if decayed:
            slope += decay * p[i]
        square = alpha * s[i] + rest * (slope * slope)
        s[i] = square
        spread = square
        if centred:
            mean = alpha * c[i] + rest * slope
            c[i] = mean
            left = square - mean * mean
            spread = np.float32(0) if left < 0 else left
        quotient = slope / (np.sqrt(spread) + eps)
        if moving:
            quotient = momentum * v[i] + quotient
            v[i] = quotient
        p[i] -= lr * quotient


@kernel
def rmsprop(frame, part, parts):
    """Frame: param, grad, mean_square, mean_grad (0 for none), velocity (0 for none), n, lr, alpha,
    eps, weight_decay, momentum, scales, skip."""
    if skipped(frame[14]):
        return
    n = frame[5]
    start, stop = share(n, part, parts, 64)
    alpha = number(frame[7])
    numbers = (
        np.float32(number(frame[6])), np.float32(alpha), np.float32(1.0 - alpha),
        np.float32(number(frame[8])), np.float32(number(frame[9])), np.float32(number(frame[10])),
        factor_of(frame[11], frame[12], frame[13]),
    )  # fmt: skip
    p, g = floats(frame[0], n)[start:stop], floats(frame[1], n)[start:stop]
    s = floats(frame[2], n)[start:stop]
    c, v = floats(frame[3], n)[start:stop], floats(frame[4], n)[start:stop]
    if frame[3] and frame[4]:
        rmsprop_loop(p, g, s, c, v, numbers, True, True)
    elif frame[3]:
        rmsprop_loop(p, g, s, c, s, numbers, True, False)
    elif frame[4]:
        rmsprop_loop(p, g, s, s, v, numbers, False, True)
    else:
        rmsprop_loop(p, g, s, s, s, numbers, False, False)


def _instruction(
    made: Any, arrays: list[Any], scale: Any, skip: Any, *numbers: Any
) -> list[Instruction] | None:
    present = [a for a in arrays if a is not None]
    if not fit(*present) or any(a.ndim != 1 for a in present):
        return None
    n = present[0].size
    slots = [0 if a is None else a for a in arrays]
    last = _scales(scale)
    if isinstance(skip, np.ndarray):
        if skip.dtype != np.bool_ or skip.size != 1:
            return None
        flag: Any = skip
    elif skip:
        return []
    else:
        flag = 0
    if last is None:
        return None
    return [Instruction(made, [*slots, n, *numbers, *last, flag], parallel=n > SERIAL)]


def _scales(scale: Any) -> list[Any] | None:
    """The three slots of what multiplies the gradient."""
    if isinstance(scale, np.ndarray):
        if scale.size != 1 or scale.dtype not in (np.float32, np.float64):
            return None
        return [scale, 0, 1.0] if scale.dtype == np.float32 else [0, scale, 1.0]
    if scale is None:
        return [0, 0, 1.0]
    return [0, 0, real(scale)] if _real_number(scale) else None


def real(value: Any) -> Any:
    """A number for a slot that is read as a float; live numbers stay what they are."""
    return value if hasattr(value, "live") else float(value)


def _live_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@lowers("sgd_update")
def lower_sgd(
    site: Site,
    outs: Any,
    param: Any,
    grad: Any,
    velocity: Any,
    *,
    lr: Any,
    step: Any = 1,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    nesterov: bool = False,
    weight_decay: Any = 0.0,
    scale: Any = None,
    skip: Any = None,
) -> list[Instruction] | None:
    """Gradient descent, with momentum."""
    if not all(map(_real_number, (lr, momentum, dampening, weight_decay))) or not _live_int(step):
        return None
    if hasattr(momentum, "live"):  # may be 0 at one step and not at the next
        return None
    state = velocity if momentum else None
    numbers = (real(lr), step, real(momentum), real(dampening), bool(nesterov), real(weight_decay))
    return _instruction(sgd, [param, grad, state], scale, skip, *numbers)


@lowers("adam_update")
def lower_adam(
    site: Site,
    outs: Any,
    param: Any,
    grad: Any,
    mean: Any,
    mean_square: Any,
    *,
    lr: Any,
    step: Any,
    beta1: Any = 0.9,
    beta2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    decoupled: bool = False,
    scale: Any = None,
    skip: Any = None,
) -> list[Instruction] | None:
    """Adam and AdamW."""
    numbers = (lr, beta1, beta2, eps, weight_decay)
    if not all(map(_real_number, numbers)) or not _live_int(step):
        return None
    options = (real(lr), step, real(beta1), real(beta2), real(eps), real(weight_decay))
    arrays = [param, grad, mean, mean_square]
    return _instruction(adam, arrays, scale, skip, *options, bool(decoupled))


@lowers("adagrad_update")
def lower_adagrad(
    site: Site,
    outs: Any,
    param: Any,
    grad: Any,
    total: Any,
    *,
    lr: Any,
    step: Any = 1,
    lr_decay: Any = 0.0,
    eps: Any = 1e-10,
    weight_decay: Any = 0.0,
    scale: Any = None,
    skip: Any = None,
) -> list[Instruction] | None:
    """Adagrad."""
    if not all(map(_real_number, (lr, lr_decay, eps, weight_decay))) or not _live_int(step):
        return None
    options = (real(lr), step, real(lr_decay), real(eps), real(weight_decay))
    return _instruction(adagrad, [param, grad, total], scale, skip, *options)


@lowers("rmsprop_update")
def lower_rmsprop(
    site: Site,
    outs: Any,
    param: Any,
    grad: Any,
    mean_square: Any,
    mean_grad: Any,
    velocity: Any,
    *,
    lr: Any,
    step: Any = 1,
    alpha: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    momentum: Any = 0.0,
    scale: Any = None,
    skip: Any = None,
) -> list[Instruction] | None:
    """RMSprop, centred and with momentum."""
    if not all(map(_real_number, (lr, alpha, eps, weight_decay, momentum))):
        return None
    if hasattr(momentum, "live"):
        return None
    arrays = [param, grad, mean_square, mean_grad, velocity if momentum else None]
    options = (real(lr), real(alpha), real(eps), real(weight_decay), real(momentum))
    return _instruction(rmsprop, arrays, scale, skip, *options)


def _real_number(value: Any) -> bool:
    """Whether a slot can hold it as a float: a live integer would be written as one."""
    if hasattr(value, "live"):
        return isinstance(value, float)
    return isinstance(value, (int, float))
