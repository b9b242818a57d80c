"""All that ``gpubackprop bench`` measures, as one report."""

from __future__ import annotations

import gc
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import recipes
from gpubackprop.backends import Backend, detect, get_backend
from gpubackprop.bench import agreement, determinism, networks
from gpubackprop.bench.kernels import CASES, Sizes, quick_sizes
from gpubackprop.bench.measure import AbsentError, Candidate, Timing, interleaved, reason
from gpubackprop.bench.peers import MODULES, Peer
from gpubackprop.bench.peers import load as load_peer
from gpubackprop.bench.replayed import native, replayed
from gpubackprop.errors import DeviceError
from gpubackprop.version import __version__

PARTS = ("recipes", "kernels", "determinism")
ALWAYS = ("copy", "gemm-float32", "gemm-tf32", "gemm-bf16")
"""Kernels that are the ceilings of others, measured whichever kernel is asked for."""

ALONE = " NumPy"
"""Where a compiled step runs native kernels, those are the device's; the backend's own, which a
step that is not compiled calls one by one, have this in their label."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes
    ----------
    devices : names of devices.
    peers : other libraries, keys of ``peers.MODULES``.
    only : parts, recipes or kernels; empty for recipes and kernels.
    rounds, seconds : turns of each contender, and how long one is.
    nbytes : bytes that a kernel limited by memory moves; None for what takes about 10 ms.
    limit : bytes that arrays on a GPU may take; None for no limit.
    """

    devices: Sequence[str]
    peers: Sequence[str] = ()
    only: Sequence[str] = ()
    rounds: int = 5
    seconds: float = 0.1
    nbytes: int | None = None
    limit: int | None = None


@dataclass
class Place:
    """A device and who runs there beside this project, by labels such as ``torch cpu``."""

    backend: Backend
    peers: dict[str, Peer] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def names() -> list[str]:
    """Everything that ``only`` may name."""
    return [*PARTS, *CASES, *recipes.names()]


def report(
    options: Options,
    say: Say = lambda text: None,
    keep: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Measure.

    Parameters
    ----------
    options : what.
    say : is told, in a line each, what goes on and what is absent.
    keep : is given the report as far as it is after each measurement: a run that is ended early
        leaves what it had.

    Returns
    -------
    dict
        JSON's types: ``machine``, ``options``, ``contenders`` (in words), ``absent`` (devices and
        libraries, with the reason), ``ceilings`` (the best rate that anybody reached, by device),
        and by part: ``recipes`` and ``kernels`` by name and contender, ``determinism`` by device.

    Raises
    ------
    DeviceError
        None of the devices can be used; the error says why of each.
    """
    places, absent = _places(options, say)
    found: dict[str, Any] = {
        "machine": machine(),
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()},
        "contenders": {k: v for place in places.values() for k, v in _who(place).items()},
        "absent": absent,
    }
    parts = _parts(options.only)
    if kernels := parts["kernels"]:
        found["ceilings"], found["kernels"], found["sizes"] = {}, {}, {}
        for device, place in places.items():
            _kernels(device, place, kernels, options, found, say, keep)
    if parts["recipes"]:
        found["recipes"] = {}
        for name in parts["recipes"]:
            found["recipes"][name] = _recipe(name, places, options, say)
            keep(found)
    if "determinism" in options.only:
        found["determinism"] = {}
        for device, place in places.items():
            say(f"determinism on {device}")
            found["determinism"][device] = {
                "kernels": determinism.kernels(place.backend, options.rounds, options.seconds),
                "recipes": {n: determinism.recipe(n, place.backend) for n in recipes.names()},
            }
            keep(found)
    return found


def machine() -> dict[str, Any]:
    """Processor, GPUs and versions, for the head of a result."""
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpus": [str(info) for info in detect.devices()],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gpubackprop": __version__,
    }


def _who(place: Place) -> dict[str, str]:
    """Each contender of a device in words."""
    backend = place.backend
    found = {backend.device: "this project, in a compiled step"}
    if native(backend):
        found[backend.device] += ", with native kernels"
        found[f"{backend.device}{ALONE}"] = "this project's kernels called one by one"
    for label, peer in place.peers.items():
        found[label] = f"{peer.title} {peer.version}"
    return found


def processor() -> str:
    """What the processor calls itself, where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*: (.+)$", text, re.M)
    return found[1] if found else platform.processor() or platform.machine()


def _parts(only: Sequence[str]) -> dict[str, list[str]]:
    """Which recipes and which kernels to measure."""
    every = {"recipes": recipes.names(), "kernels": list(CASES)}
    if not only:
        return every
    chosen = {part: list(all_) if part in only else [] for part, all_ in every.items()}
    for part, all_ in every.items():
        chosen[part] = chosen[part] or [name for name in all_ if name in only]
    if chosen["kernels"]:  # the ceilings first: the others are seen against them
        chosen["kernels"] = [*ALWAYS, *(n for n in chosen["kernels"] if n not in ALWAYS)]
    return chosen


def _places(options: Options, say: Say) -> tuple[dict[str, Place], dict[str, str]]:
    """The devices that can be used, with the libraries that can use them, and the others."""
    places: dict[str, Place] = {}
    absent: dict[str, str] = {}
    for name in options.devices:
        try:
            backend = get_backend(name)
            if options.limit is not None and backend.device != "cpu":
                backend.limit_memory(options.limit)
            places[backend.device] = Place(backend)
        except DeviceError as error:
            absent[name] = str(error)
            say(f"{name} is left out: {error}")
    if not places:
        raise DeviceError("; ".join(absent.values()))
    for device, place in places.items():
        for library in options.peers:
            label = f"{library} {device}"
            try:
                place.peers[label] = load_peer(library, device)
            except Exception as error:  # noqa: BLE001 - a library that fails to start is absent
                place.absent[label] = absent[label] = reason(error)
                say(f"{label} is left out: {absent[label]}")
    return places, absent


def _kernels(
    device: str,
    place: Place,
    wanted: Sequence[str],
    options: Options,
    found: dict[str, Any],
    say: Say,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    sizes = quick_sizes(place.backend)
    if options.nbytes is not None:
        sizes = sizes.with_bytes(options.nbytes)
    found["sizes"][device] = asdict(sizes)
    ceilings = found["ceilings"][device] = {}
    for name in wanted:
        say(f"{name} on {device}")
        timed, missing = _one_kernel(name, device, place, sizes, options)
        gc.collect()
        case, rows = CASES[name], found["kernels"].setdefault(name, {})
        nbytes, flops = case.worth(sizes)
        if name in ALWAYS and timed:
            ceilings[name] = max((nbytes or flops) / t.lowest for t in timed.values())
        for label, t in timed.items():
            rate = (nbytes or flops) / t.seconds
            ceiling = ceilings.get(case.ceiling)
            rows[label] = {
                **t.as_dict(),
                "bytes_per_s" if nbytes else "flops_per_s": rate,
                "of_ceiling": rate / ceiling if ceiling else None,
                "ceiling": case.ceiling,
            }
        rows.update({label: {"absent": why} for label, why in missing.items()})
        keep(found)


def _one_kernel(
    name: str, device: str, place: Place, sizes: Sizes, options: Options
) -> tuple[dict[str, Timing], dict[str, str]]:
    backend = place.backend

    def plain() -> Candidate:
        return Candidate(CASES[name].work(backend, sizes).call, backend.clock())

    def in_a_step() -> Candidate:
        made = plain()
        return Candidate(replayed(made.call, backend), made.clock)

    makers: dict[str, Callable[[], Candidate]] = {device: plain}
    if native(backend):
        makers = {device: in_a_step, f"{device}{ALONE}": plain}
    for label, peer in place.peers.items():
        makers[label] = lambda peer=peer: Candidate(  # type: ignore[misc]
            peer.work(name, sizes), peer.clock
        )
    return _timed(makers, options, place)


def _timed(
    makers: dict[str, Callable[[], Candidate]], options: Options, place: Place
) -> tuple[dict[str, Timing], dict[str, str]]:
    candidates: dict[str, Candidate] = {}
    absent: dict[str, str] = {}
    for label, make in makers.items():
        try:
            candidates[label] = make()
        except Exception as error:  # noqa: BLE001 - the others go on
            absent[label] = reason(error)
    timings, gone = interleaved(candidates, options.rounds, options.seconds)
    candidates.clear()
    for peer in place.peers.values():
        peer.release()
    return timings, absent | gone


def _recipe(name: str, places: dict[str, Place], options: Options, say: Say) -> dict[str, Any]:
    """One recipe on every device, all in turns."""
    try:
        made = networks.make(name)
    except AbsentError as error:
        return {"absent": str(error)}
    rows: dict[str, Any] = {}
    candidates: dict[str, Candidate] = {}
    say(f"{name}: {made.samples} samples a step")
    wanted = agreement.reference(made)

    def add(label: str, begin: Callable[[], tuple[dict[str, Any], Candidate]]) -> None:
        try:
            rows[label], candidates[label] = begin()
        except Exception as error:  # noqa: BLE001 - the other contenders go on
            rows[label] = {"absent": reason(error)}

    for device, place in places.items():
        add(device, partial(_ours, made, wanted, place.backend))
        for label, peer in place.peers.items():
            add(label, partial(_theirs, made, wanted, peer))
    timings, absent = interleaved(candidates, options.rounds, options.seconds)
    for label, t in timings.items():
        rows[label] |= t.as_dict()
        rows[label] |= {"steps_per_s": 1 / t.seconds, "samples_per_s": made.samples / t.seconds}
    rows |= {label: {"absent": why} for label, why in absent.items()}
    candidates.clear()
    gc.collect()
    for place in places.values():
        for peer in place.peers.values():
            peer.release()
    return {"samples": made.samples, "contenders": rows}


def _ours(
    made: networks.Made, wanted: agreement.Reference, backend: Backend
) -> tuple[dict[str, Any], Candidate]:
    error = agreement.check(wanted, lambda: agreement.ours(wanted.made, backend))
    row = {"gradient_error": error, "memory": networks.memory(made, backend)}
    return row, Candidate(networks.step(made, backend), backend.clock())


def _theirs(
    made: networks.Made, wanted: agreement.Reference, peer: Peer
) -> tuple[dict[str, Any], Candidate]:
    error = agreement.check(wanted, peer.twin(wanted.made, wanted.weights).gradients)
    gc.collect()  # the twin that was compared is no part of the memory
    run = peer.twin(made, wanted.weights).step
    run()
    row = {"gradient_error": error, "memory": {"peak": peer.peak(run)}}
    return row, Candidate(run, peer.clock)


def known_peers() -> list[str]:
    """Libraries that ``peers`` may name."""
    return list(MODULES)
