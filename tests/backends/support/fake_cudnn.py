"""A stand-in for cuDNN's front end that runs its graphs in NumPy, on the memory of the fake CuPy.

It takes what ``cudnn_graphs.py`` may say and nothing else, insists on the order of the calls, and
checks every address: a whole number, aligned, and the whole array inside memory that is alive. What
a graph means is written here anew, from cuDNN's documentation, so that a wrong dimension, stride,
padding or number of a tensor shows as a wrong result.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.backends.support.fake_cupy import FakeCuPy

NUMPY = {"FLOAT": "float32", "HALF": "float16"}
ALIGNMENT = 16
STAGES = (
    "described",
    "validated",
    "lowered",
    "planned",
    "supported",
    "built",
)


def numpy_type(name: str) -> np.dtype:
    """A cuDNN type as NumPy has it."""
    if name == "BFLOAT16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(NUMPY[name])


class GraphNotSupportedError(Exception):
    """cuDNN's way of saying that there is no engine."""


class Tensor:
    """A node's result, or what a graph is given."""

    def __init__(self, value: Callable[[dict], np.ndarray] | None = None, **known: Any) -> None:
        self.value, self.output = value, False
        self.dim = self.stride = self.uid = self.type = None
        vars(self).update(known)

    def set_output(self, yes: bool) -> Tensor:
        self.output = yes
        return self

    def set_uid(self, uid: int) -> Tensor:
        self.uid = uid
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        self.stride = stride
        return self

    def set_data_type(self, kind: str) -> Tensor:
        self.type = kind
        return self


class Graph:
    """A graph: what was asked for, and how far its making has come."""

    def __init__(
        self,
        module: FakeCudnn,
        io_data_type: str,
        intermediate_data_type: str,
        compute_data_type: str,
        handle: Any,
    ) -> None:
        assert intermediate_data_type == compute_data_type == "FLOAT"
        assert handle is module.handle is not None
        self.module, self.io = module, io_data_type
        self.stage = "described"
        self.tensors: list[Tensor] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.engines = dict(module.engines)
        self.limit = math.inf

    def _step(self, before: str, after: str) -> None:
        assert self.stage == before, f"{after} after {self.stage}"
        self.stage = after

    # Describing.
    def tensor(
        self, dim: list[int], stride: list[int], data_type: str, uid: int, name: str
    ) -> Tensor:
        assert len(dim) == len(stride) and all(type(n) is int for n in (*dim, *stride))
        made = Tensor(dim=dim, stride=stride, type=data_type, uid=uid)
        made.value = lambda given: given[uid]
        self.tensors.append(made)
        return made

    def _made(self, kind: str, options: dict[str, Any], *values: Callable) -> list[Tensor]:
        self.asked.append((kind, options))
        made = [Tensor(value) for value in values]
        self.tensors.extend(made)
        return made

    def conv_fprop(self, image: Tensor, weight: Tensor, **geometry: list[int]) -> Tensor:
        self._fits(image.dim, weight.dim, geometry)
        return self._made(
            "fprop", geometry, lambda g: fprop(image.value(g), weight.value(g), **geometry)
        )[0]

    def conv_dgrad(self, loss: Tensor, filter: Tensor, **geometry: list[int]) -> Tensor:  # noqa: A002
        made = self._made("dgrad", geometry, lambda g: None)[0]
        made.value = lambda g: dgrad(loss.value(g), filter.value(g), made.dim, **geometry)
        self.then = lambda: self._fits(made.dim, filter.dim, geometry, loss.dim)
        return made

    def conv_wgrad(self, image: Tensor, loss: Tensor, **geometry: list[int]) -> Tensor:
        made = self._made("wgrad", geometry, lambda g: None)[0]
        made.value = lambda g: wgrad(image.value(g), loss.value(g), made.dim, **geometry)
        self.then = lambda: self._fits(image.dim, made.dim, geometry, loss.dim)
        return made

    def bias(self, input: Tensor, bias: Tensor) -> Tensor:  # noqa: A002
        assert not input.output and bias.dim[0] == 1 and set(bias.dim[2:]) == {1}
        return self._made("bias", {}, lambda g: input.value(g) + bias.value(g))[0]

    def sdpa(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        generate_stats: bool,
        attn_scale: float,
        diagonal_alignment: str = "TOP_LEFT",
        diagonal_band_right_bound: int | None = None,
    ) -> list[Tensor]:
        assert generate_stats and type(attn_scale) is float
        options = {"alignment": diagonal_alignment, "right": diagonal_band_right_bound}
        self._attends(q, k, v)

        def run(g: dict) -> tuple[np.ndarray, np.ndarray]:
            return attend(q.value(g), k.value(g), v.value(g), attn_scale, **options)

        return self._made("sdpa", options, lambda g: run(g)[0], lambda g: run(g)[1])

    def sdpa_backward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        dO: Tensor,  # noqa: N803 - cuDNN's name
        stats: Tensor,
        attn_scale: float,
        use_deterministic_algorithm: bool,
        diagonal_alignment: str = "TOP_LEFT",
        diagonal_band_right_bound: int | None = None,
    ) -> list[Tensor]:
        assert type(attn_scale) is float and stats.type == "FLOAT" and stats.dim[3] == 1
        assert o.dim == dO.dim == [*q.dim[:3], v.dim[3]]
        options = {"alignment": diagonal_alignment, "right": diagonal_band_right_bound}
        self._attends(q, k, v, o, dO)

        def part(i: int) -> Callable[[dict], np.ndarray]:
            arrays = (q, k, v, o, dO, stats)
            return lambda g: attend_backward(*(a.value(g) for a in arrays), attn_scale, **options)[
                i
            ]

        noted = {**options, "deterministic": use_deterministic_algorithm}
        return self._made("sdpa_backward", noted, part(0), part(1), part(2))

    def _fits(
        self, image: list[int], weight: list[int], geometry: dict, result: list[int] | None = None
    ) -> None:
        assert set(geometry) == {"pre_padding", "post_padding", "stride", "dilation"}
        assert 2 <= len(image) - 2 <= 3, "cuDNN has 2-d and 3-d convolutions"
        assert all(len(numbers) == len(image) - 2 for numbers in geometry.values())
        groups, rest = divmod(image[1], weight[1])
        assert not rest and weight[0] % groups == 0
        if result is not None:
            assert result == [image[0], weight[0], *windows(image[2:], weight[2:], **geometry)]

    def _attends(self, *arrays: Tensor) -> None:
        if self.io not in ("HALF", "BFLOAT16"):
            raise GraphNotSupportedError("attention is for half precision")
        for a in arrays:
            assert a.dim[3] % 8 == 0 and a.stride[3] == 1
            assert all(s % 8 == 0 and s > 0 for s in a.stride[:3])

    # Making.
    def validate(self) -> None:
        self._step("described", "validated")
        getattr(self, "then", lambda: None)()
        real = [t for t in self.tensors if t.output or t.uid is not None]
        assert sorted(t.uid for t in real) == list(range(1, len(real) + 1))
        assert all(t.dim and t.stride and t.type for t in real), "a tensor without a layout"
        assert any(t.output for t in real)
        if why := self.module.refuse(self):
            raise GraphNotSupportedError(why)

    def build_operation_graph(self) -> None:
        self._step("validated", "lowered")

    def create_execution_plans(self, modes: list[str]) -> None:
        assert modes == ["A", "FALLBACK"]
        self._step("lowered", "planned")

    def deselect_numeric_notes(self, notes: list[str]) -> None:
        assert self.stage == "planned", "only plans that exist can be deselected"
        self.engines = {n: has for n, has in self.engines.items() if not has & set(notes)}

    def deselect_workspace_greater_than(self, size: int) -> None:
        assert self.stage == "planned"
        self.limit = size

    def check_support(self) -> None:
        self._step("planned", "supported")
        if not self.engines or self.module.workspace > self.limit:
            raise GraphNotSupportedError("No valid engine\nconfigs returned from heuristics")

    def build_plans(self) -> None:
        self._step("supported", "built")
        self.engine = next(iter(self.engines))
        self.module.built.append(self)

    def get_workspace_size(self) -> int:
        return self.module.workspace + self.module.between

    # Running.
    def execute(self, places: dict[int, int], workspace: int, handle: Any) -> None:
        module = self.module
        assert self.stage == "built" and handle is module.handle
        assert module.stream == module.current_stream(), "the handle runs on another stream"
        real = {t.uid: t for t in self.tensors if t.uid is not None}
        assert places.keys() == real.keys()
        module.enqueue(lambda: self._run(real, places, workspace))
        module.ran.append(self)

    def _run(self, real: dict[int, Tensor], places: dict[int, int], workspace: int) -> None:
        module = self.module
        views = {uid: module.view(places[uid], t) for uid, t in real.items()}
        if module.workspace:
            scratch = module.memory(workspace, module.workspace)
            assert not any(np.may_share_memory(scratch, v) for v in views.values())
            scratch[...] = 0xAB  # may hold anything when it is handed out again
        else:
            assert workspace == 0
        given = {uid: views[uid].astype(np.float64) for uid, t in real.items() if not t.output}
        for uid, t in real.items():
            if t.output:
                value = t.value(given)
                assert value.shape == tuple(t.dim)
                views[uid][...] = value


class FakeCudnn:
    """The module.

    Parameters
    ----------
    cupy : the fake CuPy, whose memory graphs may run on.

    Attributes
    ----------
    engines : names of the engines in cuDNN's order, with their numerical notes.
    workspace : bytes that each needs.
    between : bytes that a graph needs for what lies between its parts.
    refuse : says why a graph is refused, or nothing.
    built, ran : graphs, in order.
    """

    __version__ = "1.28.0"
    cudnnGraphNotSupportedError = GraphNotSupportedError  # noqa: N815 - cuDNN's name

    def __init__(self, cupy: FakeCuPy) -> None:
        self.cupy = cupy
        names = ("FLOAT", "HALF", "BFLOAT16")
        self.data_type = SimpleNamespace(**{n: n for n in names})
        notes = (
            *("TENSOR_CORE", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION"),
            *("NONDETERMINISTIC", "FFT", "WINOGRAD"),
        )
        self.numerical_note = SimpleNamespace(**{n: n for n in notes})
        self.heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")
        self.diagonal_alignment = SimpleNamespace(TOP_LEFT="TOP_LEFT", BOTTOM_RIGHT="BOTTOM_RIGHT")
        self.engines: dict[str, set[str]] = {
            "half sums": {"TENSOR_CORE", "REDUCED_PRECISION_REDUCTION"},
            "half inputs": {"DOWN_CONVERT_INPUTS"},
            "atomics": {"TENSOR_CORE", "NONDETERMINISTIC"},
            "tensor cores": {"TENSOR_CORE"},
            "ordinary": set(),
        }
        self.workspace, self.between = 48, 0
        self.refuse: Callable[[Graph], str] = lambda graph: ""
        self.built: list[Graph] = []
        self.ran: list[Graph] = []
        self.handle: Any = None
        self.stream: int | None = None
        self._alive: dict[int, tuple[int, int, weakref.ref]] = {}
        self._watch(cupy)

    def _watch(self, cupy: FakeCuPy) -> None:
        """Note where the arrays of the fake CuPy lie."""
        before = cupy.pool.handed_out

        def handed_out(values: np.ndarray, device_id: int) -> None:
            before(values, device_id)
            low, high = np.lib.array_utils.byte_bounds(values)
            self._alive[id(values)] = (low, high, weakref.ref(values))

        cupy.pool.handed_out = handed_out  # type: ignore[method-assign]

    def pygraph(self, **settings: Any) -> Graph:
        return Graph(self, **settings)

    def backend_version(self) -> int:
        return 92801

    def create_handle(self) -> object:
        assert self.handle is None, "one thread needs one handle"
        self.handle = object()
        return self.handle

    def set_stream(self, handle: object, stream: int) -> None:
        assert handle is self.handle and type(stream) is int
        self.stream = stream

    def current_stream(self) -> int:
        """The fake CuPy's."""
        return self.cupy.stream

    def enqueue(self, task: Callable[[], None]) -> None:
        """Let the current stream do it: at once."""
        task()

    def alive(self, place: int, size: int) -> bool:
        """Whether these bytes belong to one array."""
        return any(
            low <= place and place + size <= high and values() is not None
            for low, high, values in self._alive.values()
        )

    def memory(self, place: int, size: int) -> np.ndarray:
        """Bytes that belong to one array of the fake CuPy."""
        assert type(place) is int, "cuDNN's front end takes addresses as plain integers"
        assert place % ALIGNMENT == 0, "an address that engines cannot read"
        assert self.alive(place, size), "memory that no array has"
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(place))

    def view(self, place: int, tensor: Tensor) -> np.ndarray:
        """The array that a tensor is of."""
        kind = numpy_type(tensor.type)
        last = sum((n - 1) * s for n, s in zip(tensor.dim, tensor.stride, strict=True))
        flat = self.memory(place, (last + 1) * kind.itemsize).view(kind)
        strides = tuple(s * kind.itemsize for s in tensor.stride)
        return np.lib.stride_tricks.as_strided(flat, tensor.dim, strides)


# What the operations mean, on (N, C, *spatial) and (O, C / groups, *kernel).


def windows(spatial, kernel, pre_padding, post_padding, stride, dilation) -> list[int]:
    """How many windows fit along each axis."""
    return [
        (n + a + b - d * (k - 1) - 1) // s + 1
        for n, k, a, b, s, d in zip(
            spatial, kernel, pre_padding, post_padding, stride, dilation, strict=True
        )
    ]


def _places(kernel, out, stride, dilation):
    """Each place in the kernel, with what the windows see there of a padded image."""
    for place in itertools.product(*map(range, kernel)):
        starts = [k * d for k, d in zip(place, dilation, strict=True)]
        yield (
            place,
            tuple(
                slice(a, a + (o - 1) * s + 1, s)
                for a, o, s in zip(starts, out, stride, strict=True)
            ),
        )


def _padded(x, pre, post):
    return np.pad(x, [(0, 0), (0, 0), *zip(pre, post, strict=True)])


def _groups(channels: int, weight: tuple[int, ...]):
    per, count = weight[1], channels // weight[1]
    outputs = weight[0] // count
    for g in range(count):
        yield slice(g * per, (g + 1) * per), slice(g * outputs, (g + 1) * outputs)


def fprop(x, w, pre_padding, post_padding, stride, dilation):
    out = windows(x.shape[2:], w.shape[2:], pre_padding, post_padding, stride, dilation)
    x = _padded(x, pre_padding, post_padding)
    y = np.zeros((x.shape[0], w.shape[0], *out))
    for place, seen in _places(w.shape[2:], out, stride, dilation):
        for c, o in _groups(x.shape[1], w.shape):
            y[:, o] += np.einsum("nc...,oc->no...", x[(slice(None), c, *seen)], w[(o, ..., *place)])
    return y


def dgrad(dy, w, dim, pre_padding, post_padding, stride, dilation):
    dx = _padded(np.zeros(dim), pre_padding, post_padding)
    for place, seen in _places(w.shape[2:], dy.shape[2:], stride, dilation):
        for c, o in _groups(dim[1], w.shape):
            dx[(slice(None), c, *seen)] += np.einsum(
                "no...,oc->nc...", dy[:, o], w[(o, ..., *place)]
            )
    inner = (slice(a, a + n) for a, n in zip(pre_padding, dim[2:], strict=True))
    return dx[(slice(None), slice(None), *inner)]


def wgrad(x, dy, dim, pre_padding, post_padding, stride, dilation):
    x, dw = _padded(x, pre_padding, post_padding), np.zeros(dim)
    for place, seen in _places(dim[2:], dy.shape[2:], stride, dilation):
        for c, o in _groups(x.shape[1], tuple(dim)):
            there = x[(slice(None), c, *seen)]
            flat = (a.reshape(*a.shape[:2], -1) for a in (dy[:, o], there))
            dw[(o, ..., *place)] = np.einsum("nor,ncr->oc", *flat)
    return dw


def _scores(q, k, scale, alignment, right):
    s = scale * q @ np.repeat(k, q.shape[1] // k.shape[1], axis=1).swapaxes(2, 3)
    if right is not None:
        tq, tk = s.shape[2:]
        shift = tk - tq if alignment == "BOTTOM_RIGHT" else 0
        seen = np.arange(tk) <= np.arange(tq)[:, None] + right + shift
        s = np.where(seen, s, -np.inf)
    return s


def attend(q, k, v, scale, alignment, right):
    s = _scores(q, k, scale, alignment, right)
    lse = np.log(np.exp(s - s.max(-1, keepdims=True)).sum(-1, keepdims=True))
    lse += s.max(-1, keepdims=True)
    return np.exp(s - lse) @ np.repeat(v, q.shape[1] // v.shape[1], axis=1), lse


def attend_backward(q, k, v, o, do, stats, scale, alignment, right):
    shared = q.shape[1] // k.shape[1]
    w = np.exp(_scores(q, k, scale, alignment, right) - stats)
    dw = do @ np.repeat(v, shared, axis=1).swapaxes(2, 3)
    ds = scale * w * (dw - (do * o).sum(-1, keepdims=True))

    def of_keys(x):
        return x.reshape(x.shape[0], k.shape[1], shared, *x.shape[2:]).sum(2)

    dk, dv = of_keys(ds.swapaxes(2, 3) @ q), of_keys(w.swapaxes(2, 3) @ do)
    return ds @ np.repeat(k, shared, axis=1), dk, dv
