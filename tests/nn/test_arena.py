"""The arena: layout, views, re-adoption of replaced arrays, moves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpubackprop as gb
from gpubackprop.autograd import Tensor
from gpubackprop.backends import get_backend
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.errors import DeviceError, DTypeError, GradientError, ShapeError
from gpubackprop.nn import Arena, Linear, Parameter
from gpubackprop.nn.arena import ALIGNMENT

SHAPES = st.lists(
    st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple), min_size=1, max_size=6
)
DTYPES = st.sampled_from([np.float16, np.float32, np.float64])


def make(shapes, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [Parameter(rng.normal(size=s).astype(dtype)) for s in shapes]


@given(SHAPES, st.data())
def test_values_and_order_are_kept_and_nothing_overlaps(shapes, data):
    dtypes = [data.draw(DTYPES) for _ in shapes]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(d) for s, d in zip(shapes, dtypes, strict=True)]
    parameters = [Parameter(a) for a in arrays]
    arena = Arena(parameters)
    for p, a in zip(parameters, arrays, strict=True):
        assert p.dtype == a.dtype
        np.testing.assert_array_equal(p.numpy(), a)
    assert [s.dtype for s in arena.sections] == list(dict.fromkeys(map(np.dtype, dtypes)))
    for section in arena.sections:
        assert section.tensors == [p for p in parameters if p.dtype == section.dtype]
        assert section.values.shape == section.grads.shape == (section.starts[-1],)
        covered = np.zeros(section.size, int)
        for t, start, stop in zip(
            section.tensors, section.starts, section.starts[1:], strict=False
        ):
            assert start * section.dtype.itemsize % ALIGNMENT == 0
            assert stop - start >= t.size
            covered[start : start + t.size] += 1
            if t.size:
                assert np.shares_memory(t.array, section.values[start : start + t.size])
                assert np.shares_memory(t.grad_buffer, section.grads[start : start + t.size])
        assert covered.max(initial=0) <= 1
        assert not section.values[covered == 0].any()


@given(SHAPES, st.data())
def test_spans_cover_what_the_mask_names_and_no_other_parameter(shapes, data):
    section = Arena(make(shapes)).sections[0]
    n = len(section.tensors)
    keys = [data.draw(st.sampled_from([None, False, True, 3])) for _ in range(n)]
    exact = data.draw(st.booleans())
    owner = np.full(section.size, -1)
    for i, t in enumerate(section.tensors):
        owner[section.starts[i] : section.starts[i] + t.size] = i
    named = np.zeros(section.size, int)
    spans = list(section.spans(keys, exact=exact))
    for start, stop, key in spans:
        assert start < stop
        named[start:stop] += 1
        inside = {i for i in owner[start:stop] if i >= 0}
        assert {keys[i] for i in inside} == {key}
        if exact:
            assert -1 not in owner[start:stop]
    assert named.max(initial=0) <= 1
    for i, t in enumerate(section.tensors):
        part = named[section.starts[i] : section.starts[i] + t.size]
        assert (part == (0 if keys[i] in (None, False) else 1)).all()
    if not exact and all(t.size for t in section.tensors):  # like neighbours are one span
        for (_, stop, key), (start, _, other) in zip(spans, spans[1:], strict=False):
            assert stop != start or key != other


def test_everything_present_is_one_span():
    section = Arena(make([(3, 4), (4,), (2, 2)])).sections[0]
    assert list(section.spans([7, 7, 7])) == [(0, section.size, 7)]
    assert list(section.spans([7, 7, 7], 1, 2)) == [(section.starts[1], section.starts[2], 7)]


def test_a_tied_parameter_is_kept_once():
    p, q = make([(3,), (2,)])
    arena = Arena([p, q, p])
    assert arena.parameters == (p, q)
    assert arena.sections[0].starts == [0, 8, 16]


def test_slots_have_the_layout_of_the_values():
    arena = Arena(make([(3,), (2,)]))
    (slot,) = arena.slot("velocity")
    assert slot.shape == arena.values[0].shape and not slot.any()
    slot[0] = 1.0
    assert arena.slot("velocity")[0] is slot


def test_a_replaced_array_is_taken_in_again():
    p, q = make([(3,), (2,)])
    arena = Arena([p, q])
    p.array = np.array([7.0, 8.0, 9.0])
    assert arena.gather() == [[False, False]]
    np.testing.assert_array_equal(arena.values[0][:3], [7.0, 8.0, 9.0])
    assert np.shares_memory(p.array, arena.values[0])
    (p * 2.0).sum().backward()
    np.testing.assert_array_equal(arena.grads[0][:3], [2.0, 2.0, 2.0])


def test_a_gradient_from_outside_is_copied_into_the_buffer():
    p, q = make([(3,), (2,)])
    arena = Arena([p, q])
    p.grad = gb.tensor(np.array([1.0, 2.0, 3.0]))
    assert arena.gather() == [[True, False]]
    np.testing.assert_array_equal(arena.grads[0][:3], [1.0, 2.0, 3.0])
    assert p.grad.array is p.grad_buffer


def test_a_leaf_tensor_can_live_in_an_arena():
    x = gb.tensor(np.array([1.0, 2.0]), requires_grad=True)
    arena = Arena([x])
    (x * x).sum().backward()
    assert arena.gather() == [[True]]
    np.testing.assert_array_equal(arena.grads[0][:2], [2.0, 4.0])


def test_a_new_arena_takes_the_parameters_over_and_the_old_one_can_take_them_back():
    p, q = make([(3,), (2,)])
    old = Arena([p, q])
    new = Arena([q])
    assert np.shares_memory(q.array, new.values[0]) and np.shares_memory(p.array, old.values[0])
    q.array[...] = 5.0
    old.gather()
    assert np.shares_memory(q.array, old.values[0]) and (q.numpy() == 5.0).all()


def test_wrong_members_are_refused():
    p = Parameter(np.ones(2))
    with pytest.raises(DTypeError, match="parameter 1 is a ndarray"):
        Arena([p, np.ones(2)])
    with pytest.raises(GradientError, match="result of multiply"):
        Arena([p * 2.0])


def test_a_changed_shape_or_dtype_is_an_error_and_not_a_broadcast():
    p = Parameter(np.ones((2, 2)))
    arena = Arena([p])
    p.array = np.ones(2)
    with pytest.raises(ShapeError, match=r"\(2, 2\) to \(2,\)"):
        arena.gather()
    p.array = np.ones((2, 2), np.float32)
    with pytest.raises(DTypeError, match="float64 to float32"):
        arena.gather()


def test_a_gradient_of_another_shape_is_an_error():
    p = Parameter(np.ones((2, 2)))
    arena = Arena([p])
    p.grad = gb.tensor(np.ones(2))
    with pytest.raises(ShapeError, match=r"\(2, 2\), its gradient \(2,\)"):
        arena.gather()


def test_to_moves_values_gradients_and_slots():
    other = NumPyBackend()
    p, q = make([(3,), (2,)])
    values = p.numpy().copy()
    arena = Arena([p, q])
    (p * 2.0).sum().backward()
    arena.slot("velocity")[0][:3] = 4.0
    assert arena.to(other) is arena
    assert p.backend is q.backend is p.grad.backend is other
    np.testing.assert_array_equal(p.numpy(), values)
    np.testing.assert_array_equal(p.grad.numpy(), [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(arena.slot("velocity")[0][:3], 4.0)
    assert np.shares_memory(p.array, arena.values[0])
    assert p.grad.array is p.grad_buffer and q.grad is None


def test_buffers_follow_a_module_that_was_moved():
    other = NumPyBackend()
    layer = Linear(3, 2)
    arena = Arena(layer.parameters())
    arena.slot("velocity")[0][:] = 4.0
    before = layer.weight.numpy().copy()
    layer.to(other)
    assert layer.weight.backend is other
    assert arena.gather() == [[False, False]]
    assert arena.sections[0].backend is other
    assert np.shares_memory(layer.weight.array, arena.values[0])
    np.testing.assert_array_equal(layer.weight.numpy(), before)
    assert (arena.slot("velocity")[0] == 4.0).all()


def test_members_on_two_devices_at_once_are_an_error():
    p, q = make([(3,), (2,)])
    arena = Arena([p, q])
    other = NumPyBackend()
    other.device = "elsewhere"
    p.array, p.backend = p.array.copy(), other
    with pytest.raises(DeviceError, match="elsewhere, cpu"):
        arena.gather()


def test_two_devices_are_two_sections():
    other = NumPyBackend()
    other.device = "elsewhere"
    p, q = make([(3,), (2,)])
    q.backend = other
    arena = Arena([p, q])
    assert [s.tensors for s in arena.sections] == [[p], [q]]


def test_an_empty_arena():
    arena = Arena([])
    assert arena.values == () and arena.gather() == []
    assert Arena(make([(0,)])).gather() == [[False]]


def test_a_dropped_arena_leaves_its_parameters_usable():
    p = Parameter(np.array([1.0, 2.0]))
    Arena([p])
    (p * 3.0).sum().backward()
    np.testing.assert_array_equal(p.grad.numpy(), [3.0, 3.0])
    assert p.home[0]() is None  # the section did not outlive the arena


def test_zero_grad_forgets_without_writing():
    p = Parameter(np.ones(2))
    arena = Arena([p])
    (p * 3.0).sum().backward()
    arena.zero_grad()
    assert p.grad is None and (arena.grads[0][:2] == 3.0).all()


def test_scalars_have_a_place():
    p = Parameter(np.float64(3.0))
    arena = Arena([p])
    assert p.shape == () and math.prod(arena.values[0].shape) == 8
    (p * p).backward()
    assert p.grad.item() == 6.0


@pytest.mark.gpu
def test_an_arena_goes_to_the_gpu_and_back():
    layer = Linear(5, 3)
    before = layer.state_dict()
    arena = Arena(layer.parameters())
    (layer(gb.tensor(np.ones((2, 5), np.float32)))).sum().backward()
    gradient = layer.weight.grad.numpy().copy()
    arena.to("cuda")
    assert layer.weight.backend is get_backend("cuda")
    assert isinstance(layer.weight.grad, Tensor)
    layer(gb.tensor(np.ones((2, 5), np.float32), device="cuda")).sum().backward()
    np.testing.assert_allclose(layer.weight.grad.numpy(), 2 * gradient, rtol=1e-6)
    arena.to("cpu")
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
