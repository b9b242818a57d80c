"""Timing contenders in turns, each in its own process, so that the machine's drift cancels out of
their ratios.

A contender is a command that prints a line ``READY {json}`` once it is warm, and then for each line
``go SECONDS`` on its standard input runs for about that long and prints ``RATE``, its steps per
second.
Between its turns it is stopped (SIGSTOP): the idle threads of one library must not slow down
another.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h
_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # looked up here: little is safe after a fork


@dataclass
class Result:
    """Rates of one contender over all rounds."""

    name: str
    steps_per_second: float
    ratio: float
    lowest: float
    highest: float
    info: dict[str, Any]

    def row(self) -> str:
        """One line of the table."""
        note = "  ".join(f"{k}={v}" for k, v in self.info.items())
        return (
            f"{self.name:<26}{self.steps_per_second:>12.1f}{1e6 / self.steps_per_second:>12.1f}"
            f"{self.ratio:>8.2f}  [{self.lowest:.2f} .. {self.highest:.2f}]  {note}"
        )


HEADER = f"{'contender':<26}{'steps/s':>12}{'us/step':>12}{'ratio':>8}  [lowest .. highest]"


def run(
    module: str,
    workload: str,
    contenders: Sequence[str],
    rounds: int,
    seconds: float,
    environment: dict[str, str] | None = None,
    patience: float = 3600.0,
    together: bool = False,
) -> tuple[list[Result], dict[str, str]]:
    """Time contenders in turns.

    Parameters
    ----------
    module : module to run as ``python -m MODULE --worker CONTENDER WORKLOAD``.
    contenders : the first is the one that ratios refer to.
    rounds : turns of each contender.
    seconds : length of a turn.
    environment : of the processes; None for this one's.
    patience : seconds after which a contender that is not ready is given up.
    together : let them get ready at once, not one after the other.

    Returns
    -------
    results, absent : a result per contender that ran, and why the others did not.
    """
    workers: dict[str, Worker] = {}
    infos: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    try:

        def begin(name: str) -> Worker:
            command = [sys.executable, "-m", module, "--worker", name, workload]
            return Worker(command, environment, patience)

        if together:
            workers.update((name, begin(name)) for name in contenders)
        for name in contenders:
            worker = workers[name] = workers[name] if together else begin(name)
            line = worker.hear("READY")
            if not line:
                del workers[name]
                absent[name] = worker.ended()
                continue
            infos[name] = json.loads(line)
            worker.pause()
        rates = take_turns(workers, rounds, seconds, absent)
        for name in rates:
            infos[name] |= peak_memory(workers[name].process.pid)
    finally:
        for worker in workers.values():
            worker.stop()
    base = next(iter(rates), None) if not contenders or contenders[0] in absent else contenders[0]
    results = []
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates.get(base, found), strict=True)]
        results.append(
            Result(
                name,
                statistics.median(found),
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                infos[name],
            )
        )
    return results, absent


class Worker:
    """A contender's process.

    Parameters
    ----------
    command : what it runs.
    environment : None for this process's.
    patience : seconds after which it is ended where it does not answer.
    """

    def __init__(
        self, command: Sequence[str], environment: dict[str, str] | None, patience: float
    ) -> None:
        self.patience = patience
        self._late = False
        self._errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            start_new_session=True,
            env=environment,
            preexec_fn=die_with_parent,
        )

    def tell(self, line: str) -> None:
        """Send it a line; one that has ended does not hear it."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")

    def hear(self, *words: str) -> str:
        """The rest of the next line that begins with one of these words; empty if it ended, or
        took too long and was ended."""
        assert self.process.stdout is not None
        timer = threading.Timer(self.patience, self._time_out)
        timer.start()
        try:
            line = self.process.stdout.readline()
            while line and not line.startswith(words):
                line = self.process.stdout.readline()
        finally:
            timer.cancel()
        word = next((w for w in words if line.startswith(w)), "")
        return line[len(word) :].strip()

    def _time_out(self) -> None:
        self._late = True
        stop(self.process)

    def pause(self) -> None:
        """Stop it until :meth:`go_on`."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        stop(self.process)
        self._errors.close()

    def ended(self) -> str:
        """Why it ended."""
        why = ended(self.process, self._errors)
        self._errors.close()
        return f"timed out: not ready within {self.patience:.3g} s" if self._late else why


def die_with_parent() -> None:
    """Let this process be killed when the one that started it ends, however that ends: a search for
    kernels that nobody waits for any more would slow down whatever is timed next. Linux only."""
    if _prctl is not None:
        _prctl(_DEATH_SIGNAL, signal.SIGKILL)


def take_turns(
    workers: dict[str, Worker], rounds: int, seconds: float, absent: dict[str, str]
) -> dict[str, list[float]]:
    """Rates of each worker in each round; all are paused before and after. One that ends goes to
    `absent`, with the reason."""
    rates: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name in list(rates):
            worker = workers[name]
            worker.go_on()
            time.sleep(0.05)
            worker.tell(f"go {seconds}")
            said = worker.hear("RATE")
            if not said:
                del rates[name]
                absent[name] = workers.pop(name).ended()
                continue
            rates[name].append(float(said))
            worker.pause()
    return rates


def ended(process: subprocess.Popen[str], errors: Any) -> str:
    """Why a process ended before it was ready: the last line of what it wrote to `errors`."""
    if process.wait() == -signal.SIGKILL:
        return "killed: out of memory, or by somebody else"
    errors.seek(0)
    lines = errors.read().strip().splitlines()
    return lines[-1] if lines else f"ended without a word, status {process.returncode}"


def stop(process: subprocess.Popen[str]) -> None:
    """End a process and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def peak_memory(process: int | str = "self") -> dict[str, int]:
    """``peak_mb``, the most memory that a process ever held in RAM (VmHWM); empty where the system
    does not tell."""
    try:
        with open(f"/proc/{process}/status") as file:
            found = [line.split()[1] for line in file if line.startswith("VmHWM")]
    except OSError:
        return {}
    return {"peak_mb": round(int(found[0]) / 1024)} if found else {}


def show(title: str, results: Sequence[Result], absent: dict[str, str]) -> None:
    """Print the table of a workload."""
    print(f"\n{title}\n{HEADER}")
    for result in results:
        print(result.row())
    for name, reason in absent.items():
        print(f"{name:<26}absent: {reason}")


def serve(
    step: Callable[[], Any],
    info: dict[str, Any],
    steps_per_call: int = 1,
    sync: Callable[[], Any] = lambda: None,
    measure: Callable[[Callable[[], Any], int], float] | None = None,
) -> None:
    """The contender's side: warm up, say so, then run when told; `sync` waits for steps that run
    behind the interpreter's back, `measure` gives the seconds of so many steps by another clock
    than the host's."""
    for _ in range(3):
        step()
    sync()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < 0.3:
        step()
        sync()
        calls += 1
    rate = calls / (time.perf_counter() - start)

    def timed(call: Callable[[], Any], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        sync()
        return time.perf_counter() - start

    print("READY" + json.dumps(info), flush=True)
    for line in sys.stdin:
        wanted = max(1, round(rate * float(line.split()[1])))
        step()
        sync()
        rate = wanted / (measure or timed)(step, wanted)
        print(f"RATE {rate * steps_per_call}", flush=True)


def command(
    argv: Sequence[str] | None,
    doc: str,
    module: str,
    contenders: Sequence[str],
    cases: Sequence[tuple[str, str, str]],
    step: Callable[[str, str, str], Callable[[], Any]],
    seconds: float = 0.2,
) -> int:
    """The command of a benchmark of single calls: tables of a contender's calls a second.

    Parameters
    ----------
    argv, doc, module : arguments, the module's docstring and its name.
    contenders : the first is the one that ratios refer to.
    cases : (workload, what is done with it, title of the table).
    step : ``step(contender, workload, what)`` gives the call to time.
    seconds : length of a turn unless the option says otherwise.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=list(dict.fromkeys(key for key, _, _ in cases)))
    parser.add_argument("--direction", choices=list(dict.fromkeys(what for _, what, _ in cases)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=seconds)
    options = parser.parse_args(argv)
    if options.worker:
        contender, case = options.worker
        serve(step(contender, *case.split(" ")), {})
        return 0
    for key, what, title in cases:
        if options.only in (None, key) and options.direction in (None, what):
            found = run(module, f"{key} {what}", contenders, options.rounds, options.seconds)
            show(title, *found)
    return 0


def networks(
    argv: Sequence[str] | None,
    doc: str,
    module: str,
    contenders: Sequence[str],
    workloads: Sequence[str],
    worker: Callable[[str, str], None],
    title: Callable[[str], str],
    rounds: int = 7,
) -> int:
    """The command of a benchmark of training steps: tables of steps a second, and a JSON file.

    Parameters
    ----------
    argv, doc, module, contenders : as for :func:`command`.
    workloads : their names, which ``--only`` chooses among.
    worker : ``worker(contender, workload)`` serves one contender.
    title : ``title(workload)`` heads its table; called before anything is timed.
    rounds : turns of each contender unless the option says otherwise.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument(
        "--worker", nargs=2, metavar=("CONTENDER", "WORKLOAD"), help=argparse.SUPPRESS
    )
    parser.add_argument("--only", default=",".join(workloads))
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(argv)
    if options.worker:
        worker(*options.worker)
        return 0
    report: dict[str, Any] = {"machine": machine(), "workloads": {}}
    print(json.dumps(report["machine"]))
    for workload in options.only.split(","):
        head = title(workload)
        results, absent = run(module, workload, contenders, options.rounds, options.seconds)
        show(f"{head}; ratio of steps per second to {contenders[0]}", results, absent)
        report["workloads"][workload] = as_json(results)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=2)
    return 0


def machine() -> dict[str, Any]:
    """Processor, cores and versions, for the head of a result."""
    import importlib.metadata as metadata
    import platform

    model = platform.processor()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(
                (x.split(":", 1)[1].strip() for x in file if x.startswith("model name")), model
            )
    except OSError:
        pass
    versions = {}
    packages = ("numpy", "numba", "torch", "scikit-learn", "jax", "tinygrad", "cupy-cuda13x")
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """Results by contender, for a file."""
    return {r.name: {k: v for k, v in asdict(r).items() if k != "name"} for r in results}
