"""Parameters: ownership of memory, accumulation into a buffer, writing in place."""

import copy

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.autograd import Tensor
from gpubackprop.errors import DTypeError, ShapeError
from gpubackprop.nn import Arena, Parameter


def test_it_owns_its_memory():
    source = np.ones((2, 3), np.float32)
    p = Parameter(source)
    p.array[...] = 5.0
    assert (source == 1.0).all()
    assert p.requires_grad and p.is_leaf and p.dtype == np.float32


def test_numbers_become_float32_and_a_tensor_keeps_its_dtype():
    assert Parameter([1.0, 2.0]).dtype == np.float32
    assert Parameter(gb.tensor(np.zeros(3))).dtype == np.float64


def test_integers_are_refused():
    with pytest.raises(DTypeError, match="int64.*float dtype"):
        Parameter(np.arange(3))


def test_gradients_add_up_without_an_arena():
    p = Parameter(np.array([1.0, 2.0]))
    (p * 3.0).sum().backward()
    (p * 3.0).sum().backward()
    np.testing.assert_array_equal(p.grad.numpy(), [6.0, 6.0])


def test_the_first_gradient_after_clearing_overwrites_the_buffer():
    p = Parameter(np.array([1.0, 2.0]))
    arena = Arena([p])
    arena.grads[0][...] = np.nan  # what an earlier pass may have left
    (p * 3.0).sum().backward()
    assert p.grad.array is p.grad_buffer
    np.testing.assert_array_equal(p.grad.numpy(), [3.0, 3.0])
    (p * 4.0).sum().backward()
    assert p.grad.array is p.grad_buffer
    np.testing.assert_array_equal(arena.grads[0][:2], [7.0, 7.0])
    p.grad = None
    (p * 5.0).sum().backward()
    np.testing.assert_array_equal(arena.grads[0][:2], [5.0, 5.0])


def test_a_parameter_used_twice_in_one_pass_gets_both_parts():
    p = Parameter(np.array([1.0, 2.0]))
    Arena([p])
    (p * p).sum().backward()
    np.testing.assert_array_equal(p.grad.numpy(), [2.0, 4.0])


def test_a_gradient_that_is_recorded_stays_outside_the_buffer():
    p = Parameter(np.array([1.0, 2.0]))
    Arena([p])
    (p * p * p).sum().backward(create_graph=True)
    assert p.grad.node is not None
    (second,) = gb.grad(p.grad.sum(), p)
    np.testing.assert_allclose(second.numpy(), [6.0, 12.0])


def test_copy_writes_in_place_and_casts():
    p = Parameter(np.zeros((2, 2), np.float32))
    array = p.array
    assert p.copy_(np.arange(4.0).reshape(2, 2)) is p
    assert p.array is array
    np.testing.assert_array_equal(p.numpy(), [[0, 1], [2, 3]])
    p.copy_(Tensor(np.ones((2, 2), np.float32), p.backend))
    assert (array == 1.0).all()


def test_copy_refuses_other_shapes_and_kinds():
    p = Parameter(np.zeros((2, 2)))
    with pytest.raises(ShapeError, match=r"\(2, 2\).*\(2,\)"):
        p.copy_(np.zeros(2))
    with pytest.raises(ShapeError):
        p.copy_(1.0)  # no broadcasting: it would hide a mistake
    with pytest.raises(DTypeError, match="complex"):
        p.copy_(np.zeros((2, 2), complex))
    assert (p.numpy() == 0.0).all()


def test_deepcopy_is_a_parameter_of_its_own():
    p = Parameter(np.array([1.0, 2.0]), requires_grad=False)
    Arena([p])
    twin = copy.deepcopy(p)
    twin.array[...] = 9.0
    assert isinstance(twin, Parameter) and not twin.requires_grad and twin.grad_buffer is None
    assert twin.backend is p.backend
    np.testing.assert_array_equal(p.numpy(), [1.0, 2.0])
