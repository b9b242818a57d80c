"""Module: a part of a network that owns parameters, buffers and further modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from gpubackprop.autograd import STATE, Tensor, tensor
from gpubackprop.backends import Backend, Shape, as_dtype, get_backend
from gpubackprop.backends.random import Generator
from gpubackprop.errors import ConfigError, DTypeError
from gpubackprop.nn import state as _state
from gpubackprop.nn.arena import Arena
from gpubackprop.nn.parameter import Parameter
from gpubackprop.suggest import unknown

M = TypeVar("M", bound="Module")
PARAMETER, BUFFER, MODULE, GENERATOR = "parameter", "buffer", "module", "generator"


def _kind(value: Any) -> str | None:
    if isinstance(value, Parameter):
        return PARAMETER
    if isinstance(value, Module):
        return MODULE
    return GENERATOR if isinstance(value, Generator) else None


class _Bookkeeping:
    """Makes a module's registry before any ``__init__`` runs: a subclass need not call super()."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        object.__setattr__(self, "_registry", {})
        object.__setattr__(self, "_transient", set())
        object.__setattr__(self, "training", True)
        return self


class Module(_Bookkeeping):
    """Base of every layer and network.

    A subclass assigns parameters, modules and random generators to attributes and defines
    ``forward``. What is assigned is registered, in the order of the assignments; that order is the
    order of :meth:`parameters`, of :meth:`state_dict` and of the memory.

    Attributes
    ----------
    training : whether the module is in training mode (dropout drops) or in evaluation mode.

    Examples
    --------
    >>> class Twice(Module):
    ...     def __init__(self, inner):
    ...         self.inner = inner
    ...     def forward(self, x):
    ...         return self.inner(self.inner(x))
    """

    training: bool
    _registry: dict[str, str]  # attribute name -> kind, in order of registration
    _transient: set[str]  # buffers that are not part of the state

    def __init__(self) -> None:
        pass

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's result; every subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        observer = STATE.observer
        if observer is None:
            return self.forward(*args, **kwargs)
        observer.enter(self)
        try:
            return self.forward(*args, **kwargs)
        finally:
            observer.leave(self)

    # Registration.
    def __setattr__(self, name: str, value: Any) -> None:
        kind = _kind(value)
        if kind is not None:
            self._registry[name] = kind
        elif value is not None:
            registered = self._registry.get(name)
            buffered = registered == BUFFER and isinstance(value, Tensor)
            if registered is not None and not buffered:
                raise DTypeError(
                    f"{type(self).__name__}.{name} is a {registered}; it cannot be replaced by a "
                    f"{type(value).__name__} (delete the attribute first)"
                )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._registry.pop(name, None)
        self._transient.discard(name)

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise ConfigError(
                f"{type(self).__name__}: {name!r} cannot name a part of a module; "
                "use a string that is not empty and has no dot"
            )
        if name not in self._registry and hasattr(self, name):
            raise ConfigError(f"{type(self).__name__} has an attribute {name!r} already")

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Register a parameter by name; None keeps the name for an absent one."""
        self._check_name(name)
        if parameter is not None and not isinstance(parameter, Parameter):
            raise DTypeError(
                f"register_parameter: {name!r} is a {type(parameter).__name__}, not a Parameter"
            )
        self._registry[name] = PARAMETER
        object.__setattr__(self, name, parameter)

    def register_buffer(self, name: str, value: Any, persistent: bool = True) -> None:
        """Register a tensor that is not learned but moves with the module.

        Parameters
        ----------
        name : attribute name.
        value : a tensor, anything that makes one, or None.
        persistent : whether it is part of ``state_dict()``.
        """
        self._check_name(name)
        if value is not None and not isinstance(value, Tensor):
            value = tensor(value)
        self._registry[name] = BUFFER
        if not persistent:
            self._transient.add(name)
        object.__setattr__(self, name, value)

    def register_module(self, name: str, module: Module | None) -> None:
        """Register a module by name, as the assignment of an attribute does."""
        self._check_name(name)
        if module is not None and not isinstance(module, Module):
            raise DTypeError(
                f"{type(self).__name__}: {name!r} is a {type(module).__name__}, not a Module"
            )
        self._registry[name] = MODULE
        object.__setattr__(self, name, module)

    add_module = register_module

    def _own(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Registered attributes of one kind that are present."""
        values = self.__dict__
        for name, registered in self._registry.items():
            if registered == kind and values[name] is not None:
                yield name, values[name]

    def _walk(self, kind: str, prefix: str, recurse: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules = self.named_modules(prefix) if recurse else [(prefix, self)]
        for path, module in modules:
            for name, value in module._own(kind):
                if id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    # Looking inside.
    def named_parameters(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """(path, parameter) in registration order; a tied parameter once, under its first path."""
        return self._walk(PARAMETER, prefix, recurse)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters in registration order, each once."""
        return (p for _, p in self._walk(PARAMETER, "", recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """(path, buffer) in registration order."""
        return self._walk(BUFFER, prefix, recurse)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers in registration order."""
        return (b for _, b in self._walk(BUFFER, "", recurse))

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the modules directly inside this one."""
        return self._own(MODULE)

    def children(self) -> Iterator[Module]:
        """The modules directly inside this one."""
        return (m for _, m in self._own(MODULE))

    def named_modules(
        self, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """(path, module) of this module and all inside it, parents first."""
        return self._modules_below(prefix, set() if remove_duplicate else None)

    def _modules_below(self, path: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield path, self
        for name, module in self._own(MODULE):
            yield from module._modules_below(f"{path}.{name}" if path else name, seen)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, parents first."""
        return (m for _, m in self.named_modules())

    def get_submodule(self, path: str) -> Module:
        """The module at a path such as ``"encoder.0"``; the empty path is the module itself."""
        modules = dict(self.named_modules(remove_duplicate=False))
        if path not in modules:
            raise ConfigError(unknown("module path", path, [p for p in modules if p]))
        return modules[path]

    # Modes and gradients.
    def train(self: M, mode: bool = True) -> M:
        """Set training mode here and in all modules inside; returns the module."""
        for module in self.modules():
            object.__setattr__(module, "training", bool(mode))
        return self

    def eval(self: M) -> M:
        """Set evaluation mode: ``train(False)``."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Freeze (False) or unfreeze every parameter; returns the module."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for p in self.parameters():
            p.grad = None

    def apply(self: M, function: Callable[[Module], Any]) -> M:
        """Call `function` on every module, children before parents; returns the module."""
        for _, child in self._own(MODULE):
            child.apply(function)
        function(self)
        return self

    def to(self: M, device: str | Backend | None = None, dtype: Any = None) -> M:
        """Move parameters and buffers to a device, one copy a dtype, and return the module.

        Parameters
        ----------
        device : a device name or backend; None leaves everything where it is.
        dtype : float dtype for parameters and float buffers (running averages are in float32 at
            least); None keeps theirs. An optimizer's state has the old one: make a new optimizer.
        """
        if isinstance(device, (type, np.dtype)):
            raise DTypeError(f"to: {device} is a dtype; write to(dtype=...)")
        if dtype is not None:
            dtype = as_dtype(dtype)
            if dtype.kind != "f":
                raise DTypeError(f"to: {dtype} has no derivatives; parameters need a float dtype")
            for p in self.parameters():
                _state.cast(p, dtype)
        target = None if device is None else get_backend(device)
        if target is not None and any(p.backend is not target for p in self.parameters()):
            Arena(self.parameters()).to(target)
        for module in self.modules():
            kept = None if dtype is None else module._buffer_dtype(dtype)
            for name, b in list(module._own(BUFFER)):
                object.__setattr__(module, name, _state.moved(b, target, kept))
        return self

    def _buffer_dtype(self, dtype: np.dtype) -> np.dtype:
        return dtype  # of this module's own float buffers, beside parameters of `dtype`

    def double(self: M) -> M:
        """Parameters and float buffers in float64: ``to(dtype="float64")``."""
        return self.to(dtype=np.float64)

    def float(self: M) -> M:
        """Parameters and float buffers in float32: ``to(dtype="float32")``."""
        return self.to(dtype=np.float32)

    def half(self: M) -> M:
        """Parameters in float16: ``to(dtype="float16")``; running averages stay in float32."""
        return self.to(dtype=np.float16)

    # State.
    def _state_entries(self) -> dict[str, Tensor]:
        entries: dict[str, Tensor] = {}
        for path, module in self.named_modules(remove_duplicate=False):
            for kind in (PARAMETER, BUFFER):
                for name, value in module._own(kind):
                    if name not in module._transient:
                        entries[f"{path}.{name}" if path else name] = value
        return entries

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and persistent buffers as NumPy arrays, by path.

        The paths and their order are PyTorch's for the same modules.
        """
        return {path: np.array(t.numpy()) for path, t in self._state_entries().items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> _state.Difference:
        """Write saved values over the parameters and buffers, in place.

        Parameters
        ----------
        state : values by path, as from :meth:`state_dict`: arrays, tensors (PyTorch's CPU tensors
            too) or nested numbers.
        strict : whether missing and unexpected paths are errors. Wrong shapes always are.

        Returns
        -------
        Difference
            ``missing_keys`` and ``unexpected_keys``; both empty when `strict`.

        Raises
        ------
        CheckpointError
            Listing every missing, unexpected and unfitting value. Nothing was changed then.
        """
        return _state.load(type(self).__name__, self._state_entries(), state, strict)

    def named_generators(self) -> Iterator[tuple[str, Generator]]:
        """(path, random generator) of every module that draws; a shared one once."""
        return self._walk(GENERATOR, "", True)

    def generators(self) -> Iterator[Generator]:
        """The random generators of all modules that draw, each once."""
        return (g for _, g in self.named_generators())

    def random_state(self) -> dict[str, list[int]]:
        """[seed, stream, offset] of every module's generator, by path."""
        return {path: list(g.state()) for path, g in self.named_generators()}

    def load_random_state(self, state: Mapping[str, Any]) -> None:
        """Continue every random sequence where :meth:`random_state` stood.

        Raises
        ------
        CheckpointError
            If a path is missing or unexpected, or a state is not three integers. Nothing was
            changed then.
        """
        fresh = _state.generators(type(self).__name__, dict(self.named_generators()), state)
        for module in self.modules():
            for name, generator in list(module._own(GENERATOR)):
                object.__setattr__(module, name, fresh[id(generator)])

    # In words.
    def extra_repr(self) -> str:
        """The module's own settings, for its printed form."""
        return ""

    def __repr__(self) -> str:
        children = [f"({name}): {child!r}" for name, child in self._own(MODULE)]
        if not children:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = ([self.extra_repr()] if self.extra_repr() else []) + children
        body = "\n".join(lines).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {body}\n)"

    def summary(self, input_shape: Shape | None = None, dtype: Any = np.float32) -> str:
        """A table of the modules: path, type, shape of the result, number of parameters.

        Parameters
        ----------
        input_shape : shape of one input, batch axis included; the network is then run once on
            zeros, in evaluation mode, to learn the shapes of the results.
        dtype : dtype of that input.

        Returns
        -------
        str
            The table; print it. Totals are in its last lines.
        """
        from gpubackprop.nn.summary import summarize

        return summarize(self, input_shape, dtype)

    def __copy__(self: M) -> M:
        """A network of the same parts, to which others can be added."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        object.__setattr__(twin, "_registry", dict(self._registry))
        object.__setattr__(twin, "_transient", set(self._transient))
        return twin

    def __deepcopy__(self: M, memo: dict[int, Any]) -> M:
        """A network of its own: parameters, buffers and random sequences are copied."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for name, value in self.__dict__.items():
            object.__setattr__(twin, name, copy.deepcopy(value, memo))
        return twin
