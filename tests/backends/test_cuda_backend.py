"""The CUDA backend's own code, run on a CPU: a fake CuPy below it, the real kernels through the
shim.

The same comparisons run on a real GPU in test_composites.py and test_operations.py, where there is
one.
"""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

import gpubackprop  # noqa: F401 - registers the operations
from gpubackprop import testing
from gpubackprop.autograd import REGISTRY
from gpubackprop.backends import kernel_names, philox
from gpubackprop.backends.base import Backend
from gpubackprop.backends.composites import Composites
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import CUDABackend
from gpubackprop.backends.primitives import Primitives
from gpubackprop.backends.updates import Updates
from tests.backends import test_composites as composites
from tests.backends.support import fake_cupy, shim

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

NUMPY = NumPyBackend()


def make(count: int = 1, index: int = 0) -> CUDABackend:
    """A CUDA backend over a fake CuPy with `count` GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", fake_cupy.FakeCuPy(count))
        return CUDABackend(index)


# One for all tests: tensors of two backends do not mix.
BACKEND = make()


@pytest.fixture
def cuda():
    return BACKEND


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that were launched."""
    names = []
    launch = BACKEND.kernels.launch

    def spy(name, *arguments):
        names.append(name)
        launch(name, *arguments)

    monkeypatch.setattr(BACKEND.kernels, "launch", spy)
    return names


def random(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# Parity with the definitions and with the CPU.


def by_definition(definition, arguments, options, dtype):
    """What the definition gives, for halves computed in float as the kernels do."""
    plain = composites.run(NUMPY, definition, arguments, options, dtype)
    if dtype != "float16":
        return plain
    wide = composites.run(NUMPY, definition, *map(rounded, (arguments, options)), dtype="float32")
    with np.errstate(over="ignore"):
        return [w.astype(p.dtype) for w, p in zip(wide, plain, strict=True)]


def rounded(value):
    """Arrays inside `value` with the values that a half can hold, and its type for a type."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(rounded, value))
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        with np.errstate(over="ignore"):
            half = np.empty_like(value)  # keeps the order of the axes
            half[...] = value.astype(np.float16)
            return half
    return value


@pytest.mark.parametrize("dtype", composites.DTYPES)
@pytest.mark.parametrize("kernel", composites.COMPOSITES)
def test_composites_equal_their_definitions(cuda, kernel, dtype):
    definition = getattr(Backend, kernel)
    tried = 0
    for note, arguments, options in composites.calls_of(kernel):
        if dtype == "float16" and ("large" in note or "about" in note):
            continue  # beyond float16
        what = f"{kernel} {note}"
        found = composites.run(cuda, getattr(cuda, kernel), arguments, options, dtype)
        expected = by_definition(definition.__get__(NUMPY), arguments, options, dtype)
        tried += 1
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        length = max((a.size for a in arrays), default=1)
        scale = 1000.0 if "about" in note else 1.0
        for got, want in zip(found, expected, strict=True):
            assert got.dtype == want.dtype and got.shape == want.shape, what
            testing.require_close(what, got, want, testing.tolerance(dtype, length), scale)
    assert tried >= 5


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("kernel", "used", "options"), composites.CALLS)
def test_updates_equal_their_definitions_bit_for_bit(cuda, kernel, used, options, dtype):
    definition = getattr(Updates, kernel)
    for size in (0, 1, 17, 700):
        arrays = composites.buffers(kernel, used, size, dtype)
        for step in (1, 2, 1000):
            numbers = {**options, "lr": 0.01, "step": step}
            expected = composites.updated(NUMPY, definition.__get__(NUMPY), arrays, **numbers)
            found = composites.updated(cuda, getattr(cuda, kernel), arrays, **numbers)
            for got, want in zip(found, expected, strict=True):
                assert got.dtype == want.dtype
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("kernel", "used", "options"), composites.CALLS)
def test_rate_and_step_are_read_where_they_lie(cuda, launched, kernel, used, options):
    arrays = composites.buffers(kernel, used, 20, "float32")
    expected = composites.updated(cuda, getattr(cuda, kernel), arrays, lr=0.01, step=7, **options)
    places = {n: cuda.asarray(np.array(v)) for n, v in {"lr": 0.01, "step": 7.0}.items()}
    before = cuda.xp.transfers
    ready = [None if a is None else cuda.asarray(a) for a in arrays]
    getattr(cuda, kernel)(*ready, **places, **options)
    assert cuda.xp.transfers == before, "the learning rate was fetched"
    assert len(launched) == 2
    for array, want in zip([a for a in ready if a is not None], expected, strict=True):
        np.testing.assert_array_equal(cuda.to_numpy(array), want)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("op", REGISTRY.values(), ids=list(REGISTRY))
def test_operations_agree_with_the_cpu(cuda, op, dtype):
    for sample in testing.samples_of(op):
        testing.check_parity(op, sample, cuda, dtype)


# Random bits.


def test_bits_and_draws_are_those_of_the_cpu(cuda):
    place = (2**63 + 5, 2**31 + 1, 2**64 - 3)
    for n in (0, 1, 1001):
        bits = cuda.to_numpy(cuda.random_bits(*place, n))
        assert bits.dtype == np.uint32
        np.testing.assert_array_equal(bits, philox.random_bits(*place, n))
    for shape in ((), (0, 3), (7, 11)):
        for p in (0.0, 0.3, 1.0):
            np.testing.assert_array_equal(
                cuda.to_numpy(cuda.bernoulli(shape, p, *place)), NUMPY.bernoulli(shape, p, *place)
            )
        drawn = cuda.to_numpy(cuda.uniform(shape, *place))
        np.testing.assert_array_equal(drawn, NUMPY.uniform(shape, *place))
        assert drawn.dtype == np.float32
    x = random(7, 11)
    for p in (0.0, 0.4, 1.0):
        y, keep = cuda.dropout(cuda.asarray(x), p, *place)
        expected, mask = Composites.dropout(NUMPY, x, p, *place)
        np.testing.assert_array_equal(cuda.to_numpy(keep), mask)
        np.testing.assert_array_equal(cuda.to_numpy(y), expected)


def test_the_offset_may_be_an_array_of_the_device(cuda):
    offset = cuda.asarray(np.array(77, np.uint64))
    before = cuda.xp.transfers
    bits, (_, keep) = (
        cuda.random_bits(1, 2, offset, 9),
        cuda.dropout(cuda.asarray(random(5)), 0.5, 1, 2, offset),
    )
    assert cuda.xp.transfers == before
    np.testing.assert_array_equal(cuda.to_numpy(bits), philox.random_bits(1, 2, 77, 9))
    np.testing.assert_array_equal(cuda.to_numpy(keep), NUMPY.bernoulli((5,), 0.5, 1, 2, 77))


@pytest.mark.parametrize("p", [0.0, 2.0**-33, 2.0**-32, 0.3, 0.5, 1 - 2.0**-33, 1 - 2.0**-32])
def test_the_threshold_of_a_draw_is_exact(cuda, monkeypatch, p):
    seen = []
    monkeypatch.setattr(cuda.kernels, "launch", lambda *arguments: seen.append(arguments))
    cuda.bernoulli((5,), p, 1, 2, 3)
    cuda.dropout(cuda.asarray(random(5)), 1 - p, 1, 2, 3)
    exact = min(round(p * 2**32), 2**32 - 1)
    assert seen[0][5] == exact and seen[1][7] == exact


def test_a_wrong_seed_is_named(cuda):
    with pytest.raises(ValueError, match="seed -1"):
        cuda.random_bits(-1, 0, 0, 4)


# Indexing.


@pytest.mark.parametrize("index", ["int8", "uint16", "int32", "int64"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "bool"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_take_and_its_transpose(cuda, dtype, index, axis):
    x = (random(4, 5, 6) * 9).astype(dtype)
    low = 0 if index.startswith("u") else -4
    indices = np.random.default_rng(1).integers(low, 4, (2, 3)).astype(index)
    on_gpu, places = cuda.asarray(x), cuda.asarray(indices)
    taken = cuda.take(on_gpu, places, axis)
    expected = np.take(x, indices, axis=axis)
    assert taken.dtype == x.dtype
    np.testing.assert_array_equal(cuda.to_numpy(taken), expected)
    if dtype == "bool":
        return
    back = cuda.scatter_take(taken, places, axis, x.shape[axis])
    want = NUMPY.scatter_take(expected, indices.astype(np.int64), axis, x.shape[axis])
    assert back.dtype == want.dtype
    np.testing.assert_allclose(cuda.to_numpy(back), want, rtol=2e-3 if dtype == "float16" else 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_take_along_axis_broadcasts_as_numpy(cuda, dtype):
    x = (random(3, 4, 5) * 9).astype(dtype)
    for shape, axis in (((3, 2, 5), 1), ((1, 2, 5), 1), ((3, 7, 1), 1), ((3, 4, 9), -1)):
        indices = np.random.default_rng(2).integers(-x.shape[axis], x.shape[axis], shape)
        found = cuda.take_along_axis(cuda.asarray(x), cuda.asarray(indices), axis)
        np.testing.assert_array_equal(cuda.to_numpy(found), np.take_along_axis(x, indices, axis))
    small = cuda.take_along_axis(cuda.asarray(x[:1]), cuda.asarray(indices), -1)
    np.testing.assert_array_equal(
        cuda.to_numpy(small), np.take_along_axis(np.broadcast_to(x[:1], x.shape), indices, -1)
    )


def test_an_index_out_of_range_takes_nan_and_its_gradient_goes_nowhere(cuda):
    x, indices = random(3, 2), np.array([0, 3, -4, -1])
    taken = cuda.to_numpy(cuda.take(cuda.asarray(x), cuda.asarray(indices)))
    assert np.isnan(taken).all(axis=1).tolist() == [False, True, True, False]
    by_key = cuda.to_numpy(cuda.getitem(cuda.asarray(x), cuda.asarray(indices)))
    np.testing.assert_array_equal(by_key, taken)
    back = cuda.scatter_take(cuda.asarray(np.ones((4, 2), np.float32)), cuda.asarray(indices), 0, 3)
    assert cuda.to_numpy(back).tolist() == [[1, 1], [0, 0], [1, 1]]
    along = np.array([[0], [2], [-3]])
    taken = cuda.to_numpy(cuda.take_along_axis(cuda.asarray(x), cuda.asarray(along), 1))
    assert np.isnan(taken).ravel().tolist() == [False, True, True]
    back = cuda.scatter_along_axis(
        cuda.asarray(np.ones((3, 1), np.float32)), cuda.asarray(along), 1, 2
    )
    assert cuda.to_numpy(back).tolist() == [[1, 0], [0, 0], [0, 0]]
    with pytest.raises(IndexError, match="no elements"):
        cuda.take(cuda.asarray(x[:0]), cuda.asarray(indices))


@pytest.mark.parametrize(
    "key",
    [
        np.s_[1],
        np.s_[..., ::-2],
        np.s_[:, None, 1:3],
        np.array([2, 0, 2]),
        (slice(None), np.array([[0, 1], [1, -1]])),
        (np.array([0, 1, 1]), np.array([2, 2, -1])),
        np.array([True, False, True]),
        (slice(None), np.array([True, False, True, True])),
        np.arange(12).reshape(3, 4) % 3 == 0,
    ],
    ids=str,
)
def test_getitem_and_its_transpose(cuda, key):
    x = random(3, 4)
    placed = (
        tuple(cuda.asarray(k) if isinstance(k, np.ndarray) else k for k in key)
        if isinstance(key, tuple)
        else cuda.asarray(key)
        if isinstance(key, np.ndarray)
        else key
    )
    y = cuda.getitem(cuda.asarray(x), placed)
    np.testing.assert_array_equal(cuda.to_numpy(y), x[key])
    expected = np.zeros_like(x)
    np.add.at(expected, key, x[key])
    back = cuda.scatter_getitem(y, placed, x.shape)
    np.testing.assert_allclose(cuda.to_numpy(back), expected, rtol=1e-6)


def test_too_many_indices_are_an_index_error(cuda):
    with pytest.raises(IndexError):
        cuda.getitem(cuda.asarray(random(3)), (slice(None), cuda.asarray(np.array([0]))))
    with pytest.raises(TypeError, match="indices must be integers, not float32"):
        cuda.take(cuda.asarray(random(3)), cuda.asarray(random(2)))


# What it launches, and what it does not do.


def test_a_training_step_launches_each_coarse_kernel_once_and_never_waits(cuda, launched):
    x, w, b = (cuda.asarray(a) for a in (random(8, 5), random(10, 5), random(10)))
    target = cuda.asarray(np.arange(8) % 10)
    moments = [cuda.zeros((10, 5), np.float32) for _ in range(2)]
    before = cuda.xp.transfers, cuda.xp.synchronised
    hidden, keep = cuda.dropout(cuda.gelu(x), 0.5, 1, 2, 3)
    logits = cuda.linear(hidden, w, b)
    loss, *spread = cuda.softmax_cross_entropy(logits, target)
    one = cuda.ones((8,), np.float32)
    dy = cuda.softmax_cross_entropy_backward(one, logits, *spread, target)
    dw = cuda.matmul(cuda.transpose(dy), hidden)
    cuda.gelu_backward(cuda.dropout_backward(cuda.matmul(dy, w), keep, 0.5), x)
    cuda.adam_update(w, dw, *moments, lr=0.1, step=1)
    assert launched == [
        *("activation", "dropout", "cross_entropy", "cross_entropy_backward"),
        *("dropout_backward", "activation_backward", "adam"),
    ]
    assert (cuda.xp.transfers, cuda.xp.synchronised) == before
    assert np.isfinite(cuda.to_numpy(loss)).all()
    cuda.synchronize()
    assert cuda.xp.synchronised == before[1] + 1


def test_host_and_device_arrays_do_not_mix(cuda):
    x = cuda.asarray(random(3))
    for call in (
        lambda: cuda.add(x, random(3)),
        lambda: cuda.concatenate([x, random(3)]),
        lambda: cuda.copyto(x, random(3)),
        lambda: np.add(x, random(3)),
        lambda: np.asarray(x),
        lambda: bool(x),
    ):
        with pytest.raises(TypeError):
            call()
    assert cuda.owns(x) and not cuda.owns(random(3)) and not NUMPY.owns(x)


@pytest.mark.parametrize(
    "data", [[1.5, 2], (1, 2), 3, np.float32(2), random(2, 3), random(2, 3).T, [[True], [False]]]
)
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_asarray_reads_what_numpy_reads(cuda, data, dtype):
    found = cuda.to_numpy(cuda.asarray(data, dtype))
    expected = np.asarray(data, dtype)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    again = cuda.asarray(data)
    assert cuda.asarray(again) is again


@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (0, 3), (2, 1, 3)])
@pytest.mark.parametrize("bias", [None, np.float32, np.float64])
def test_linear(cuda, lead, bias):
    x, w = random(*lead, 5), random(6, 5, seed=1)
    b = None if bias is None else random(6, seed=2, dtype=bias)
    found = cuda.linear(*(None if a is None else cuda.asarray(a) for a in (x, w, b)))
    expected = Composites.linear(NUMPY, x, w, b)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(cuda.to_numpy(found), expected, rtol=1e-5, atol=1e-5)


def test_erf_of_integers_and_into_an_array(cuda):
    x = cuda.asarray(np.array([-1, 0, 2]))
    out = cuda.empty((3,), np.float64)
    assert cuda.erf(x, out=out) is out
    np.testing.assert_allclose(cuda.to_numpy(out), NUMPY.erf(np.array([-1, 0, 2])), rtol=1e-15)


def test_updates_of_views_with_gaps_fall_back_to_the_definition(cuda, launched):
    values = random(20)
    param, grad = cuda.asarray(values)[::2], cuda.asarray(values)[1::2]
    cuda.sgd_update(param, grad, None, lr=0.5)
    assert launched == []
    np.testing.assert_allclose(cuda.to_numpy(param), values[::2] - 0.5 * values[1::2], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_updates_in_half_precision_are_one_launch(cuda, launched, dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    param, grad, mean, square = (cuda.asarray(random(33).astype(dtype)) for _ in range(4))
    cuda.sgd_update(param, grad, mean, lr=0.5, momentum=0.5)
    cuda.adagrad_update(param, grad, mean, lr=0.5)
    cuda.rmsprop_update(param, grad, mean, None, square, lr=0.5)
    cuda.adam_update(param, grad, mean, square, lr=0.5, step=1)
    assert launched == ["sgd", "adagrad", "rmsprop", "adam"]


# Several GPUs.


def test_every_kernel_runs_on_its_own_gpu():
    second = make(count=2, index=1)
    assert second.device == "cuda:1"
    x = second.asarray(random(4, 3))
    assert x.device.id == 1 and second.owns(x) and not BACKEND.owns(x)
    for result in (
        second.add(x, 1.0),
        second.softmax(x),
        second.sum(x, axis=0),
        second.random_bits(1, 2, 3, 4),
        second.take(x, second.asarray([0, 2])),
        second.scatter_take(x, second.asarray([0, 2, 1, 0]), 0, 3),
    ):
        assert result.device.id == 1
    assert second.xp.current == 0, "the current device was left changed"
    np.testing.assert_array_equal(second.to_numpy(second.add(x, 1.0)), random(4, 3) + 1)
    with pytest.raises(ValueError, match="current one"):
        second.add(second.xp.asarray(random(4, 3)), 1.0)  # an array of the first GPU


def test_one_gpu_is_not_switched_to():
    assert BACKEND.add.__name__ == "call", "the fake CuPy's own function, without a detour"
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        make(count=1, index=1)


# The real CuPy, as far as it can be asked without a GPU.

needs_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None, reason="CuPy is not installed"
)


@needs_cupy
def test_cupy_has_every_function_that_the_backend_uses():
    import cupy

    missing = [name for name in sorted(fake_cupy._FUNCTIONS) if not hasattr(cupy, name)]
    assert not missing
    assert all(hasattr(cupy.ndarray, name) for name in fake_cupy._METHODS)


@needs_cupy
@pytest.mark.parametrize("kernel", list(Primitives.__annotations__))
def test_cupys_result_types_are_numpys(kernel):
    import cupy

    there, here = getattr(cupy, kernel), getattr(np, kernel)
    long = {"q": "l", "Q": "L"}  # two names of one 64-bit integer
    for code in "?bBhHiIlLefd":
        try:
            expected = here.resolve_dtypes((np.dtype(code),) * here.nin + (None,))[-1].char
        except TypeError:
            continue  # NumPy refuses; what CuPy does then is its own matter
        found = None
        for loop in there.types:
            inputs, _, result = loop.partition("->")
            if inputs.isascii() and all(
                c in "?bBhHiIlLqQefdFD" and np.can_cast(np.dtype(code), np.dtype(c)) for c in inputs
            ):
                found = result
                break
        assert long.get(found, found) == long.get(expected, expected), f"{kernel} of {code}"


def test_every_kernel_of_the_contract_is_there():
    assert all(callable(getattr(BACKEND, name)) for name in kernel_names())


def test_bfloat16_arrays_use_the_kernels(cuda, launched):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x = random(6, 40).astype(bfloat16)
    on_gpu, wide = cuda.asarray(x), x.astype(np.float32)
    for found, expected in (
        (cuda.softmax(on_gpu), Composites.softmax(NUMPY, wide)),
        (cuda.gelu(on_gpu), Composites.gelu(NUMPY, wide)),
        (cuda.erf(on_gpu), NUMPY.erf(wide)),
        (cuda.take(on_gpu, cuda.asarray([5, 0])), wide[[5, 0]]),
    ):
        assert found.dtype == bfloat16
        values = cuda.to_numpy(found).astype(np.float32)
        np.testing.assert_allclose(values, expected, rtol=2.0**-7, atol=2.0**-7)
    assert launched == ["softmax", "activation", "activation", "take"]
