"""Which of two ways makes a call on given shapes: measured once, kept on disk.

A table belongs to one product (the GPU's name) and one set of library versions: others may be fast
at other things. Its file is JSON in ``choices`` of the cache folder; ``gpubackprop devices
--choices`` prints it, and deleting it makes the next run measure anew.

What was chosen decides which bits come out, as another library version would. So runs that shall
give the same bits read the same table, or force one side.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import statistics
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from gpubackprop.backends.caches import cache_folder
from gpubackprop.backends.timing import Clock
from gpubackprop.errors import ConfigError
from gpubackprop.suggest import unknown
from gpubackprop.version import __version__

Mode = Literal["auto", "always", "never"]
FORMAT = 1
WARM_UP, ROUNDS = 2, 7
SPAN = 1e-3  # seconds that a round shall last at least, where MOST_CALLS are enough for it
MOST_CALLS = 20
GAIN = 0.95
"""The first candidate stays unless another takes less than this share of its time, so that noise
does not decide."""

Candidates = Mapping[str, Callable[[], Any]]


def mode_of(what: str, given: str | None) -> Mode:
    """The mode of a choice from an argument, else from ``GPUBACKPROP_<what>``, else ``"auto"``.

    Raises
    ------
    ConfigError
        It is none of the modes.
    """
    variable = f"GPUBACKPROP_{what.upper()}"
    name = given or os.environ.get(variable) or "auto"
    if name not in get_args(Mode):
        source = "" if given else f" (from {variable})"
        raise ConfigError(f"{what}{source}: {unknown('mode', name, get_args(Mode))}")
    return name  # type: ignore[return-value]


class Choice(NamedTuple):
    """What runs a kernel on given shapes.

    Attributes
    ----------
    use : name of the implementation.
    seconds : the median time of each that was measured; empty where there was no choice.
    reason : why, in a few words.
    """

    use: str
    seconds: dict[str, float]
    reason: str


class Table(NamedTuple):
    """A table as it lies on the disk."""

    path: Path
    device: str
    versions: dict[str, str]
    choices: dict[str, Choice]


class Choices:
    """The table of one device.

    Parameters
    ----------
    device : the product's name.
    versions : of every library that has a part in the times.
    folder : where tables are kept; ``choices`` of the cache folder by default.
    """

    def __init__(
        self, device: str, versions: Mapping[str, str], folder: Path | None = None
    ) -> None:
        self.device, self.versions = device, dict(versions)
        self.path = (folder or tables_folder()) / _file_name(device, self.versions)
        self._found: dict[str, Choice] | None = None
        self._lock = threading.RLock()
        self._may_warn = True

    def known(self, call: str) -> Choice | None:
        """What was chosen for a call, in this process or an earlier one."""
        with self._lock:
            if self._found is None:
                self._found = self._read()
            return self._found.get(call)

    def keep(self, call: str, choice: Choice) -> Choice:
        """Remember a choice, here and on the disk."""
        with self._lock:
            self.known(call)
            found = self._found or {}
            found[call] = choice
            try:
                # What other processes have measured meanwhile stays.
                found = self._found = {**self._read(), **found}
                _write(self.path, self.device, self.versions, found)
            except OSError as error:
                self._warn(f"cannot be written ({error}); every process measures anew")
        return choice

    def measure(
        self,
        call: str,
        candidates: Candidates,
        clock: Clock,
        lacks_memory: Callable[[BaseException], bool],
        gain: float = GAIN,
        runs: int = 1,
    ) -> Choice:
        """Time the candidates in turns, and keep the faster one.

        Parameters
        ----------
        call : what the choice is kept by.
        candidates : implementations by name, the one first that stays where none is clearly
            faster. Each runs the call; its result is thrown away.
        clock : of the device.
        lacks_memory : whether an error says that there is no room. Such a candidate loses, and the
            choice is then good for this process only.
        gain : the share of the first candidate's time that another must stay below.
        runs : how often a candidate makes the call when it is called.

        Raises
        ------
        MemoryError
            No candidate has room.
        """
        with self._lock:
            known = self.known(call)
            if known is not None:
                return known
            found, shortage = _times(candidates, clock, lacks_memory, runs)
            first = next(iter(candidates))
            best = min(found, key=found.__getitem__)
            if math.isinf(found[best]):
                assert shortage is not None
                raise shortage
            use = best if found[best] < gain * found[first] else first
            if shortage is None:
                return self.keep(call, Choice(use, found, "measured"))
            choice = Choice(use, {}, "the others have no room")
            assert self._found is not None
            self._found[call] = choice
            return choice

    def _read(self) -> dict[str, Choice]:
        """The choices on the disk; none where the file is damaged or is not this table's."""
        try:
            table = read(self.path)
            if (table.device, table.versions) != (self.device, self.versions):
                raise ValueError(f"it is a table of {table.device} with {table.versions}")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            self._warn(f"cannot be used ({error}); its shapes are measured anew")
            return {}
        return table.choices

    def _warn(self, what: str) -> None:
        if self._may_warn:
            self._may_warn = False
            warnings.warn(f"the table of kernels {self.path} {what}", RuntimeWarning, stacklevel=2)


def of_device(
    cupy: Any, index: int, versions: Mapping[str, str], folder: Path | None = None
) -> Choices:
    """The table of a GPU.

    Parameters
    ----------
    cupy : the module.
    index : number of the GPU.
    versions : of libraries, beside those of this package, CuPy and the driver.
    folder : where tables are kept.
    """
    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(index)["name"].decode(errors="replace")
    common = {
        "gpubackprop": __version__,
        "cupy": str(cupy.__version__),
        "driver": str(runtime.driverGetVersion()),
    }
    return Choices(name, {**common, **versions}, folder)


def tables_folder() -> Path:
    """Where tables are kept."""
    return cache_folder() / "choices"


def saved(folder: Path | None = None) -> list[Table]:
    """The tables on this machine, without those that cannot be read."""
    found = []
    for path in sorted((folder or tables_folder()).glob("*.json")):
        try:
            found.append(read(path))
        except (OSError, ValueError):
            continue
    return found


def read(path: Path) -> Table:
    """A table from its file.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no table of this format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r} instead of {FORMAT}")
        versions = {str(k): str(v) for k, v in content["versions"].items()}
        choices = {str(call): _choice(entry) for call, entry in content["choices"].items()}
        return Table(path, str(content["device"]), versions, choices)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _choice(entry: Any) -> Choice:
    times = {str(k): float(v) * 1e-6 for k, v in entry["microseconds"].items()}
    if not all(math.isfinite(t) and t >= 0 for t in times.values()):
        raise ValueError("a time that is none")
    if not isinstance(entry["use"], str) or not isinstance(entry["why"], str):
        raise ValueError("a choice without a name")
    return Choice(entry["use"], times, entry["why"])


def _write(
    path: Path, device: str, versions: Mapping[str, str], choices: Mapping[str, Choice]
) -> None:
    """Write a table whole or not at all: a reader never meets half of one."""
    entries = {
        call: {
            "use": c.use,
            "microseconds": {k: round(v * 1e6, 3) for k, v in c.seconds.items()},
            "why": c.reason,
        }
        for call, c in sorted(choices.items())
    }
    content = {
        "format": FORMAT,
        "device": device,
        "versions": dict(sorted(versions.items())),
        "choices": entries,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=path.stem, suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _file_name(device: str, versions: Mapping[str, str]) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "device"
    digest = hashlib.sha256(json.dumps([device, sorted(versions.items())]).encode()).hexdigest()
    return f"{slug}-{digest[:12]}.json"


def _times(
    candidates: Candidates, clock: Clock, lacks_memory: Callable[[BaseException], bool], runs: int
) -> tuple[dict[str, float], BaseException | None]:
    """Median seconds of a call of each candidate (infinity where there is no room), and the last
    error that said that there is none."""
    shortage: BaseException | None = None
    calls: dict[str, int] = {}
    rounds: dict[str, list[float]] = {}
    for name, call in candidates.items():
        try:
            # Compiles, loads and fills the memory pool; the second run says how long a call takes.
            for _ in range(WARM_UP):
                once = clock.seconds(call)
        except Exception as error:
            if not lacks_memory(error):
                raise
            shortage = error
            continue
        calls[name] = min(max(math.ceil(SPAN / max(once, 1e-9)), 1), MOST_CALLS)
        rounds[name] = []
    for _ in range(ROUNDS):
        for name, found in rounds.items():  # in turns: clocks and neighbours change slowly
            found.append(clock.seconds(candidates[name], calls[name]) / calls[name])
    medians = {n: statistics.median(found) / runs for n, found in rounds.items()}
    return {n: medians.get(n, math.inf) for n in candidates}, shortage
