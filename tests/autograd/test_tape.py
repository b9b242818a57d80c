"""The tape: what is recorded, in which order it is walked, what is kept and what is let go."""

from __future__ import annotations

import gc
import re
import threading
import time
import weakref

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.autograd import REGISTRY, STATE, Operation, Sample, Tensor, apply, methods, tape
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.errors import DeviceError, DTypeError, GradientError, ShapeError
from gpubackprop.testing import StandInBackend


def leaf(values, dtype="float64"):
    return gb.tensor(np.array(values, dtype), requires_grad=True)


def by(cost, *inputs, **options):
    return [g.numpy() for g in gb.grad(cost, list(inputs), **options)]


# Sums over the ways from a leaf to the cost.


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("uses", [1, 2, 3, 5])
def test_every_use_of_a_tensor_adds_to_its_gradient(shape, uses):
    x = leaf(np.full(shape, 2.0))
    inner = x * 1.0  # an inner node and a leaf add up by different code
    cost = sum(((k + 1.0) * x + inner * (k + 2.0)) for k in range(uses)).sum()
    cost.backward()
    expected = sum((k + 1.0) + (k + 2.0) for k in range(uses))
    assert isinstance(x.grad.array, np.ndarray)
    np.testing.assert_array_equal(x.grad.numpy(), np.full(shape, expected))


def test_a_diamond_is_walked_once_per_node():
    x = leaf(3.0)
    y = x * x
    for _ in range(40):  # 2**40 ways from top to bottom
        y = y + y
    seen = []

    class Counter:
        def forward(self, *_): ...

        def backward(self, node, dy, cotangents):
            seen.append(node)

    STATE.observer = Counter()
    try:
        y.backward()
    finally:
        STATE.observer = None
    assert x.grad.item() == 6.0 * 2.0**40
    assert len(seen) == len(set(seen)) == 41


def test_a_node_waits_for_all_that_used_it():
    x = leaf(0.5)
    early = x * 3.0
    late = early
    for _ in range(5):
        late = late.exp() * 0.1
    cost = early * late  # the short way and the long way meet in `early`
    cost.backward()
    h = 1e-6

    def value(v):
        e = v * 3.0
        y = e
        for _ in range(5):
            y = np.exp(y) * 0.1
        return e * y

    assert x.grad.item() == pytest.approx((value(0.5 + h) - value(0.5 - h)) / (2 * h), rel=1e-6)


@pytest.mark.timeout(60)
def test_ten_thousand_additions():
    x = leaf(np.ones(10))
    start = time.perf_counter()
    y = x
    for _ in range(10_000):
        y = y + x
    y.sum().backward()
    del y  # a chain of nodes goes with its last tensor, without recursion
    seconds = time.perf_counter() - start
    np.testing.assert_array_equal(x.grad.numpy(), np.full(10, 10_001.0))
    assert seconds < 5.0, "about 0.1 s where the machine is free"


def test_a_second_order_through_a_long_chain():
    x = leaf(1.0)
    y = x
    for _ in range(2_000):
        y = y * 1.0001
    (g,) = gb.grad(y * y, x, create_graph=True)
    (h,) = gb.grad(g, x)
    assert h.item() == pytest.approx(2 * 1.0001**4000)


# Passing through the graph again.


def test_saved_values_are_released_by_the_pass():
    x = leaf([1.0, 2.0])
    cost = (x.exp() * x).sum()
    cost.backward()
    with pytest.raises(GradientError, match="retain_graph=True"):
        cost.backward()


def test_retain_graph_allows_another_pass_and_gradients_accumulate():
    x = leaf([1.0, 2.0])
    cost = (x * x).sum()
    cost.backward(retain_graph=True)
    cost.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [4.0, 8.0])
    x.zero_grad()
    assert x.grad is None


def test_a_part_of_the_graph_that_was_not_walked_is_still_there():
    x, y = leaf(2.0), leaf(3.0)
    a, b = x * x, y * y
    (a + b).backward()
    c = y * y
    c.backward()
    assert (x.grad.item(), y.grad.item()) == (4.0, 12.0)
    with pytest.raises(GradientError):
        (a * 1.0).backward()


# What is recorded.


def test_no_grad_records_nothing_and_enable_grad_undoes_it():
    x = leaf([1.0])
    with gb.no_grad():
        y = x * 2.0
        with gb.enable_grad():
            z = x * 2.0
        assert not (x * 1.0).requires_grad
    assert not y.requires_grad and y.node is None
    assert z.requires_grad and (x * 2.0).requires_grad

    @gb.no_grad()
    def double(t):
        return t * 2.0

    assert not double(x).requires_grad
    assert double.__name__ == "double"


def test_no_grad_ends_with_an_error():
    with pytest.raises(RuntimeError, match="inside"), gb.no_grad():
        raise RuntimeError("inside")
    assert (leaf([1.0]) * 2.0).requires_grad


def test_no_grad_holds_in_its_own_thread_only():
    x, recorded, inside, go = leaf([1.0]), [], threading.Event(), threading.Event()

    def other():
        with gb.no_grad():
            inside.set()
            go.wait(5)
            recorded.append((x * 2.0).requires_grad)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(5)
    recorded.append((x * 2.0).requires_grad)
    go.set()
    thread.join()
    assert recorded == [True, False]


def test_a_decorated_function_in_two_threads_restores_each_threads_state():
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    results = {}

    @gb.no_grad()
    def work(arrived, wait):
        arrived.set()
        wait.wait(5)

    def one():
        work(first_in, second_in)
        results["one"] = STATE.recording
        first_out.set()

    def two():
        with gb.no_grad():
            first_in.wait(5)
            work(second_in, first_out)
            results["two"] = STATE.recording

    threads = [threading.Thread(target=t) for t in (one, two)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {"one": True, "two": False}


def test_graphs_of_two_threads_do_not_meet():
    found = {}

    def work(k):
        x = leaf(np.full(50, float(k)))
        for _ in range(50):
            x.grad = None
            y = x
            for _ in range(5):
                y = y * x
            y.sum().backward()
        found[k] = x.grad.numpy()

    threads = [threading.Thread(target=work, args=(k,)) for k in (1, 2, 3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k, g in found.items():
        np.testing.assert_allclose(g, 6.0 * k**5)


def test_detach_cuts_the_history():
    x = leaf(3.0)
    y = x.detach()
    assert y.is_leaf and not y.requires_grad
    assert np.shares_memory(y.array, x.array)
    (x * y).backward()
    assert x.grad.item() == 3.0


def test_constants_leave_no_node():
    x = gb.tensor([1.0, 2.0])
    assert (x * 2.0).node is None
    with pytest.raises(GradientError, match="does not depend on any tensor"):
        (x * 2.0).sum().backward()


def test_methods_that_have_another_name_here_are_named():
    x = gb.tensor([[1.0, 2.0]])
    for name, words in methods.ELSEWHERE.items():
        with pytest.raises(AttributeError, match=re.escape(f"{name!r}; write {words} instead")):
            getattr(x, name)
        if words.startswith("x.") and "cuda" not in words:
            eval(words, {"x": x})
    with pytest.raises(AttributeError, match="Tensor has no attribute 'nonsense'$"):
        _ = x.nonsense


# Memory.


def test_saved_arrays_die_with_the_backward_pass():
    x = leaf(np.ones(100_000))
    y = x * 2.0
    kept = weakref.ref(y.array)
    cost = (y * y).sum()
    del y
    assert kept() is not None, "the product's rule needs it"
    cost.backward()
    gc.collect()
    assert kept() is None, "the cost is still held, the saved values must not be"
    assert cost.requires_grad


def test_what_backward_does_not_read_is_not_kept():
    x = leaf(np.ones(100_000))
    before = x * 2.0
    argument = weakref.ref(before.array)
    y = before.relu()
    del before
    assert argument() is None, "relu's rule reads the result, not the argument"
    total = y + 1.0
    kept = weakref.ref(y.array)
    del y
    assert kept() is not None
    total.sum().backward()
    assert kept() is None


def test_a_sum_keeps_nothing():
    x = leaf(np.ones(1000))
    term = x * 2.0
    reference = weakref.ref(term.array)
    cost = (term + 1.0).sum()
    del term
    assert reference() is None
    cost.backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.full(1000, 2.0))


def test_a_dropped_result_takes_its_graph_along():
    x = leaf(np.ones(1000))
    y = x.exp()
    array, node = weakref.ref(y.array), weakref.ref(y.node)
    del y
    assert array() is None and node() is None, "no cycle keeps the graph"


# Gradients that accumulate in place.


def test_gradients_of_two_leaves_do_not_share_memory():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    cotangent = np.ones(2)
    (x + y).backward(cotangent)
    (x + y).backward(cotangent)
    np.testing.assert_array_equal(cotangent, [1.0, 1.0])
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 2.0])
    np.testing.assert_array_equal(y.grad.numpy(), [2.0, 2.0])
    assert not np.shares_memory(x.grad.array, y.grad.array)


def test_the_second_gradient_is_added_in_place():
    x = leaf([1.0, 2.0])
    (x * 3.0).sum().backward()
    first = x.grad.array
    (x * 4.0).sum().backward()
    assert x.grad.array is first
    np.testing.assert_array_equal(first, [7.0, 7.0])


def test_a_gradient_that_is_part_of_a_graph_is_not_overwritten():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 5.0])
    (x * x * y).sum().backward(create_graph=True)
    graph, before = x.grad, x.grad.numpy().copy()
    (x * 10.0).sum().backward()
    np.testing.assert_array_equal(graph.numpy(), before)
    np.testing.assert_array_equal(x.grad.numpy(), before + 10.0)

    x.grad = y.grad = None
    (x + y).backward(gb.tensor(np.ones(2)), create_graph=True)
    (x * 10.0).sum().backward()
    np.testing.assert_array_equal(y.grad.numpy(), [1.0, 1.0])


def test_the_users_cotangent_is_not_written():
    x = leaf([1.0, 2.0])
    seed = np.array([1.0, -1.0])
    y = x * 1.0
    (y + y + y).backward(seed)
    np.testing.assert_array_equal(seed, [1.0, -1.0])
    np.testing.assert_array_equal(x.grad.numpy(), [3.0, -3.0])


# Observers.


class Recorder:
    """Notes the names of what runs."""

    scope = "a module"

    def __init__(self):
        self.ran, self.rules = [], []

    def forward(self, op, inputs, outputs, params):
        self.ran.append((op.name, tuple(a.shape for a in outputs)))

    def backward(self, node, dy, cotangents):
        self.rules.append((node.op.name, node.context, len(cotangents)))


def test_an_observer_sees_every_operation_forwards_and_backwards():
    recorder = Recorder()
    STATE.observer = recorder
    try:
        x = leaf(np.ones((2, 3)))
        with gb.no_grad():
            x.exp()
        (x * x + 1.0).sum().backward()
    finally:
        STATE.observer = None
    x.exp()
    assert recorder.ran == [
        ("exp", ((2, 3),)),
        ("multiply", ((2, 3),)),
        ("add", ((2, 3),)),
        ("sum", ((),)),
    ]
    assert recorder.rules == [
        ("sum", "a module", 1),
        ("add", "a module", 2),
        ("multiply", "a module", 2),
    ]


def test_an_observer_sees_a_backward_pass_that_is_itself_recorded():
    recorder = Recorder()
    x = leaf([2.0])
    cost = (x * x).sum()
    STATE.observer = recorder
    try:
        gb.grad(cost, x, create_graph=True)
    finally:
        STATE.observer = None
    names = [name for name, _ in recorder.ran]
    assert names.count("multiply") == 2, "the rule's own products"


# Devices, dtypes, shapes.


def elsewhere(values):
    """A tensor on a second backend of the same machine."""
    other = elsewhere.backend
    return Tensor(np.array(values), other, requires_grad=True)


elsewhere.backend = NumPyBackend()
elsewhere.backend.device = "cpu:test"


def test_two_devices_in_one_operation_are_refused():
    x, y = leaf([1.0, 2.0]), elsewhere([1.0, 2.0])
    message = (
        r"multiply: .*argument 0 is float64\[2\] on cpu, argument 1 is float64\[2\] on cpu:test"
    )
    with pytest.raises(DeviceError, match=message):
        x * y
    with pytest.raises(DeviceError, match="gradient is on cpu, the tensor on cpu:test"):
        (y * 2.0).backward(gb.tensor(np.ones(2)))
    (y * y).sum().backward()
    assert y.grad.device == "cpu:test"
    moved = y.to("cpu")
    assert moved.device == "cpu" and moved.requires_grad and moved.is_leaf
    assert (x * moved).device == "cpu"
    with pytest.raises(GradientError, match="history"):
        (y * 2.0).to("cpu")


def test_second_derivatives_stay_on_their_device():
    y = elsewhere([0.5, 2.0])
    (g,) = gb.grad((gb.nn.functional.softmax(y, 0) ** 3).sum(), y, create_graph=True)
    (h,) = gb.grad(g.sum(), y)
    assert g.device == h.device == "cpu:test"


@pytest.mark.parametrize(
    "key",
    [[0, 2, 0], np.array([1, 1]), (slice(None), [0, 3]), np.array([True, False, True]), (1, 2)],
    ids=str,
)
def test_host_indices_reach_the_device_of_the_tensor(key):
    values = np.arange(12.0).reshape(3, 4)
    x = gb.tensor(values, device=StandInBackend(), requires_grad=True)
    y = x[key]
    np.testing.assert_array_equal(y.numpy(), values[key])
    (g,) = gb.grad((y * y).sum(), x, create_graph=True)
    expected = np.zeros_like(values)
    np.add.at(expected, key, 2 * values[key])
    np.testing.assert_array_equal(g.numpy(), expected)
    (g * g).sum().backward()
    assert x.grad.device == "stand-in"


def test_a_tensor_of_a_tensor_stays_where_it_is():
    assert gb.tensor(elsewhere([1.0])).device == "cpu:test"


def test_integers_have_no_derivative():
    with pytest.raises(DTypeError, match="int64 has no derivatives"):
        gb.tensor(np.array([1, 2]), requires_grad=True)
    with pytest.raises(DTypeError, match="has no derivatives"):
        gb.tensor(np.array([1, 2])).requires_grad_()
    with pytest.raises(DTypeError, match="not numeric"):
        gb.tensor(["a", "b"])
    x = leaf([1.5, 2.5])
    assert not x.argmax().requires_grad
    assert not x.astype("int64").requires_grad
    assert not (x > 2.0).requires_grad
    mixed = x * gb.tensor(np.array([1, 2]))
    mixed.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [1.0, 2.0])


def test_a_cotangent_has_the_dtype_of_its_input():
    x, y = leaf([1.0, 2.0], "float32"), leaf([3.0, 4.0])
    (x * y).sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (np.float32, np.float64)


def test_a_cost_of_many_elements_needs_a_cotangent():
    x = leaf([1.0, 2.0])
    with pytest.raises(GradientError, match=r"shape \(2,\) needs the derivative of the cost"):
        (x * 2.0).backward()
    with pytest.raises(ShapeError, match=r"gradient has shape \(3,\), the tensor \(2,\)"):
        (x * 2.0).backward(np.ones(3))
    with pytest.raises(ShapeError, match=r"gradient has shape \(3,\), the tensor \(2,\)"):
        (x * 2.0).backward(gb.tensor(np.ones(3)), create_graph=True)
    (x * 2.0).backward([1.0, 10.0])
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 20.0])


def test_shapes_that_do_not_fit_are_told_in_words():
    with pytest.raises(ShapeError, match=r"add: shapes \[2, 3\] and \[4\] do not broadcast"):
        leaf(np.ones((2, 3))) + leaf(np.ones(4))


# Operands that are not tensors.


def test_host_arrays_beside_a_tensor():
    x = gb.tensor([1.0, 2.0], requires_grad=True)
    for y in (x * np.array([2.0, 3.0]), np.array([2.0, 3.0]) * x):
        assert isinstance(y, Tensor) and y.dtype == np.float64
    (np.array([2.0, 3.0], np.float32) * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 3.0])
    with pytest.raises(GradientError, match="detach"):
        np.asarray(x)
    np.testing.assert_array_equal(np.asarray(x.detach()), [1.0, 2.0])
    with pytest.raises(TypeError):
        np.exp(x)  # not a tensor by accident, and not an array either


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("number", [2, 2.5, True])
def test_python_numbers_are_weak(dtype, number):
    x = leaf([1.0, 2.0], dtype)
    for y in (x * number, number * x, x / 2, 1 - x, x**2, 2.0**x, gb.maximum(x, number)):
        assert y.dtype == np.dtype(dtype)
        y.sum().backward()
    assert x.grad.dtype == np.dtype(dtype)


def test_numpy_scalars_promote_as_in_numpy():
    x = leaf([1.0, 2.0], "float32")
    for scalar in (np.float64(2), np.float32(2), np.float16(2), np.int8(2), np.bool_(True)):
        y = x * scalar
        assert y.dtype == (x.numpy() * scalar).dtype
        assert (scalar * x).dtype == y.dtype


def test_other_objects_are_refused_by_name():
    x = leaf([1.0])
    with pytest.raises(DTypeError, match="multiply: argument 1 is a str"):
        x * "two"
    with pytest.raises(DTypeError, match="no argument is a tensor"):
        apply(REGISTRY["add"], 1.0, 2.0)


def test_a_rule_that_gives_a_wrong_shape_is_named():
    def forward(K, x):
        return K.sum(x)

    def backward(K, call, dy):
        return (dy,)

    op = Operation("forgetful_sum", forward, backward, lambda x: x, lambda rng: [Sample((1.0,))])
    with pytest.raises(ShapeError, match=r"forgetful_sum: its backward rule gave .* shape \(\)"):
        apply(op, leaf([1.0, 2.0])).backward()


def test_the_state_is_one_per_thread():
    assert isinstance(STATE, threading.local)
    assert tape.STATE is STATE
