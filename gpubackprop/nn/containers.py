"""Modules made of modules in order: Sequential, ModuleList, ModuleDict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, overload

from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn.module import MODULE, Module
from gpubackprop.suggest import unknown


class _Ordered(Module):
    """Modules under the names "0", "1", ... (or given ones), with the manners of a list."""

    def _items(self) -> list[Module]:
        return [self.__dict__[n] for n, kind in self._registry.items() if kind == MODULE]

    def _names(self) -> list[str]:
        return [n for n, kind in self._registry.items() if kind == MODULE]

    def __len__(self) -> int:
        return len(self._names())

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items())

    def _place(self, index: int) -> str:
        names = self._names()
        if not -len(names) <= index < len(names):
            raise ShapeError(
                f"{type(self).__name__}: index {index} is out of range for {len(names)} modules"
            )
        return names[index]

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> _Ordered: ...
    def __getitem__(self, index: int | slice) -> Module:
        """One module, or a new container of the same modules (shared, not copied)."""
        if isinstance(index, slice):
            part = type(self)()
            for name in self._names()[index]:
                part.register_module(name, self.__dict__[name])
            return part
        return self.__dict__[self._place(index)]

    def __setitem__(self, index: int, module: Module) -> None:
        self.register_module(self._place(index), module)

    def __delitem__(self, index: int) -> None:
        """Remove a module; those behind it move up."""
        self._place(index)
        items = self._items()
        del items[index]
        self._replace(items)

    def _replace(self, items: Iterable[Module]) -> None:
        for name in self._names():
            delattr(self, name)
        for i, module in enumerate(items):
            self.register_module(str(i), module)

    def append(self, module: Module) -> Any:
        """Add a module at the end; returns the container."""
        n, names = len(self), set(self._names())
        while str(n) in names:
            n += 1
        self.register_module(str(n), _module(self, module))
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add modules at the end; returns the container."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Any:
        """Put a module before position `index`; returns the container."""
        items = self._items()
        items.insert(index, _module(self, module))
        self._replace(items)
        return self


def _module(owner: Module, value: Any) -> Module:
    if not isinstance(value, Module):
        raise DTypeError(
            f"{type(owner).__name__}: {value!r} is a {type(value).__name__}, not a Module"
        )
    return value


class Sequential(_Ordered):
    """Modules applied one after the other.

    Parameters
    ----------
    *modules : the modules, or one mapping from names to modules.

    Examples
    --------
    >>> from gpubackprop import nn
    >>> net = nn.Sequential(nn.Linear(784, 30), nn.Sigmoid(), nn.Linear(30, 10))
    >>> len(net), net[0].weight.shape
    (3, (30, 784))
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            named: Mapping[str, Any] = modules[0]
        else:
            named = {str(i): module for i, module in enumerate(modules)}
        for name, module in named.items():
            self.register_module(name, _module(self, module))

    def forward(self, input: Any) -> Any:
        """The result of the last module; the input itself if there is none."""
        values = self.__dict__
        for name, kind in self._registry.items():
            if kind == MODULE:
                input = values[name](input)
        return input


class ModuleList(_Ordered):
    """Modules in a list: registered, but called by whoever holds the list.

    Parameters
    ----------
    modules : any iterable of modules.
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.extend(modules)


class ModuleDict(Module):
    """Modules under names of their own: registered, but called by whoever holds the mapping.

    Parameters
    ----------
    modules : mapping from names to modules.
    """

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        self.update(modules or {})

    def update(self, modules: Mapping[str, Module]) -> None:
        """Add or replace modules by name."""
        for name, module in modules.items():
            self[name] = module

    def __setitem__(self, name: str, module: Module) -> None:
        self.register_module(name, _module(self, module))

    def __getitem__(self, name: str) -> Module:
        if name not in self:
            raise ConfigError(unknown("module", name, self.keys()))
        return self.__dict__[name]

    def __delitem__(self, name: str) -> None:
        self[name]
        delattr(self, name)

    def __contains__(self, name: object) -> bool:
        return self._registry.get(name) == MODULE  # type: ignore[call-overload]

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        """The names in order of registration."""
        return [name for name, _ in self._own(MODULE)]

    def values(self) -> list[Module]:
        """The modules in order of registration."""
        return [module for _, module in self._own(MODULE)]

    def items(self) -> list[tuple[str, Module]]:
        """(name, module) in order of registration."""
        return list(self._own(MODULE))
