"""Clipping gradients, by their global norm or by value, in passes over whole buffers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpubackprop.autograd import Tensor
from gpubackprop.autograd.tape import next_number
from gpubackprop.backends import Array, Backend
from gpubackprop.errors import ConfigError, DeviceError, NonFiniteError
from gpubackprop.nn.arena import Section
from gpubackprop.optim.optimizer import Optimizer, parameters_of

Source = Iterable[Tensor] | Optimizer | Tensor


def flat_gradients(source: Source, clip: bool = False) -> list[tuple[Backend, Array]]:
    """All gradients as few arrays: neighbours in an arena together, the others one by one.

    Parameters
    ----------
    source : an optimizer, or tensors. Those without a gradient are skipped.
    clip : whether they will be clipped, which their arenas then know.

    Returns
    -------
    list of (backend, array)
        Writing an array writes ``grad`` of its tensors. Padding between them is zero.
    """
    if isinstance(source, Optimizer):
        source.arena.gather()
    masks: dict[int, tuple[Section, list[bool]]] = {}
    single: list[tuple[Backend, Array]] = []
    for p in parameters_of(source):
        if p.grad is None:
            continue
        section, i = _home(p)
        if section is None:
            single.append((p.grad.backend, p.grad.array))
        else:
            mask = masks.setdefault(id(section), (section, [False] * len(section.tensors)))[1]
            mask[i] = True
    if clip:
        for section, _ in masks.values():
            section.clipped_at = next_number()
    spans = [
        (section.backend, section.grads[start:stop])
        for section, mask in masks.values()
        for start, stop, _ in section.spans(mask)
    ]
    return spans + single


def _home(p: Tensor) -> tuple[Section | None, int]:
    """Section and place of a tensor whose gradient lies in an arena."""
    reference, i = getattr(p, "home", None) or (None, 0)
    section = reference() if reference is not None else None
    if section is None or p.grad is None or p.grad.array is not section.grad_views[i]:
        return None, 0
    return section, i


def grad_norm(source: Source, norm_type: float = 2.0) -> Tensor:
    """The norm of all gradients taken as one vector.

    Parameters
    ----------
    source : an optimizer, or tensors.
    norm_type : 2 for the Euclidean norm, 1, another positive number, or infinity for the largest
        absolute value.

    Returns
    -------
    Tensor
        A single element on the gradients' device, of their dtype but at least float32.
    """
    return _norm(flat_gradients(source), norm_type)


def _norm(parts: list[tuple[Backend, Array]], norm_type: float) -> Tensor:
    if isinstance(norm_type, bool) or not norm_type > 0:
        raise ConfigError(f"the order of a norm must be positive, not {norm_type}")
    if not parts:
        from gpubackprop.backends import get_backend

        cpu = get_backend("cpu")
        return Tensor(cpu.zeros((), np.dtype(np.float32)), cpu)
    kernels = parts[0][0]
    total: Any = None
    for backend, g in parts:
        if backend is not kernels:
            raise DeviceError(
                f"the norm of gradients on {kernels.device} and {backend.device} together is not "
                "defined; clip each device's parameters by themselves"
            )
        flat = kernels.reshape(g, (-1,))
        if flat.dtype.itemsize < 4:
            flat = kernels.astype(flat, np.float32)  # half precision overflows at 65504
        if not flat.size:
            continue
        part = _power_sum(kernels, flat, norm_type)
        if total is None:
            total = part
        elif norm_type == math.inf:
            total = kernels.maximum(total, part)
        else:
            total = kernels.add(total, part)
    if total is None:
        total = kernels.zeros((), parts[0][1].dtype)
    elif norm_type == 2.0:
        total = kernels.sqrt(total)
    elif norm_type not in (1.0, math.inf):
        total = kernels.power(total, 1.0 / norm_type)
    return Tensor(kernels.asarray(total), kernels)


def _power_sum(kernels: Backend, flat: Array, norm_type: float) -> Array:
    if norm_type == 2.0:
        return kernels.matmul(flat, flat)  # an inner product makes no temporary
    size = kernels.absolute(flat)
    if norm_type == math.inf:
        return kernels.max(size)
    return kernels.sum(size if norm_type == 1.0 else kernels.power(size, norm_type))


def clip_grad_norm_(
    source: Source,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients by one factor so that their common norm is at most `max_norm`.

    Parameters
    ----------
    source : an optimizer, or tensors.
    max_norm : the largest norm allowed.
    norm_type : see :func:`grad_norm`.
    error_if_nonfinite : raise an error where the norm is NaN or infinite. Otherwise such gradients
        stay as they are: a factor of 0 would make NaNs of the infinities.

    Returns
    -------
    Tensor
        The norm before the clipping, a single element. Reading it waits for the device.

    Raises
    ------
    NonFiniteError
        See `error_if_nonfinite`.

    Notes
    -----
    The factor is min(1, max_norm / (norm + 1e-6)), Pascanu et al. 2013 with PyTorch's guard. Under
    float16, gradients are scaled until :meth:`GradScaler.step`, which clips by itself; to clip here
    call :meth:`GradScaler.unscale_` before, or `step` will refuse.
    """
    if not max_norm >= 0:
        raise ConfigError(f"clip_grad_norm_: max_norm must not be negative, not {max_norm}")
    parts = flat_gradients(source, clip=True)
    norm = _norm(parts, norm_type)
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise NonFiniteError(
            f"clip_grad_norm_: the gradients' norm is {norm.item()}; their scaling would be "
            "meaningless"
        )
    kernels = norm.backend
    factor = kernels.minimum(kernels.divide(max_norm, kernels.add(norm.array, 1e-6)), 1.0)
    factor = kernels.where(kernels.isfinite(norm.array), factor, 1.0)
    for backend, g in parts:
        backend.multiply(g, backend.astype(kernels.asarray(factor), g.dtype), out=g)
    return norm


def clip_grad_value_(source: Source, clip_value: float) -> None:
    """Bring every element of the gradients into [-clip_value, clip_value]; NaN stays NaN.

    Parameters
    ----------
    source : an optimizer, or tensors.
    clip_value : the largest absolute value allowed.
    """
    if not clip_value >= 0:
        raise ConfigError(f"clip_grad_value_: clip_value must not be negative, not {clip_value}")
    for backend, g in flat_gradients(source, clip=True):
        backend.clip(g, -clip_value, clip_value, out=g)
