"""Optimizer: gradient descent over the arena.

An optimizer is a row of facts (which update kernel, which buffers, which options) over this base.
``step`` calls the kernel once per group and buffer, not once per parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from gpubackprop.autograd import Tensor, enable_grad
from gpubackprop.backends import Array, live
from gpubackprop.errors import ConfigError, DTypeError, GradientError
from gpubackprop.nn.arena import Arena, Section
from gpubackprop.nn.module import Module
from gpubackprop.optim.ranges import Range
from gpubackprop.optim.taken import TakenSteps
from gpubackprop.suggest import unknown

Group = dict[str, Any]
Closure = Callable[[], Any]


class Optimizer:
    """Base of the optimizers.

    Parameters
    ----------
    params : what to update, in order: tensors (``model.parameters()``), or (name, tensor) pairs, or
        dictionaries ``{"params": tensors, option: value, ...}``, one per parameter group.
    defaults : options of groups that do not set their own.

    Attributes
    ----------
    param_groups : list of dictionaries with ``"params"`` and the options. An option, such as
        ``"lr"``, may be changed at any time.
    arena : the buffers that hold parameters, gradients and state.

    Raises
    ------
    ConfigError
        If there is nothing to update, a parameter stands in two groups, or an option is unknown or
        out of its range.

    Notes
    -----
    A subclass sets ``kernel`` (the update kernel), ``ranges`` (what each numeric option allows) and
    defines :meth:`slots` and :meth:`options`.
    """

    kernel: ClassVar[str]
    ranges: ClassVar[dict[str, Range]] = {}

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self.defaults = dict(defaults)
        self.param_groups: list[Group] = []
        self.arena = Arena(())
        self._steps: list[list[int]] = []  # of each section's parameters
        self._taken: list[TakenSteps] | None = None  # in their place, once a step can be skipped
        self._bounds: list[list[tuple[int, int]]] = []  # of each group in each section
        groups = self._as_groups(params)
        if not groups:
            raise ConfigError(
                f"{self._name}: there are no parameters to update (layers in a plain list or "
                "dictionary are not found: use nn.ModuleList or nn.ModuleDict)"
            )
        for group in groups:
            self.param_groups.append(self._checked(group))
        self._lay_out()

    @property
    def _name(self) -> str:
        return type(self).__name__

    # What a subclass says.
    def slots(self, group: Group) -> tuple[str | None, ...]:
        """Names of the state buffers in the kernel's order; None where the options need none."""
        raise NotImplementedError

    def options(self, group: Group) -> dict[str, Any]:
        """The kernel's keyword arguments, ``step`` left out."""
        raise NotImplementedError

    def initial(self, slot: str, group: Group) -> float:
        """What a state buffer holds before the first update."""
        return 0.0

    def check(self, group: Group) -> None:
        """Raise ConfigError for options that do not go together."""

    # Groups.
    def _as_groups(self, params: Any) -> list[Group]:
        if isinstance(params, Module):
            raise ConfigError(f"{self._name}: pass model.parameters(), not the module itself")
        if isinstance(params, Tensor):
            raise ConfigError(f"{self._name}: pass a list of tensors, not a single one")
        items = [params] if isinstance(params, dict) else list(params)
        if items and isinstance(items[0], dict):
            return items
        return [{"params": items}] if items else []

    def _checked(self, group: Any) -> Group:
        """A group with every option set and each in its range."""
        if not isinstance(group, dict) or "params" not in group:
            raise ConfigError(f"{self._name}: a parameter group is a dictionary with 'params'")
        allowed = [*self.defaults, "params", "names", "initial_lr"]
        for key in group:
            if key not in allowed:
                raise ConfigError(f"{self._name}: {unknown('option', key, self.defaults)}")
        given = group["params"]
        items = [given] if isinstance(given, Tensor) else list(given)
        pairs = [p if isinstance(p, tuple) and len(p) == 2 else (None, p) for p in items]
        known = {id(p) for g in self.param_groups for p in g["params"]}
        unique: dict[int, Tensor] = {}
        for _, p in pairs:
            if not isinstance(p, Tensor):
                raise DTypeError(f"{self._name}: {p!r} is a {type(p).__name__}, not a tensor")
            if id(p) in known:
                raise ConfigError(
                    f"{self._name}: a parameter of shape {p.shape} stands in two groups"
                )
            unique[id(p)] = p
        checked = {**self.defaults, **group, "params": list(unique.values())}
        names = {id(p): name for name, p in pairs if name is not None}
        if names:
            checked["names"] = [names.get(i) for i in unique]
        self._check_options(checked)
        return checked

    def _check_options(self, group: Group) -> None:
        for option, allowed in self.ranges.items():
            value = group[option]
            if not allowed.holds(value):
                raise ConfigError(f"{self._name}: {option} must be {allowed}, not {value!r}")
        self.check(group)

    def add_param_group(self, param_group: Group) -> None:
        """Update further parameters from now on.

        Parameters
        ----------
        param_group : ``{"params": tensors, option: value, ...}``; other options are the defaults.
        """
        self.param_groups.append(self._checked(param_group))
        self._lay_out()

    def _lay_out(self) -> None:
        """Put all groups into one arena, each in a stretch of its own, and take the state along."""
        self._count_here()
        old_places, old_steps = self.arena.places, self._steps
        sections = self.arena.sections
        steps = {
            key: old_steps[sections.index(section)][i] for key, (section, i) in old_places.items()
        }
        self.arena = Arena(p for group in self.param_groups for p in group["params"])
        self._steps = [[steps.get(id(t), 0) for t in s.tensors] for s in self.arena.sections]
        self._bounds = []
        for group in self.param_groups:
            members = {id(p) for p in group["params"]}
            bounds = []
            for section in self.arena.sections:
                inside = [i for i, t in enumerate(section.tensors) if id(t) in members]
                bounds.append((inside[0], inside[-1] + 1) if inside else (0, 0))
            self._bounds.append(bounds)
        for key, (source, i) in old_places.items():
            target, j = self.arena.places[key]
            for name, buffer in source.slots.items():
                part = target.view(self._slot(target, name), j)
                target.backend.copyto(part, source.view(buffer, i))

    def _slot(self, section: Section, name: str) -> Array:
        """A state buffer, with its initial values if it is new."""
        if name in section.slots:
            return section.slots[name]
        buffer = section.slot(name)
        index = self.arena.sections.index(section)
        for group, bounds in zip(self.param_groups, self._bounds, strict=True):
            first, last = bounds[index]
            value = self.initial(name, group)
            if value:
                part = buffer[section.starts[first] : section.starts[last]]
                section.backend.copyto(part, section.backend.full(part.shape, value, part.dtype))
        return buffer

    # Updates.
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or with ``set_to_none=False`` set those that exist to zero."""
        if set_to_none:
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = None
            return
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    array = p.backend.zeros(p.shape, p.dtype)
                    p.grad = Tensor(array, p.backend)

    def step(self, closure: Closure | None = None, *, scale: Any = None, skip: Any = None) -> Any:
        """Update every parameter that has a gradient; the others stay as they are.

        Parameters
        ----------
        closure : computes the loss anew (gradients included); its result is returned.
        scale : multiplies every gradient, which itself stays as it is: a number, or a 0-d array of
            the device.
        skip : a 0-d array of booleans, of the device: where it is true, parameters, state and step
            counts stay as they are. Nobody waits for it.

        Raises
        ------
        GradientError
            If no parameter has a gradient: ``backward()`` was not called.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        present = self.arena.gather()
        if not any(map(any, present)):
            raise GradientError(
                f"{self._name}.step: no parameter has a gradient; call backward() on the loss first"
            )
        sections = self.arena.sections
        skips = skip is not None or self._taken is not None
        taken = self.count_on_device() if skips else None
        keys = self._count(present)
        if taken is not None:
            keys = [counts.take(has, skip) for counts, has in zip(taken, present, strict=True)]
            live.constant(lambda: [counts.kinds for counts in self._taken or ()])
        given = {"scale": scale, "skip": skip}
        further = {name: value for name, value in given.items() if value is not None}
        for group, bounds in zip(self.param_groups, self._bounds, strict=True):
            options, slots = {**self._live_options(group), **further}, self.slots(group)
            for section, key, (first, last) in zip(sections, keys, bounds, strict=True):
                if first < last:
                    self._update(section, key, first, last, group, slots, options)
        return loss

    def count_on_device(self) -> list[TakenSteps]:
        """The counts of steps on the device, one of each section: made when first asked for, from
        the host's, which mean nothing from then on."""
        sections = self.arena.sections
        if self._taken is not None and any(
            counts.backend is not s.backend for counts, s in zip(self._taken, sections, strict=True)
        ):
            self._count_here()  # the parameters were moved
        if self._taken is None:
            self._taken = [TakenSteps(s, n) for s, n in zip(sections, self._steps, strict=True)]
        return self._taken

    def _count_here(self) -> None:
        """Count on the host again."""
        for counts, steps in zip(self._taken or (), self._steps, strict=False):
            steps[:] = counts.read()
        self._taken = None

    def _count(self, present: list[list[bool]]) -> list[list[int | None]]:
        """Count a step of every parameter that has a gradient; each one's number, or None."""
        touched = [
            (steps, i, section.tensors[i])
            for section, steps, has_grad in zip(
                self.arena.sections, self._steps, present, strict=True
            )
            for i, has in enumerate(has_grad)
            if has
        ]

        def read() -> live.Numbers:
            for steps, i, t in touched:
                steps[i] += 1
                t.mark_changed()
            return tuple([steps[i] for steps, i, _ in touched])

        def undo() -> None:
            for steps, i, _ in touched:
                steps[i] -= 1

        def apart() -> list[int]:
            """How far each count is from the first: neighbours with equal ones are one update."""
            steps, i, _ = touched[0]
            first = steps[i]
            return [steps[i] - first for steps, i, _ in touched]

        live.constant(apart)
        numbers: Any = iter(live.call(read, undo))
        return [[next(numbers) if has else None for has in has_grad] for has_grad in present]

    def _live_options(self, group: Group) -> dict[str, Any]:
        """The kernel's options, each number read anew where a compiled step is replayed. Which of
        them are 0, true or false decides what the kernel does, so that must stay as it is."""
        options = self.options(group)
        if live.STATE.recorder is None:
            return options
        numbers = [
            name
            for name, value in options.items()
            if name == "lr" or (value and type(value) in (int, float))
        ]
        values = live.call(lambda: tuple([self.options(group)[name] for name in numbers]))
        live.constant(
            lambda: [
                bool(value) if name in numbers and name != "lr" else name == "lr" or value
                for name, value in self.options(group).items()
            ]
        )
        live.constant(lambda: group["maximize"])
        return {**options, **dict(zip(numbers, values, strict=True))}

    def _update(
        self,
        section: Section,
        keys: list[int | None],
        first: int,
        last: int,
        group: Group,
        slots: tuple[str | None, ...],
        options: dict[str, Any],
    ) -> None:
        backend = section.backend
        kernel = getattr(backend, self.kernel)
        buffers = [None if s is None else self._slot(section, s) for s in slots]
        # Padding stays zero under every update, except where 0 / (sqrt(0) + eps) is 0 / 0.
        eps = options.get("eps", 1.0)
        exact = section.dtype.type(eps) == 0
        for start, stop, key in section.spans(keys, first, last, exact=exact):
            step: Any = key
            if self._taken is not None:
                step = self._taken[self.arena.sections.index(section)].number(step)
            grad = section.grads[start:stop]
            if group["maximize"]:
                grad = backend.negative(grad)
            state = [None if b is None else b[start:stop] for b in buffers]
            kernel(section.values[start:stop], grad, *state, step=step, **options)

    # State.
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs beside the parameters; see :mod:`.state`."""
        from gpubackprop.optim.state import save

        return save(self)

    def snapshot(self) -> Callable[[], None]:
        """Keep parameters, gradients, state and counts in memory; the result puts them back."""
        from gpubackprop.optim.state import snapshot

        return snapshot(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Raises
        ------
        CheckpointError
            If the state is of another optimizer, or groups, options, buffers or shapes differ.
            Nothing was changed then.
        """
        from gpubackprop.optim.state import load

        load(self, state)

    def __repr__(self) -> str:
        lines = [f"{self._name}("]
        for i, group in enumerate(self.param_groups):
            shown = ", ".join(f"{k}={group[k]!r}" for k in self.defaults)
            lines.append(f"  group {i}: {len(group['params'])} parameters, {shown}")
        return "\n".join([*lines, ")"])


def parameters_of(source: Iterable[Tensor] | Optimizer | Tensor) -> list[Tensor]:
    """The tensors of an optimizer, of an iterable, or a single tensor."""
    if isinstance(source, Optimizer):
        return [p for group in source.param_groups for p in group["params"]]
    return [source] if isinstance(source, Tensor) else list(source)
