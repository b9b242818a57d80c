"""Settling, for each call's shapes and policy, whether cuDNN or the plain kernel runs."""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from gpubackprop.backends import detect
from gpubackprop.backends.cuda.choices import Choice, Choices, Mode, of_device
from gpubackprop.backends.cuda.cudnn import (
    Library,
    Plan,
    Policy,
    UnsupportedError,
    describe,
)
from gpubackprop.backends.cuda.cudnn_graphs import Operation
from gpubackprop.backends.cuda.graphs import capturing
from gpubackprop.backends.timing import Clock
from gpubackprop.errors import DeviceError

PLAIN, CUDNN = "plain", "cudnn"
MOST_CALLS = 512
"""Calls of a kernel that are settled in a process. Where every call has another shape, plans and
measurements cost more than they give."""


class Chooser:
    """Plans of cuDNN for the calls that it shall run.

    Parameters
    ----------
    cupy : the CuPy module.
    index : number of the GPU.
    mode : ``"auto"`` measures both sides of each call once and keeps the faster; ``"always"`` takes
        cuDNN wherever it has an engine; ``"never"`` does not load it.
    clock : of the device.
    lacks_memory : whether an error says that the device has no room.
    folder : where the tables of choices are kept.

    Raises
    ------
    DeviceError
        The mode is ``"always"`` and cuDNN cannot be used: the cause, and what mends it.
    """

    def __init__(
        self,
        cupy: Any,
        index: int,
        mode: Mode,
        clock: Callable[[], Clock],
        lacks_memory: Callable[[BaseException], bool],
        folder: Path | None = None,
    ) -> None:
        self.mode = mode
        self._cupy, self._index, self._folder = cupy, index, folder
        self._clock, self._lacks_memory = clock, lacks_memory
        self._settled: dict[Hashable, Plan | None] = {}
        self._settled_of: dict[str, int] = {}
        self._lock = threading.RLock()
        self._library: Library | None = None
        self._choices: Choices | None = None
        self._looked = mode == "never"
        if mode == "always" and (problem := detect.cudnn_problem()):
            raise DeviceError(
                f"cudnn='always' on cuda:{index}: {problem.cause}; {problem.mend}, or leave the "
                "choice to cudnn='auto'"
            )

    @property
    def active(self) -> bool:
        """Whether there is a cuDNN to choose."""
        if not self._looked:
            with self._lock:
                self._look()
        return self._library is not None

    @property
    def library(self) -> Library:
        """cuDNN, where there is one."""
        assert self._library is not None
        return self._library

    def plan(
        self,
        kernel: str,
        key: Hashable,
        policy: Policy,
        operation: Callable[[], Operation],
        with_cudnn: Callable[[Plan], Any],
        plain: Callable[[], Any],
    ) -> Plan | None:
        """The plan that runs a call; None where the plain kernel does.

        Parameters
        ----------
        kernel : its name.
        key : everything that `operation` depends on; made for every call.
        policy : which engines may be taken.
        operation : what cuDNN is asked for; called once for each key.
        with_cudnn, plain : run the call by a plan of cuDNN, and without.
        """
        whole = (kernel, policy, key)
        try:
            return self._settled[whole]
        except KeyError:
            pass
        if capturing(self._cupy):
            return None  # nothing is built, measured or decided within a graph
        with self._lock:
            if whole not in self._settled:
                count = self._settled_of[kernel] = self._settled_of.get(kernel, 0) + 1
                if count > MOST_CALLS:
                    self._too_many(kernel, count)
                    return None
                self._settled[whole] = self._settle(operation(), policy, with_cudnn, plain)
            return self._settled[whole]

    def _settle(
        self,
        operation: Operation,
        policy: Policy,
        with_cudnn: Callable[[Plan], Any],
        plain: Callable[[], Any],
    ) -> Plan | None:
        if self.mode == "always":
            try:
                return self.library.plan(operation, policy)
            except UnsupportedError:
                return None
        choices, call = self.choices(), call_of(operation, policy)
        known = choices.known(call)
        if known is not None and known.use != CUDNN:
            return None
        try:
            plan = self.library.plan(operation, policy)
        except UnsupportedError as error:
            choices.keep(call, Choice(PLAIN, {}, f"cuDNN: {error}"))
            return None
        if known is None:
            candidates = {PLAIN: plain, CUDNN: lambda: with_cudnn(plan)}
            try:
                known = choices.measure(call, candidates, self._clock(), self._lacks_memory)
            except DeviceError as error:
                warnings.warn(
                    f"{error}; this process runs the plain kernel there",
                    RuntimeWarning,
                    stacklevel=6,
                )
                return None
        return plan if known.use == CUDNN else None

    def _too_many(self, kernel: str, count: int) -> None:
        if count == MOST_CALLS + 1:
            warnings.warn(
                f"{kernel} on cuda:{self._index}: after {MOST_CALLS} shapes, further ones run "
                "without cuDNN; batches padded to a few lengths would use it",
                RuntimeWarning,
                stacklevel=5,
            )

    def choices(self) -> Choices:
        """The table of this device, with these versions of the libraries."""
        if self._choices is None:
            versions = self.library.versions()
            self._choices = of_device(self._cupy, self._index, versions, self._folder)
        return self._choices

    def _look(self) -> None:
        if self._looked:
            return
        self._looked = True
        if detect.cudnn_problem() is not None:
            return
        library = Library(importlib.import_module("cudnn"), self._cupy)
        try:
            library.start()
        except RuntimeError as error:
            words = " ".join(str(error).split())
            if self.mode == "always":
                raise DeviceError(
                    f"cudnn='always' on cuda:{self._index}: cuDNN does not start: {words}"
                ) from error
            warnings.warn(
                f"cuDNN does not start on cuda:{self._index}: {words}; convolutions and attention "
                "run without it (GPUBACKPROP_CUDNN=never says so beforehand)",
                RuntimeWarning,
                stacklevel=4,
            )
            return
        self._library = library


def call_of(operation: Operation, policy: Policy) -> str:
    """A call as tables of choices have it."""
    words = ["deterministic" if policy.deterministic else "native"]
    if policy.tf32 and operation.tensors[0].dtype == "float32":
        words.append("tf32")
    return f"{describe(operation)} {' '.join(words)}"
