"""Recorded calls that run again in planned memory give what they gave, for every operation."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.autograd import REGISTRY, Tensor, grad
from gpubackprop.backends import get_backend
from gpubackprop.backends.cpu import shared
from gpubackprop.backends.cuda import CUDABackend
from gpubackprop.backends.live import marked
from gpubackprop.compile.plain import thunk
from gpubackprop.compile.plan import Memory, plan_memory
from gpubackprop.compile.recorder import Recorder, recording
from gpubackprop.compile.trace import Buffer, Call, Ref
from gpubackprop.nn import functional as F
from gpubackprop.testing import StandInBackend, require_close, samples_of, tolerance
from gpubackprop.testing.calls import call as call_operation
from gpubackprop.testing.calls import cast, cotangent, differentiable_inputs, fresh, place
from gpubackprop.testing.closeness import longest, magnitude
from tests.backends.support import fake_cupy

CPU = get_backend("cpu")
STAND_IN = StandInBackend()


def never(call: Call, out: Ref) -> tuple[Ref, ...]:
    return ()


def always(call: Call, out: Ref) -> tuple[Ref, ...]:
    return tuple(call.reads)


class Replayed:
    """Calls ready to run again.

    Parameters
    ----------
    calls, results, inputs : refs of what is needed afterwards and of what is given.
    numbers : live ones.
    inplace : which results may lie over an argument that dies.
    """

    def __init__(self, calls, results, inputs, backend, numbers=(), inplace=never) -> None:
        self.backend, self.numbers = backend, list(numbers)
        self.plan = plan_memory(calls, results, inputs, inplace)
        self.memory = Memory(self.plan, backend)
        found = [thunk(c, self.memory, backend, self.numbers) for c in calls]
        self.thunks = [t for t in found if t is not None]
        self.results = [self.memory.view(r) for r in results]
        self.inputs = [self.memory.view(r) for r in inputs]

    def run(self, arrays) -> list[np.ndarray]:
        """From memory full of NaN and other nonsense."""
        arena = self.memory.arena
        getattr(arena, "hidden", arena)[...] = 0xFF
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for view, array in zip(self.inputs, arrays, strict=True):
                self.backend.copyto(view, array)
            for t in self.thunks:
                t()
        return [self.backend.to_numpy(r).copy() for r in self.results]


def replay_sample(op, sample, backend, dtype, inplace=never) -> int:
    """Forward and backward pass of an operation, recorded, run twice again.

    Returns
    -------
    How many results were written over an argument.
    """
    wanted = differentiable_inputs(op, sample)
    arrays = [
        backend.asarray(cast(fresh(x), dtype)) for x in sample.inputs if isinstance(x, np.ndarray)
    ]
    given = iter(arrays)
    inputs = [
        Tensor(next(given), backend, i in wanted) if isinstance(x, np.ndarray) else x
        for i, x in enumerate(sample.inputs)
    ]
    params = place(sample.params, backend)
    copies = [backend.copy(a) for a in arrays]
    recorder = Recorder(backend, arrays)
    with recording(recorder):
        outcome = call_operation(op, inputs, params)
        found = list(outcome.outputs)
        out = [t for t in found if t.requires_grad]
        if out and wanted:
            cotangents = [
                backend.asarray(cotangent(t.shape, t.dtype, k)) for k, t in enumerate(out)
            ]
            with np.errstate(all="ignore"):
                slopes = grad(out, [inputs[i] for i in wanted], cotangents, allow_unused=True)
            found += [g for g in slopes if g is not None]
    refs = [recorder.ref_of(t.array) for t in found]
    expected = [t.numpy().copy() for t in found]
    made = recorder.recording
    replayed = Replayed(made.calls, refs, made.inputs, backend, made.numbers, inplace)
    scale = magnitude([*expected, *sample.inputs])
    terms = longest([*expected, *sample.inputs])
    for _ in range(2):
        for value, wish in zip(replayed.run(copies), expected, strict=True):
            exact = wish.dtype.kind != "f"
            bound = 0.0 if exact else tolerance(wish.dtype, terms)
            require_close("replayed", value, wish, bound, scale)
            assert value.dtype == wish.dtype
    return replayed.plan.shared


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", REGISTRY.values(), ids=list(REGISTRY))
def test_every_operation(op, dtype):
    for sample in samples_of(op):
        replay_sample(op, sample, CPU, dtype)


@pytest.mark.parametrize("op", REGISTRY.values(), ids=list(REGISTRY))
def test_every_operation_on_a_device(op):
    for sample in samples_of(op):
        replay_sample(op, sample, STAND_IN, "float32")


@pytest.mark.parametrize("backend", [CPU, STAND_IN], ids=lambda b: b.device)
def test_results_over_arguments(backend):
    """Also where a kernel makes several passes and reads an argument after the first."""
    shared_by = {
        op.name: sum(replay_sample(op, s, backend, "float32", always) for s in samples_of(op))
        for op in REGISTRY.values()
    }
    assert sum(shared_by.values()) > 100
    assert shared_by["gelu"] and shared_by["log_softmax"]


def test_half_precision():
    for name in ("add", "matmul", "linear", "sum", "sigmoid", "softmax", "relu", "mean"):
        for sample in samples_of(REGISTRY[name]):
            replay_sample(REGISTRY[name], sample, CPU, "float16")


def recorded(fn, *arrays, backend=CPU):
    """A function of tensors of the given contents, ready to run again, and what it gave."""
    given = [backend.asarray(a.copy()) for a in arrays]
    recorder = Recorder(backend, given)
    with recording(recorder):
        found = fn(*(Tensor(a, backend, a.dtype.kind == "f") for a in given))
    made = recorder.recording
    results = [recorder.ref_of(t.array) for t in found]
    expected = [t.numpy().copy() for t in found]
    return Replayed(made.calls, results, made.inputs, backend, made.numbers), expected


def close(found, expected):
    for value, wish in zip(found, expected, strict=True):
        bound = tolerance(wish.dtype, 4096) if wish.dtype.kind == "f" else 0.0
        require_close("replayed", value, wish, bound, magnitude([wish]))


RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def with_slopes(fn):
    """`fn` of tensors, and the slopes of the sum of its squares by all of them."""

    def both(*xs):
        y = fn(*xs)
        real = [x for x in xs if x.dtype.kind == "f"]
        return [y, *grad((y * y).sum(), real, allow_unused=False)]

    return both


# Sizes at which kernels take their other ways: blocks, threads, rows taken together.
LARGE = {
    "relu": (F.relu, [(300, 512)]),
    "relu of turned memory": (lambda x: F.relu(x.transpose(0, 2, 3, 1)), [(8, 16, 16, 16)]),
    "gelu": (F.gelu, [(200, 700)]),
    "sigmoid": (F.sigmoid, [(100, 300)]),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (128,), w, b), [(150, 128), (128,), (128,)]),
    "linear": (lambda x, w, b: F.linear(x, w, b), [(3, 50, 70), (90, 70), (90,)]),
    "sum of leading axes": (lambda x: x.sum((0, 1)), [(20, 30, 40)]),
    "sum of rows": (lambda x: x.sum(0, keepdims=True), [(900, 33)]),
    "sum": (lambda x: x.sum() + x.sum(1).sum(), [(300, 90)]),
    "softmax": (lambda x: F.softmax(x, -1), [(300, 65)]),
    "log softmax of few classes": (lambda x: F.log_softmax(x, -1), [(300, 10)]),
    "tanh of a slice": (lambda x: gb.tanh(x[:, ::2]), [(300, 100)]),
    "products of batches": (lambda x, y: x @ y, [(4, 5, 30, 20), (4, 5, 20, 25)]),
    "broadcast": (lambda x, y: x * y + y, [(40, 50, 60), (50, 1)]),
    "max pooling": (lambda x: F.max_pool2d(x, 2), [(8, 16, 20, 20)]),
    "convolution": (
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        [(8, 16, 14, 14), (24, 16, 3, 3), (24,)],
    ),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        [(6, 4, 64, 32)] * 3,
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_large(name):
    fn, shapes = LARGE[name]
    arrays = [normal(*s) for s in shapes]
    replayed, expected = recorded(with_slopes(fn), *arrays)
    close(replayed.run(arrays), expected)
    # Other contents at the same places.
    others = [normal(*s) for s in shapes]
    tensors = [gb.tensor(a, requires_grad=True) for a in others]
    close(replayed.run(others), [t.numpy() for t in with_slopes(fn)(*tensors)])


def test_sums_of_half_precision_are_taken_in_single():
    x = np.ones((4096, 3), np.float16)
    replayed, expected = recorded(lambda t: [t.sum(0)], x)
    np.testing.assert_array_equal(expected[0], np.full(3, 4096.0))
    np.testing.assert_array_equal(replayed.run([x])[0], expected[0])


def test_the_number_of_what_holds():
    x = RNG.random((7, 9)) > 0.4
    replayed, expected = recorded(lambda t: [t.sum()], x)
    np.testing.assert_array_equal(replayed.run([x])[0], expected[0])
    np.testing.assert_array_equal(replayed.run([~x])[0], (~x).sum())


def whole(array, number=0, kind="external"):
    """An array in a buffer of its own."""
    b = Buffer(number, array.nbytes, kind, CPU.owner(array) if kind == "external" else None)
    return Ref(b, 0, array.shape, array.strides, array.dtype)


def ready(calls, results=(), inputs=(), backend=CPU, numbers=()):
    return Replayed(calls, list(results), list(inputs), backend, numbers)


def test_a_copy_onto_itself_is_left_out():
    x = normal(4, 5)
    ref = whole(x)
    again = Ref(ref.buffer, 0, (4, 5), ref.strides, ref.dtype)
    assert not ready([Call("copyto", (ref, again), {}, (), (ref,))]).thunks
    square = Ref(ref.buffer, 0, (2, 2), ref.strides, ref.dtype)
    turned = Ref(ref.buffer, 0, (2, 2), ref.strides[::-1], ref.dtype)
    wish = x[:2, :2].T.copy()
    (copy,) = ready([Call("copyto", (square, turned), {}, (), (square,))]).thunks
    copy()
    np.testing.assert_array_equal(x[:2, :2], wish)
    assert len(ready([Call("copyto", (ref, 0.0), {}, (), (ref,))]).thunks) == 1


@pytest.mark.parametrize("backend", [CPU, STAND_IN], ids=lambda b: b.device)
@pytest.mark.parametrize(
    ("size", "options"),
    [
        (5, {}),
        (1, {}),
        (0, {}),
        (70_000, {}),
        (5, {"momentum": 0.9}),
        (5, {"weight_decay": 0.1}),
        (5, {"scale": 0.25}),
        (5, {"skip": True}),
        (5, {"momentum": 0.9, "nesterov": True, "dampening": 0.0}),
    ],
)
def test_descent_reads_its_numbers_anew(backend, size, options):
    arrays = [normal(size) for _ in range(3)]
    if "momentum" not in options:
        arrays[2] = None
    held = [None if a is None else backend.asarray(a.copy()) for a in arrays]
    refs = []
    for i, a in enumerate(held):
        if a is None:
            refs.append(None)
            continue
        b = Buffer(i, arrays[i].nbytes, "external", backend.owner(a))
        refs.append(Ref(b, 0, (size,), (4,), np.dtype(np.float32)))
    kwargs = {"lr": marked(0.1, 0), "step": marked(1, 1), **options}
    writes = tuple(r for r in (refs[0], refs[2]) if r is not None)
    replayed = ready([Call("sgd_update", tuple(refs), kwargs, (), writes)], backend=backend)
    expected = [None if a is None else a.copy() for a in arrays]
    for step, lr in enumerate((0.1, 0.5, 0.25), start=1):
        replayed.numbers[:] = [lr, step]
        for t in replayed.thunks:
            t()
        CPU.sgd_update(*expected, lr=lr, step=step, **options)
        for value, wish in zip(held, expected, strict=True):
            if wish is not None:
                np.testing.assert_array_equal(backend.to_numpy(value), wish)


def test_numbers_by_position_and_by_name():
    x, y = normal(3, 4), np.empty((3, 4), np.float32)
    words = np.empty(4, np.uint32)
    out, bits = whole(y, 1), whole(words, 2)
    calls = [
        Call("multiply", (whole(x), marked(2.0, 0)), {}, (out,)),
        Call("random_bits", (7, 3, marked(0, 1), 4), {}, (bits,)),
    ]
    replayed = ready(calls)
    for factor, offset in ((2.0, 0), (-0.5, 40)):
        replayed.numbers[:] = [factor, offset]
        for t in replayed.thunks:
            t()
        np.testing.assert_array_equal(y, x * np.float32(factor))
        np.testing.assert_array_equal(words, CPU.random_bits(7, 3, offset, 4))


class TestWrittenTo:
    """Results end where they should, wherever a kernel put them."""

    def outs(self):
        return [np.full((3, 3), np.nan, np.float32) for _ in range(2)]

    def kernel(self, order, change=lambda a: a):
        def made(x):
            memory = [shared.result((3, 3), np.dtype(np.float32)) for _ in range(2)]
            for i, m in enumerate(memory):
                m[...] = x + 10 * i
            return tuple(change(memory[i]) for i in order)

        return made

    @pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 0), (1, 1)])
    @pytest.mark.parametrize("change", [lambda a: a, lambda a: a[::-1], lambda a: a.T])
    def test_any_order(self, order, change):
        x = np.arange(9, dtype=np.float32).reshape(3, 3)
        a, b = self.outs()
        CPU.written_to((a, b), self.kernel(order, change), x)
        np.testing.assert_array_equal(a, change(x + 10 * order[0]))
        np.testing.assert_array_equal(b, change(x + 10 * order[1]))

    def test_what_is_in_place_is_not_copied(self):
        """A view of the same elements is no reason to copy: a readonly result would show it."""
        (out,) = self.outs()[:1]

        def made():
            y = shared.result((3, 3), np.dtype(np.float32))
            y[...] = 1.0
            out.flags.writeable = False
            return y.reshape(-1).reshape(3, 3)

        CPU.written_to((out,), made)
        assert (out == 1.0).all()

    def test_what_is_left_over_is_not_offered_later(self):
        a, b = self.outs()
        CPU.written_to((a, b), lambda: (np.zeros((3, 3)), np.ones((3, 3))))
        fresh = shared.result((3, 3), np.dtype(np.float32))
        assert fresh is not a and fresh is not b
        with pytest.raises(ZeroDivisionError):
            CPU.written_to((a,), lambda: 1 // 0)
        assert shared.result((3, 3), np.dtype(np.float32)) is not a

    def test_a_gpus_kernel_that_asks_for_memory_writes_its_results_once(self, monkeypatch):
        """With several results too; one whose memory another result took is copied."""
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy.FakeCuPy())
        cuda = CUDABackend()
        x = cuda.asarray(np.ones((3, 3), np.float32))
        copied = []
        monkeypatch.setattr(cuda, "copyto", lambda target, value: copied.append(value))

        def pair(x):
            y, keep = cuda.empty((3, 3), np.float32), cuda.empty((3, 3), np.bool_)
            cuda.multiply(x, 2.0, out=y)
            keep.fill(True)
            return y, None, keep

        y, keep = cuda.empty((3, 3), np.float32), cuda.zeros((3, 3), np.bool_)
        cuda.written_to((y, keep), pair, x)
        assert not copied
        np.testing.assert_array_equal(cuda.to_numpy(y), 2.0)
        assert cuda.to_numpy(keep).all()
        cuda.written_to((y, keep), lambda x: (x, cuda.isfinite(x)), x)  # memory of their own
        assert copied[0] is x and len(copied) == 2


@pytest.mark.parametrize("kernel", ["sigmoid_backward", "matmul", "linear", "sum_to"])
def test_several_passes_over_an_argument(kernel):
    """Kernels that read an argument again after they have begun to write."""
    x, weight = normal(6, 6), normal(6, 6)
    first = Ref(Buffer(2, x.nbytes, "made"), 0, x.shape, x.strides, x.dtype)
    out = Ref(Buffer(3, x.nbytes, "made"), 0, x.shape, x.strides, x.dtype)
    given = whole(x, 0), whole(weight, 1)
    calls = [Call("sigmoid", given[:1], {}, (first,))]
    order = {"matmul": (first, given[1]), "linear": (first, given[1]), "sum_to": (first, (6, 6))}
    calls.append(Call(kernel, order.get(kernel, (given[1], first)), {}, (out,)))
    replayed = Replayed(calls, [out], [], CPU, (), always)
    assert replayed.plan.shared == 1
    y = CPU.sigmoid(x)
    values = {"matmul": (y, weight), "linear": (y, weight), "sum_to": (y, (6, 6))}
    expected = getattr(CPU, kernel)(*values.get(kernel, (weight, y)))
    close(replayed.run([]), [expected])


def test_warnings_are_as_in_the_eager_step():
    x = np.array([1000.0], np.float32)
    y = np.empty(1, np.float32)
    replayed = ready([Call("exp", (whole(x),), {}, (whole(y, 1),))])
    with pytest.warns(RuntimeWarning, match="overflow"):
        for t in replayed.thunks:
            t()
