"""Scaling the loss, so that small gradients do not vanish in float16.

float16 has nothing between 0 and 6e-8, so a cotangent below that is lost. The loss is multiplied by
a large power of two, and with it, by the chain rule, every cotangent; the update divides the
gradients by it again. Where a gradient is infinite or NaN the scale was too large: the step is
skipped and the scale halved. Where it was not for long, the scale is doubled (Micikevicius et al.
2018, "Mixed precision training", section 3.2).

Scale, counts and the finding are arrays of the device: nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gpubackprop.autograd import REGISTRY, Tensor, apply
from gpubackprop.autograd.tape import next_number
from gpubackprop.backends import Array, Backend, get_backend
from gpubackprop.errors import CheckpointError, ConfigError, DeviceError
from gpubackprop.optim.clip import flat_gradients
from gpubackprop.optim.optimizer import Optimizer

SCALE, COUNT = np.dtype(np.float32), np.dtype(np.int32)


class GradScaler:
    """A loss scale that finds its size.

    Parameters
    ----------
    device : where the parameters are.
    init_scale : the first scale; a power of two, so that scaling rounds nothing.
    growth_factor, backoff_factor : what the scale is multiplied by after `growth_interval` steps in
        a row whose gradients were finite, and after one whose were not.
    growth_interval : see there.

    Raises
    ------
    ConfigError
        An argument is out of its range.

    Notes
    -----
    The rule, its names and defaults are those of PyTorch's ``torch.amp.GradScaler`` (kernel
    ``amp_update_scale_`` in ``aten/src/ATen/native/cuda/AmpKernels.cu``): a scale that would grow
    to infinity stays.

    Examples
    --------
    >>> scaler = GradScaler("cpu")  # doctest: +SKIP
    >>> with gb.precision("fp16-mixed"):  # doctest: +SKIP
    ...     loss = F.cross_entropy(model(x), y)
    >>> scaler.scale(loss).backward()  # doctest: +SKIP
    >>> scaler.step(optimizer, max_norm=1.0); scaler.update()  # doctest: +SKIP
    """

    def __init__(
        self,
        device: str | Backend | None = None,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        _check(init_scale, growth_factor, backoff_factor, growth_interval)
        backend = self.backend = get_backend(device)
        self.growth_factor, self.backoff_factor = float(growth_factor), float(backoff_factor)
        self.growth_interval = int(growth_interval)
        self._scale = backend.full((), float(init_scale), SCALE)
        self._growth = backend.zeros((), COUNT)  # finite steps since the scale last changed
        self._skipped = backend.zeros((), COUNT)
        self._found = backend.zeros((), np.dtype(bool))  # something not finite, since `update`
        self._norm = backend.zeros((), SCALE)
        self._nothing = backend.zeros((), np.dtype(bool))
        self._unscaled: set[int] = set()
        self._scaled_at: int | None = None  # the tape's number at the first loss since `update`

    # A step.
    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale, in float32: call ``backward()`` on it. From then on ``grad`` of
        every parameter is larger by that factor, until :meth:`unscale_`; :meth:`step` takes it into
        account."""
        self._begin()
        self._check_device(loss.backend)
        wide = loss if loss.dtype.itemsize >= SCALE.itemsize else loss.astype(SCALE)
        return apply(REGISTRY["multiply"], wide, Tensor(self._scale, self.backend))

    def cotangent(self, loss: Tensor, share: float = 1.0) -> Tensor:
        """What to begin the backward pass of a loss with: the scale times `share`, in the shape of
        the loss."""
        self._begin()
        kernels = self.backend
        value = self._scale if share == 1.0 else kernels.multiply(self._scale, share)
        return Tensor(kernels.reshape(value, loss.shape), kernels)

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, in place, to look at them or to clip them by value.
        Once between a backward pass and :meth:`step`.

        Raises
        ------
        ConfigError
            If it was done already, or the gradients were clipped before.
        """
        self._refuse_clipped(optimizer)
        if id(optimizer) in self._unscaled:
            raise ConfigError(
                "GradScaler.unscale_: the gradients of this optimizer are unscaled already; call "
                "update() after step()"
            )
        self._unscaled.add(id(optimizer))
        inverse = self._inverse()
        for backend, g in flat_gradients(optimizer):
            backend.multiply(g, backend.astype(inverse, g.dtype), out=g)

    def look(self, optimizer: Optimizer) -> tuple[Array, Array]:
        """Whether a gradient is infinite or NaN, and the norm of all gradients as they are.

        Returns
        -------
        found, norm : 0-d arrays of the device, bool and float32. They are kept for
            :meth:`take_step`, and overwritten by the next look.
        """
        kernels = self.backend
        found: Any = self._nothing
        squares: Any = None
        for backend, g in flat_gradients(optimizer):
            self._check_device(backend)
            part, wrong = kernels.square_norm(g)
            found = kernels.logical_or(found, wrong)
            squares = part if squares is None else kernels.add(squares, part)
        kernels.copyto(self._found, found)
        if squares is not None:
            norm = kernels.sqrt(squares)  # of float64: squares of float32 may overflow
            kernels.copyto(self._norm, kernels.astype(kernels.asarray(norm), SCALE))
        return self._found, self._norm

    def step(self, optimizer: Optimizer, max_norm: float | None = None) -> None:
        """Update the parameters by the unscaled gradients, or skip the step where one of them is
        not finite. A skipped step changes neither parameters nor the optimizer's state.

        Parameters
        ----------
        max_norm : the largest norm of all (unscaled) gradients as one vector; longer ones are
            shortened to it, as by :func:`~gpubackprop.optim.clip_grad_norm_`.

        Raises
        ------
        ConfigError
            If the gradients were clipped since :meth:`scale`, and not unscaled before.
        """
        earlier = self.backend.copy(self._found)  # of other optimizers of this step
        found, _ = self.look(optimizer)
        self.take_step(optimizer, max_norm)
        self.backend.copyto(found, self.backend.logical_or(earlier, found))

    def take_step(
        self, optimizer: Optimizer, max_norm: float | None = None, hold: Array | None = None
    ) -> None:
        """:meth:`step` by what the last :meth:`look` found; where `hold` (0-d bool, of the device)
        is true, the step is skipped in any case."""
        self._refuse_clipped(optimizer)
        kernels = self.backend
        factor: Any = None if id(optimizer) in self._unscaled else self._inverse()
        if max_norm is not None:
            if not max_norm >= 0:
                raise ConfigError(f"GradScaler.step: max_norm must not be negative, not {max_norm}")
            norm = self._norm if factor is None else kernels.multiply(self._norm, factor)
            clip = kernels.minimum(kernels.divide(max_norm, kernels.add(norm, 1e-6)), 1.0)
            factor = clip if factor is None else kernels.multiply(factor, clip)
        if factor is not None:
            factor = kernels.asarray(kernels.astype(kernels.asarray(factor), SCALE))
        skip = self._found if hold is None else kernels.logical_or(self._found, hold)
        optimizer.step(scale=factor, skip=skip)

    def update(self, hold: Array | None = None) -> None:
        """Find the next step's scale; after :meth:`step` of every optimizer. Where `hold` (0-d
        bool, of the device) is true, scale and counts stay as they are."""
        kernels, found = self.backend, self._found
        before = None if hold is None else [kernels.copy(a) for a in self._counted()]
        grown = kernels.add(self._growth, 1)
        due = kernels.equal(grown, self.growth_interval)
        larger = kernels.multiply(self._scale, self.growth_factor)
        larger = kernels.where(
            kernels.logical_and(due, kernels.isfinite(larger)), larger, self._scale
        )
        smaller = kernels.multiply(self._scale, self.backoff_factor)
        goes_on = kernels.logical_not(kernels.logical_or(found, due))
        kernels.add(self._skipped, kernels.astype(found, COUNT), out=self._skipped)
        kernels.copyto(self._scale, kernels.where(found, smaller, larger))
        kernels.copyto(self._growth, kernels.multiply(grown, kernels.astype(goes_on, COUNT)))
        for array, value in zip(self._counted(), before or (), strict=False):
            kernels.copyto(array, kernels.where(hold, value, array))
        kernels.copyto(found, self._nothing)
        self._unscaled.clear()
        self._scaled_at = None

    def _begin(self) -> None:
        if self._scaled_at is None:
            self._scaled_at = next_number()

    def _refuse_clipped(self, optimizer: Optimizer) -> None:
        """Gradients that are larger by the scale have been clipped to next to nothing."""
        since = self._scaled_at
        if since is None or id(optimizer) in self._unscaled:
            return
        if any(section.clipped_at > since for section in optimizer.arena.sections):
            raise ConfigError(
                "GradScaler: the gradients of this optimizer were clipped while they were "
                "multiplied by the scale; use step(optimizer, max_norm=...), or call "
                "unscale_(optimizer) before the clipping"
            )

    def _counted(self) -> tuple[Array, Array, Array]:
        return self._scale, self._growth, self._skipped

    def _inverse(self) -> Array:
        return self.backend.reciprocal(self._scale)

    def _check_device(self, backend: Backend) -> None:
        if backend is not self.backend:
            raise DeviceError(
                f"GradScaler: it is on {self.backend.device}, the loss or a gradient on "
                f"{backend.device}; make it with device={backend.device!r}"
            )

    # What it is.
    @property
    def scale_array(self) -> Array:
        """The scale: 0-d float32, of the device."""
        return self._scale

    def get_scale(self) -> float:
        """The scale; waits for the device."""
        return float(self.backend.to_numpy(self._scale))

    @property
    def skipped(self) -> int:
        """How many steps were skipped in all; waits for the device."""
        return int(self.backend.to_numpy(self._skipped))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: plain JSON."""
        return {
            "scale": self.get_scale(),
            "growth_tracker": int(self.backend.to_numpy(self._growth)),
            "skipped": self.skipped,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Raises
        ------
        CheckpointError
            If the state is not complete, or a value is out of its range. Nothing was changed then.
        """
        names = ("scale", "growth_factor", "backoff_factor", "growth_interval")
        counts = ("growth_tracker", "skipped")
        if not isinstance(state, Mapping) or set(state) != {*names, *counts}:
            raise CheckpointError(
                f"GradScaler: the saved state must hold {', '.join((*names, *counts))}, and nothing"
                " else"
            )
        try:
            _check(*[state[name] for name in names])
            for name in counts:
                if type(state[name]) is not int or not 0 <= state[name] < 2**31:
                    raise ConfigError(f"GradScaler: {name} must be a count, not {state[name]!r}")
        except ConfigError as error:
            raise CheckpointError(f"{error} (in the saved state)") from None
        kernels = self.backend
        self.growth_factor = float(state["growth_factor"])
        self.backoff_factor = float(state["backoff_factor"])
        self.growth_interval = int(state["growth_interval"])
        kernels.copyto(self._scale, kernels.full((), state["scale"], SCALE))
        kernels.copyto(self._growth, kernels.full((), state["growth_tracker"], COUNT))
        kernels.copyto(self._skipped, kernels.full((), state["skipped"], COUNT))
        kernels.copyto(self._found, self._nothing)
        self._unscaled.clear()

    def snapshot(self) -> Callable[[], None]:
        """Keep the state in memory; the result puts it back."""
        kernels = self.backend
        arrays = (*self._counted(), self._found, self._norm)
        kept = [(a, kernels.copy(a)) for a in arrays]
        unscaled = set(self._unscaled)

        def restore() -> None:
            for array, copy in kept:
                kernels.copyto(array, copy)
            self._unscaled = set(unscaled)

        return restore


def _check(scale: Any, growth: Any, backoff: Any, interval: Any) -> None:
    """Raise ConfigError for arguments that make no scaler."""
    for name, value, low, high in (
        ("init_scale", scale, 0.0, 2.0**127),
        ("growth_factor", growth, 1.0, 2.0**16),
        ("backoff_factor", backoff, 0.0, 1.0),
    ):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low < value < high:
            raise ConfigError(
                f"GradScaler: {name} must be more than {low:g} and less than {high:g}, not "
                f"{value!r}"
            )
    if isinstance(interval, bool) or not isinstance(interval, int) or not 1 <= interval < 2**31:
        raise ConfigError(
            f"GradScaler: growth_interval must be a whole number from 1 on, not {interval!r}"
        )
