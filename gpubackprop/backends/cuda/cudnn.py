"""cuDNN through its front end: plans for operations, and running them on CuPy's memory.

A plan is built once for an :class:`~gpubackprop.backends.cuda.cudnn_graphs.Operation` and a policy,
which takes milliseconds to seconds; running it takes pointers and a stream, nothing else, so it can
be captured into a CUDA graph. The workspace of a run comes from CuPy's memory pool: the pool gives
the same block again without asking the driver, each stream has its own, and a graph that was
captured keeps its block, together with the rest of the pool that it was captured with.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from gpubackprop.backends.cuda import cudnn_graphs
from gpubackprop.backends.cuda.cudnn_graphs import Operation
from gpubackprop.backends.detect import cudnn_version
from gpubackprop.backends.primitives import Array
from gpubackprop.errors import DeviceError

ALIGNMENT = 16
"""Bytes that every address must be a multiple of: what cuDNN's front end promises its engines."""
WORKSPACE = 1 << 30
"""Engines that need more bytes of workspace are not taken."""


class UnsupportedError(Exception):
    """cuDNN has no engine for an operation under a policy; the message says why."""


class Policy(NamedTuple):
    """Which engines may be taken.

    Attributes
    ----------
    deterministic : only those that give the same bits on every run.
    tf32 : whether float32 may be rounded to TF32 before it is multiplied.
    """

    deterministic: bool
    tf32: bool

    def refused(self, cudnn: Any, dtype: str) -> list[Any]:
        """The numerical notes of engines that may not be taken for a dtype.

        Engines that use tensor cores for float32 multiply in TF32; no engine may add in less than
        float32, nor convert what it is given to half precision.
        """
        notes = cudnn.numerical_note
        refused = [notes.DOWN_CONVERT_INPUTS, notes.REDUCED_PRECISION_REDUCTION]
        if self.deterministic:
            refused.append(notes.NONDETERMINISTIC)
        if dtype == "float32" and not self.tf32:
            refused.append(notes.TENSOR_CORE)
        return refused


class Plan(NamedTuple):
    """An engine that is ready to run.

    Attributes
    ----------
    graph : the graph of the front end.
    workspace : bytes.
    operation : what it computes.
    """

    graph: Any
    workspace: int
    operation: Operation


class Library:
    """cuDNN on one device.

    Parameters
    ----------
    cudnn : the front end's module.
    cupy : the CuPy module.
    """

    def __init__(self, cudnn: Any, cupy: Any) -> None:
        self.cudnn, self._cupy = cudnn, cupy
        self._of_thread = threading.local()

    def start(self) -> None:
        """Make sure that cuDNN runs on the current device.

        Raises
        ------
        RuntimeError
            It does not.
        """
        self._handle()

    def versions(self) -> dict[str, str]:
        """Of cuDNN and of its front end."""
        return {
            "cudnn": cudnn_version(self.cudnn.backend_version()),
            "cudnn-frontend": str(self.cudnn.__version__),
        }

    def plan(self, operation: Operation, policy: Policy) -> Plan:
        """Build a plan: the first engine of cuDNN's own order that the policy allows.

        Raises
        ------
        UnsupportedError
            cuDNN refuses the operation, or has no such engine.
        """
        cudnn = self.cudnn
        refusals = (
            RuntimeError,
            ValueError,
            NotImplementedError,
            cudnn.cudnnGraphNotSupportedError,
        )
        try:
            graph = cudnn_graphs.build(
                cudnn, operation, policy.deterministic, handle=self._handle()
            )
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            # Only plans that exist can be deselected.
            graph.deselect_numeric_notes(policy.refused(cudnn, operation.tensors[0].dtype))
            graph.deselect_workspace_greater_than(WORKSPACE)
            graph.check_support()
            graph.build_plans()
            workspace = max(int(graph.get_workspace_size()), 0)
        except refusals as error:
            raise UnsupportedError(_one_line(error)) from error
        # The filter above sees the engine's own; attention's graph adds what lies between its
        # parts, as the scores' cotangents of all rows where it shall add in a fixed order.
        if workspace > WORKSPACE:
            raise UnsupportedError(
                f"it needs {workspace} bytes of workspace, and {WORKSPACE} are allowed"
            )
        return Plan(graph, workspace, operation)

    def run(self, plan: Plan, *arrays: Array) -> None:
        """Run a plan on the current stream.

        Parameters
        ----------
        arrays : in the order of the operation's tensors; their layouts are those of the operation.

        Raises
        ------
        DeviceError
            cuDNN fails: names the operation.
        """
        handle = self._handle()
        stream = self._cupy.cuda.get_current_stream().ptr
        if self._of_thread.stream != stream:
            self.cudnn.set_stream(handle=handle, stream=stream)
            self._of_thread.stream = stream
        scratch = self._cupy.empty((plan.workspace,), "uint8") if plan.workspace else None
        places = {i: int(a.data.ptr) for i, a in enumerate(arrays, 1)}
        place = 0 if scratch is None else int(scratch.data.ptr)
        try:
            plan.graph.execute(places, place, handle=handle)
        except (RuntimeError, self.cudnn.cudnnGraphNotSupportedError) as error:
            raise DeviceError(
                f"cuDNN fails at {describe(plan.operation)}: {_one_line(error)}; "
                "GPUBACKPROP_CUDNN=never runs without it"
            ) from error

    def _handle(self) -> Any:
        """One for each thread, as cuDNN wants it."""
        handle = getattr(self._of_thread, "handle", None)
        if handle is None:
            handle = self._of_thread.handle = self.cudnn.create_handle()
            self._of_thread.stream = None
        return handle


def describe(operation: Operation) -> str:
    """An operation in words: kernel, dtype, shapes and strides, what else it takes."""
    arrays = " ".join(
        f"{'x'.join(map(str, t.shape))}/{'x'.join(map(str, t.strides))}" for t in operation.tensors
    )
    options = " ".join(
        f"{name}={value}".replace(" ", "")
        for option in operation.options
        for name, value in option._asdict().items()
    )
    return f"{operation.kind} {operation.tensors[0].dtype} {arrays} {options}"


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
