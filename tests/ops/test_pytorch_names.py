"""Names and keywords that users of PyTorch expect."""

from __future__ import annotations

import re

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.data import ArrayDataset, TensorDataset
from gpubackprop.errors import ConfigError, DTypeError, ShapeError

X = np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize("make", [gb.rand, gb.randn])
def test_random_tensors(make):
    x = make(3, 4, requires_grad=True)
    assert x.shape == (3, 4) and x.dtype == np.float32 and x.requires_grad and x.is_leaf
    assert make((3, 4), dtype=np.float64).dtype == np.float64
    assert make().shape == () and make([0, 2]).shape == (0, 2)
    gb.manual_seed(3)
    first, second = make(5), make(5)
    gb.manual_seed(3)
    assert np.array_equal(make(5).numpy(), first.numpy())
    assert not np.array_equal(first.numpy(), second.numpy())
    a, b = (make(5, generator=gb.Generator(1)).numpy() for _ in range(2))
    assert np.array_equal(a, b)
    with pytest.raises(ShapeError, match=f"{make.__name__}: lengths of axes"):
        make(2.5)
    with pytest.raises(ShapeError):
        make(-1)


def test_their_distributions():
    x = gb.randn(20_000, generator=gb.Generator(0)).numpy()
    assert abs(x.mean()) < 0.03 and abs(x.std() - 1) < 0.03
    x = gb.rand(20_000, generator=gb.Generator(0)).numpy()
    assert 0 <= x.min() and x.max() < 1 and abs(x.mean() - 0.5) < 0.01


def test_from_numpy_shares_memory():
    x = np.ones(3)
    t = gb.from_numpy(x)
    assert t.dtype == np.float64 and np.shares_memory(t.numpy(), x)
    with pytest.raises(DTypeError, match="list is no numpy.ndarray"):
        gb.from_numpy([1.0])


def test_numel_and_cat():
    x = gb.tensor(X)
    assert x.numel() == 6
    assert gb.cat([x, x], dim=1).shape == (2, 6)
    assert np.array_equal(gb.cat([x, x]).numpy(), np.concatenate([X, X]))


def test_tensor_dataset():
    assert TensorDataset is ArrayDataset
    data = TensorDataset(gb.tensor(X), gb.tensor([0, 1]))
    assert np.array_equal(data[np.array([1])][0], X[1:])


@pytest.mark.parametrize("name", ["sum", "prod", "mean", "any", "all", "logsumexp", "argmax"])
@pytest.mark.parametrize("keep", [False, True])
def test_dim_is_axis(name, keep):
    x = gb.tensor(X > 1 if name in ("any", "all") else X)
    found = getattr(x, name)(dim=1, keepdim=keep).numpy()
    expected = getattr(x, name)(axis=1, keepdims=keep).numpy()
    assert np.array_equal(found, expected) and found.shape == expected.shape
    with pytest.raises(ConfigError, match=f"{name}: axis=0 and dim=1 name the same thing"):
        getattr(x, name)(0, dim=1)


@pytest.mark.parametrize(("name", "index"), [("max", "argmax"), ("min", "argmin")])
def test_extremes_along_dim_come_with_their_places(name, index):
    x = gb.tensor(np.array([[1.0, 3.0, 2.0], [0.0, -1.0, 5.0]]), requires_grad=True)
    values, indices = getattr(x, name)(dim=-1)
    assert np.array_equal(values.numpy(), getattr(np, name)(x.detach().numpy(), -1))
    assert np.array_equal(indices.numpy(), getattr(np, index)(x.detach().numpy(), -1))
    values.sum().backward()
    assert np.array_equal(
        np.take_along_axis(x.grad.numpy(), indices.numpy()[:, None], 1), [[1], [1]]
    )
    pair = getattr(x, name)(dim=0, keepdim=True)
    assert pair.values.shape == pair.indices.shape == (1, 3)
    assert getattr(x, name)(axis=-1).shape == (2,)


WRONG_DTYPES = [
    (lambda: gb.ones((4, 6), "flot32"), "unknown dtype 'flot32'; did you mean 'float32'?"),
    (lambda: gb.ones(3).astype("flot32"), "did you mean 'float32'?"),
    (lambda: gb.tensor([1.0], "int46"), "did you mean 'int64'?"),
    (lambda: gb.arange(3, dtype="(2,"), "unknown dtype '(2,'; allowed: float16, float32"),
    (lambda: gb.ones(4, 6), "unknown dtype 6; allowed.*one argument, such as (4, 6)"),
    (lambda: gb.rand(3, dtype="flot32"), "did you mean 'float32'?"),
    (lambda: gb.nn.Linear(2, 3, dtype="flot32"), "did you mean 'float32'?"),
    (lambda: gb.nn.BatchNorm2d(3, affine=False, dtype="flot32"), "did you mean 'float32'?"),
    (lambda: gb.nn.Linear(2, 3).to(dtype="flot32"), "did you mean 'float32'?"),
]


@pytest.mark.parametrize(("make", "words"), WRONG_DTYPES, ids=range(len(WRONG_DTYPES)))
def test_a_wrong_dtype_is_named(make, words):
    with pytest.raises(DTypeError, match=re.escape(words).replace(r"\.\*", ".*")):
        make()


def test_modules_change_their_dtype():
    net = gb.nn.Sequential(gb.nn.Linear(2, 3), gb.nn.BatchNorm1d(3))
    for method, name in (("double", "float64"), ("half", "float16"), ("float", "float32")):
        assert getattr(net, method)() is net
        assert {p.dtype.name for p in net.parameters()} == {name}


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_takes_its_axis_by_place(name):
    x = gb.tensor(X)
    expected = getattr(gb.nn.functional, name)(x, 0).numpy()
    method = getattr(x, name)
    for found in (method(0), method(dim=0), method(axis=0), getattr(x.T, name)().T):
        np.testing.assert_array_equal(found.numpy(), expected)
