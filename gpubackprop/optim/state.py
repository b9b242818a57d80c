"""Saving and loading the state of an optimizer.

The form is PyTorch's: ``{"optimizer": name, "param_groups": [...], "state": {...}}``. Groups hold
their options and, under ``"params"``, the numbers of their parameters, counted over all groups.
``state[number]`` holds ``"step"`` and one array per buffer, in the parameter's shape; parameters
that were never updated have none. Everything but the arrays is plain JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gpubackprop.errors import CheckpointError, ConfigError
from gpubackprop.nn.arena import Section
from gpubackprop.nn.state import checked_array, compare_keys, describe
from gpubackprop.optim.ranges import NON_NEGATIVE

if TYPE_CHECKING:
    from gpubackprop.optim.optimizer import Group, Optimizer

OPTIONAL = ("names", "initial_lr")


def _places(optimizer: Optimizer) -> Iterator[tuple[int, Group, Section, int, int]]:
    """(number, group, section, place in it, number of the section) of each parameter."""
    sections = optimizer.arena.sections
    number = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            section, i = optimizer.arena.places[id(p)]
            yield number, group, section, i, sections.index(section)
            number += 1


def save(optimizer: Optimizer) -> dict[str, Any]:
    """See :meth:`gpubackprop.optim.Optimizer.state_dict`."""
    optimizer.arena.gather()
    state: dict[int, dict[str, Any]] = {}
    taken = [counts.read() for counts in optimizer._taken or ()]
    for number, group, section, i, at in _places(optimizer):
        step = (taken or optimizer._steps)[at][i]
        if step:
            state[number] = {"step": step}
            for name in filter(None, optimizer.slots(group)):
                view = section.view(optimizer._slot(section, name), i)
                state[number][name] = np.array(section.backend.to_numpy(view))
    groups, first = [], 0
    for group in optimizer.param_groups:
        n = len(group["params"])
        groups.append({**group, "params": list(range(first, first + n))})
        first += n
    return {"optimizer": type(optimizer).__name__, "param_groups": groups, "state": state}


def snapshot(optimizer: Optimizer) -> Callable[[], None]:
    """Keep parameters, gradients, state and counts as they are now; every state buffer that the
    options ask for is made first.

    Returns
    -------
    Callable
        Puts it all back; it may be called more than once.
    """
    optimizer.arena.gather()
    for group, bounds in zip(optimizer.param_groups, optimizer._bounds, strict=True):
        for section, (first, last) in zip(optimizer.arena.sections, bounds, strict=True):
            for name in filter(None, optimizer.slots(group)) if first < last else ():
                optimizer._slot(section, name)
    kept = [
        (section.backend, buffer, section.backend.copy(buffer))
        for section in optimizer.arena.sections
        for buffer in (section.values, section.grads, *section.slots.values())
    ]
    steps = [list(counts) for counts in optimizer._steps]
    taken = [counts.snapshot() for counts in optimizer._taken or ()]

    def restore() -> None:
        for put_back in taken:
            put_back()
        for backend, buffer, copy in kept:
            backend.copyto(buffer, copy)
        for t in optimizer.arena.parameters:
            t.mark_changed()
        for counts, before in zip(optimizer._steps, steps, strict=True):
            counts[:] = before

    return restore


def load(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """See :meth:`gpubackprop.optim.Optimizer.load_state_dict`."""
    name = type(optimizer).__name__
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{name}: the state is a {type(state).__name__}, not a dictionary")
    faults = describe(compare_keys(("optimizer", "param_groups", "state"), state))
    if not faults and state["optimizer"] != name:
        faults = [f"it is of the optimizer {state['optimizer']!r}"]
    if not faults:
        faults = _group_faults(optimizer, state["param_groups"])
    if not faults:
        groups = [
            {**saved, "params": group["params"]}
            for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True)
        ]
        arrays, steps, faults = _read_buffers(optimizer, groups, state["state"])
    if faults:
        raise CheckpointError(f"{name}: the saved state does not fit: {'; '.join(faults)}")

    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.pop("initial_lr", None)
        for key, value in saved.items():
            if key != "names":
                was_tuple = isinstance(optimizer.defaults.get(key), tuple)
                group[key] = tuple(value) if was_tuple else value
    optimizer.arena.gather()
    for section in optimizer.arena.sections:
        section.slots.clear()
    for number, _, section, i, at in _places(optimizer):
        optimizer._steps[at][i] = steps.get(number, 0)
        for slot, array in arrays.get(number, {}).items():
            view = section.view(optimizer._slot(section, slot), i)
            section.backend.copyto(view, section.backend.asarray(array))
    for counts, numbers in zip(optimizer._taken or (), optimizer._steps, strict=False):
        counts.write(numbers)


def _group_faults(optimizer: Optimizer, saved: Any) -> list[str]:
    """What is wrong with the saved groups."""
    present = optimizer.param_groups
    if not isinstance(saved, (list, tuple)) or not all(isinstance(g, Mapping) for g in saved):
        return ["param_groups is not a list of dictionaries"]
    if len(saved) != len(present):
        return [f"it has {len(saved)} parameter group(s), the optimizer {len(present)}"]
    faults = []
    for i, (group, given) in enumerate(zip(present, saved, strict=True)):
        keys = [k for k in given if k not in OPTIONAL]
        words = describe(compare_keys((*optimizer.defaults, "params"), keys))
        if not words:
            numbers = given["params"]
            if not isinstance(numbers, (list, tuple)) or len(numbers) != len(group["params"]):
                n = len(numbers) if isinstance(numbers, (list, tuple)) else numbers
                words = [f"{n} parameters, the optimizer has {len(group['params'])}"]
            elif not NON_NEGATIVE.holds(given.get("initial_lr", 0.0)):
                words = [f"initial_lr must be {NON_NEGATIVE}, not {given['initial_lr']!r}"]
            elif group.get("names") and given.get("names") and group["names"] != given["names"]:
                words = [f"parameters named {given['names']}, the optimizer's {group['names']}"]
            else:
                try:
                    optimizer._check_options({**given, "params": group["params"]})
                except ConfigError as error:
                    words = [str(error)]
        faults += [f"group {i}: {w}" for w in words]
    return faults


Buffers = dict[int, dict[str, np.ndarray]]


def _read_buffers(
    optimizer: Optimizer, groups: list[Group], state: Any
) -> tuple[Buffers, dict[int, int], list[str]]:
    """Arrays and step counts by parameter number, and what is wrong with them."""
    arrays: Buffers = {}
    steps: dict[int, int] = {}
    if not isinstance(state, Mapping):
        return arrays, steps, ["state is not a dictionary"]
    by_text = {str(key): value for key, value in state.items()}  # JSON makes strings of numbers
    numbered = [(group, p) for group in groups for p in group["params"]]
    faults = [
        f"state of parameter {key}, of which there are {len(numbered)}"
        for key in by_text
        if key not in map(str, range(len(numbered)))
    ]
    for number, (group, p) in enumerate(numbered):
        entry = by_text.get(str(number))
        if entry is None:
            continue
        names = [s for s in optimizer.slots(group) if s is not None]
        if not isinstance(entry, Mapping):
            faults.append(f"parameter {number}: not a dictionary")
            continue
        words = describe(compare_keys(("step", *names), entry))
        if words:
            faults += [f"parameter {number}: {w}" for w in words]
            continue
        try:
            steps[number] = _count(entry["step"])
        except ValueError:
            faults.append(f"parameter {number}: step {entry['step']!r} is not a positive integer")
        arrays[number] = {}
        for name in names:
            array, reason = checked_array(entry[name], p)
            if array is None:
                faults.append(f"parameter {number}: {name} {reason}")
            else:
                arrays[number][name] = array
    return arrays, steps, faults


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError
    return int(value)
