"""Shapes, broadcasting and indexing against NumPy, on whatever Hypothesis comes up with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gpubackprop as gb

SOME = settings(max_examples=60)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
BINARY = {
    "add": (np.add, lambda a, b: (np.ones_like(a + b), np.ones_like(a + b))),
    "subtract": (np.subtract, lambda a, b: (np.ones_like(a + b), -np.ones_like(a + b))),
    "multiply": (np.multiply, lambda a, b: (b + 0 * a, a + 0 * b)),
    "divide": (np.divide, lambda a, b: (1 / b + 0 * a, -a / b**2)),
}


def values(shape, seed, low=0.5):
    return np.asarray(np.random.default_rng(seed).uniform(low, low + 2, shape))


def unbroadcast(g, shape):
    """Sum over what broadcasting repeated, by NumPy."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=axes, keepdims=True).reshape(shape)


def cotangent(shape):
    return np.arange(1.0, np.prod(shape, dtype=int) + 1).reshape(shape)


@pytest.mark.parametrize("name", BINARY)
@SOME
@given(
    shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=4),
    dtypes=st.tuples(*[st.sampled_from(["float32", "float64"])] * 2),
)
def test_broadcasting(name, shapes, dtypes):
    function, slopes = BINARY[name]
    a, b = (values(shapes.input_shapes[k], k).astype(dtypes[k]) for k in (0, 1))
    x, y = gb.tensor(a, requires_grad=True), gb.tensor(b, requires_grad=True)
    z = getattr(gb, name)(x, y)
    expected = function(a, b)
    assert z.dtype == expected.dtype and z.shape == expected.shape == shapes.result_shape
    np.testing.assert_array_equal(z.numpy(), expected)
    dz = cotangent(z.shape)
    z.backward(dz)
    for t, slope in zip((x, y), slopes(a.astype(float), b.astype(float)), strict=True):
        assert t.grad.shape == t.shape and t.grad.dtype == t.dtype
        np.testing.assert_allclose(
            t.grad.numpy(),
            unbroadcast(dz * slope, t.shape),
            rtol=2e-5 if "float32" in dtypes else 1e-12,
        )


@SOME
@given(data=st.data(), shape=SHAPES)
def test_reductions(data, shape):
    axes = st.one_of(
        st.none(),
        st.integers(-len(shape), len(shape) - 1) if shape else st.none(),
        hnp.valid_tuple_axes(len(shape)),
    )
    axis, keepdims = data.draw(axes), data.draw(st.booleans())
    a = values(shape, 3)
    x = gb.tensor(a, requires_grad=True)
    y = gb.sum(x, axis=axis, keepdims=keepdims)
    expected = np.sum(a, axis=axis, keepdims=keepdims)
    assert y.shape == np.shape(expected)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12)
    dy = cotangent(y.shape)
    y.backward(dy)
    kept = np.sum(a, axis=axis, keepdims=True).shape
    np.testing.assert_array_equal(x.grad.numpy(), np.broadcast_to(dy.reshape(kept), shape))


@SOME
@given(data=st.data(), shape=SHAPES)
def test_transpose_and_reshape(data, shape):
    a = values(shape, 5)
    axes = data.draw(st.one_of(st.none(), st.permutations(range(len(shape))).map(tuple)))
    x = gb.tensor(a, requires_grad=True)
    y = gb.transpose(x, axes)
    np.testing.assert_array_equal(y.numpy(), np.transpose(a, axes))
    flat = y.reshape(-1)
    np.testing.assert_array_equal(flat.numpy(), np.transpose(a, axes).reshape(-1))
    dy = cotangent(flat.shape)
    flat.backward(dy)
    order = range(len(shape))[::-1] if axes is None else axes
    back = dy.reshape(y.shape).transpose(np.argsort(list(order)).astype(int))
    np.testing.assert_array_equal(x.grad.numpy(), back)


def check_indexing(a, key):
    """Values and gradient of ``a[key]``; the gradient is a scatter that adds."""
    x = gb.tensor(a, requires_grad=True)
    y = x[key]
    expected = a[key]
    assert y.shape == np.shape(expected)
    np.testing.assert_array_equal(y.numpy(), expected)
    dy = cotangent(y.shape)
    y.backward(dy)
    scattered = np.zeros_like(a)
    np.add.at(scattered, key, dy)
    np.testing.assert_array_equal(x.grad.numpy(), scattered)


@SOME
@given(data=st.data(), shape=SHAPES)
def test_basic_indexing(data, shape):
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    check_indexing(values(shape, 7), key)


@SOME
@given(data=st.data(), shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
def test_indexing_by_arrays(data, shape):
    result = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)
    check_indexing(
        values(shape, 9), data.draw(hnp.integer_array_indices(shape, result_shape=result))
    )


@SOME
@given(data=st.data(), shape=hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4))
def test_indexing_by_slices_and_arrays_together(data, shape):
    entries = [
        data.draw(
            st.one_of(
                st.slices(n),
                st.integers(-n, n - 1),
                hnp.arrays(np.int64, st.integers(0, 3), elements=st.integers(-n, n - 1)),
            )
        )
        for n in shape[:-1]
    ]
    lengths = {len(e) for e in entries if isinstance(e, np.ndarray)}
    if len(lengths) > 1:  # index arrays must broadcast
        entries = [e[:1] if isinstance(e, np.ndarray) else e for e in entries]
        if 0 in lengths:
            entries = [e[:0] if isinstance(e, np.ndarray) else e for e in entries]
    check_indexing(values(shape, 11), tuple(entries))


@SOME
@given(a=hnp.arrays(np.bool_, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)))
def test_indexing_by_a_mask(a):
    check_indexing(values(a.shape, 13), a)
    check_indexing(values((*a.shape, 2), 13), a)


@SOME
@given(data=st.data(), shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
def test_take_with_repeats(data, shape):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    n = shape[axis]
    indices = data.draw(
        hnp.arrays(
            np.int64,
            hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=5),
            elements=st.integers(-n, n - 1),
        )
    )
    a = values(shape, 15)
    x = gb.tensor(a, requires_grad=True)
    y = gb.take(x, gb.tensor(indices), axis=axis)
    np.testing.assert_array_equal(y.numpy(), np.take(a, indices, axis=axis))
    dy = cotangent(y.shape)
    y.backward(dy)
    scattered = np.zeros_like(a)
    key = [slice(None)] * len(shape)
    key[axis] = indices
    np.add.at(scattered, tuple(key), dy)
    np.testing.assert_array_equal(x.grad.numpy(), scattered)


@SOME
@given(
    lead=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, min_side=1, max_side=3),
    sizes=st.tuples(*[st.integers(0, 4)] * 3),
)
def test_matmul(lead, sizes):
    n, k, m = sizes
    a = values((*lead.input_shapes[0], n, k), 17)
    b = values((*lead.input_shapes[1], k, m), 19)
    x, y = gb.tensor(a, requires_grad=True), gb.tensor(b, requires_grad=True)
    z = x @ y
    np.testing.assert_allclose(z.numpy(), a @ b, rtol=1e-12)
    dz = cotangent(z.shape)
    z.backward(dz)
    pairs = ((x, dz @ np.swapaxes(b, -1, -2)), (y, np.swapaxes(a, -1, -2) @ dz))
    for t, g in pairs:
        np.testing.assert_allclose(t.grad.numpy(), unbroadcast(g, t.shape), rtol=1e-12)


@SOME
@given(
    data=st.data(),
    shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
    pieces=st.integers(1, 4),
)
def test_concatenate_and_split_are_inverse(data, shape, pieces):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = [gb.tensor(values(shape, k), requires_grad=True) for k in range(pieces)]
    joined = gb.concatenate(parts, axis=axis)
    np.testing.assert_array_equal(
        joined.numpy(), np.concatenate([p.numpy() for p in parts], axis=axis)
    )
    again = gb.split(joined, pieces, axis=axis)
    total = 0.0
    for k, (part, piece) in enumerate(zip(parts, again, strict=True)):
        np.testing.assert_array_equal(part.numpy(), piece.numpy())
        total = total + piece.sum() * (k + 1.0)
    total.backward()
    for k, part in enumerate(parts):
        np.testing.assert_array_equal(part.grad.numpy(), np.full(shape, k + 1.0))
