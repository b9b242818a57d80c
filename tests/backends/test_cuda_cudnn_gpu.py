"""cuDNN on a GPU: parity with the plain kernels, repeatable bits, graphs, measured choices."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from gpubackprop.backends import detect, get_backend
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import CUDABackend
from gpubackprop.backends.cuda import choices as tables
from tests.backends.support import convolution_cases
from tests.backends.support.convolution_cases import fill
from tests.backends.test_cuda_cudnn import cast, expected_of, own_attention, require_close
from tests.compile.test_cudnn_captured import Training, pictures

pytestmark = pytest.mark.gpu

NUMPY = NumPyBackend()
KERNELS = ("conv", "conv_transpose", "conv_weight")
DTYPES = {
    "float32": (np.dtype(np.float32), 5e-5),
    "float16": (np.dtype(np.float16), 4e-3),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), 3e-2),
}
# Layers of a ResNet on small pictures: shape of x, outputs, kernel, stride, padding.
LAYERS = (
    ((16, 32, 32, 64), 64, 3, 1, 1),
    ((16, 32, 32, 64), 128, 3, 2, 1),
    ((16, 32, 32, 64), 128, 1, 2, 0),
    ((16, 32, 32, 3), 64, 3, 1, 1),
)


@pytest.fixture(scope="module", autouse=True)
def _cudnn_is_there():
    problem = detect.cudnn_problem()
    if problem is not None:
        pytest.skip(f"no usable cuDNN: {problem}")


@pytest.fixture
def cudnn():
    return CUDABackend(0, cudnn="always")


@pytest.fixture
def ran(cudnn, monkeypatch):
    """How often cuDNN ran."""
    assert cudnn.cudnn.active
    count = []
    run = cudnn.cudnn.library.run
    monkeypatch.setattr(cudnn.cudnn.library, "run", lambda *a: (count.append(1), run(*a)) and None)
    return count


def call(cuda, kernel, *arguments, **options):
    ready = [cuda.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
    found = getattr(cuda, kernel)(*ready, **options)
    return [cuda.to_numpy(a) for a in (found if isinstance(found, tuple) else (found,))]


def layer(shape, outputs, kernel, stride, padding):
    """Arguments of the three kernels for a layer."""
    geometry = ((stride,) * 2, ((padding,) * 2,) * 2, (1, 1), 1)
    out = (shape[1] + 2 * padding - kernel) // stride + 1
    x, weight = fill(shape, 1), fill((outputs, shape[3], kernel, kernel), 2) * 0.05
    dy, bias = fill((shape[0], out, out, outputs), 3), fill((outputs,), 4)
    yield "conv", (x, weight, bias, *geometry)
    yield "conv_transpose", (dy, weight, shape[1:3], *geometry)
    yield "conv_weight", (x, dy, (kernel, kernel), *geometry)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_convolutions_agree_with_the_contract(cudnn, ran, kernel, dtype):
    kind, size = DTYPES[dtype]
    cases = 0
    for note, arguments, options in convolution_cases.cases(kernel):
        arguments = [cast(a, kind) for a in arguments]
        found = call(cudnn, kernel, *arguments, **options)
        require_close(found, expected_of(kernel, arguments, options), size, note)
        assert found[0].dtype == kind
        cases += 1
    # Engines may be missing for odd geometries, not for most of them.
    assert len(ran) > cases // 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", LAYERS, ids=str)
def test_layers_agree_with_the_plain_path(cudnn, ran, sizes, dtype):
    kind, size = DTYPES[dtype]
    plain = CUDABackend(0, cudnn="never")
    for kernel, arguments in layer(*sizes):
        given = [cast(a, kind) for a in arguments]
        ours = call(plain, kernel, *given)
        require_close(
            call(cudnn, kernel, *given), [a.astype(np.float64) for a in ours], size, kernel
        )
    assert len(ran) == 3


def test_float32_is_float32_unless_tf32_was_asked_for(cudnn, ran):
    for kernel, arguments in layer(*LAYERS[0]):
        given = [cast(a, np.float32) for a in arguments]
        expected = expected_of(kernel, given, {})[0]
        scale = np.abs(expected).max()
        errors = []
        for precision in ("float32", "tf32"):
            cudnn.precision = precision
            found = call(cudnn, kernel, *given)[0]
            errors.append(np.abs(found - expected).max() / scale)
        assert errors[0] < 3e-5 and errors[1] < 3e-3, (kernel, errors)
    assert len(ran) == 6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_agrees_with_the_contract(cudnn, ran, dtype):
    """The logarithms of the sums too: the plain path's backward pass may read them."""
    kind, size = DTYPES[dtype]
    for note, given, view, options in own_attention():
        given = [cast(a, kind) for a in given]
        there = view(cudnn, *map(cudnn.asarray, given))
        wide = view(NUMPY, *(a.astype(np.float64) for a in given))
        y, lse = cudnn.attention(*there, None, **options)
        expected = expected_of("attention", (*wide, None), options)
        require_close([cudnn.to_numpy(a) for a in (y, lse)], expected, size, note)
        dy = fill(y.shape, 9).astype(kind)
        grads = cudnn.attention_backward(cudnn.asarray(dy), *there, None, y, lse, **options)
        saved = [cudnn.to_numpy(a).astype(np.float64) for a in (y, lse)]
        arguments = (dy.astype(np.float64), *wide, None, *saved)
        expected = expected_of("attention_backward", arguments, options)
        require_close([cudnn.to_numpy(a) for a in grads], expected, 2 * size, note)
    assert ran


def test_both_sides_of_attention_can_follow_each_other(cudnn):
    plain = CUDABackend(0, cudnn="never")
    q, k, v, dy = (fill((2, 4, 300, 64), s).astype(np.float16) for s in (1, 2, 3, 4))
    options = {"causal": True, "scale": 0.125}
    found = []
    for first, second in ((cudnn, cudnn), (cudnn, plain), (plain, cudnn), (plain, plain)):
        y, lse = call(first, "attention", q, k, v, None, **options)
        found.append(call(second, "attention_backward", dy, q, k, v, None, y, lse, **options))
    for grads in found[:3]:
        require_close(grads, [g.astype(np.float64) for g in found[3]], 5e-3, "gradients")


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_the_same_every_time(cudnn, ran, dtype):
    kind, _ = DTYPES[dtype]
    jobs = [(k, [cast(a, kind) for a in given]) for k, given in layer(*LAYERS[1])]
    first = [call(cudnn, kernel, *given)[0] for kernel, given in jobs]
    for _ in range(5):
        for (kernel, given), bits in zip(jobs, first, strict=True):
            np.testing.assert_array_equal(call(cudnn, kernel, *given)[0], bits)
    if dtype == "float32":
        return
    q, k, v, dy = (fill((4, 8, 512, 64), s).astype(kind) for s in (1, 2, 3, 4))
    y, lse = call(cudnn, "attention", q, k, v, None, causal=True, scale=0.125)
    arguments = (dy, q, k, v, None, y, lse)
    grads = call(cudnn, "attention_backward", *arguments, causal=True, scale=0.125)
    for _ in range(5):
        again = call(cudnn, "attention_backward", *arguments, causal=True, scale=0.125)
        for got, want in zip(again, grads, strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_graph_holds_what_cudnn_runs(cudnn, ran):
    """Nothing is waited for, copied from the host or asked of the driver: each would end the
    capture. Replays read what the arrays hold by then."""
    cupy, half = cudnn.xp, np.float16
    jobs = [(k, [cast(a, half) for a in given]) for k, given in layer(*LAYERS[1])]
    ready = [
        (k, [cudnn.asarray(a) if isinstance(a, np.ndarray) else a for a in given])
        for k, given in jobs
    ]
    q, dy = (cudnn.asarray(fill((2, 4, 128, 64), s).astype(half)) for s in (1, 2))

    def step():
        found = [getattr(cudnn, kernel)(*given) for kernel, given in ready]
        y, lse = cudnn.attention(q, q, q, None, causal=True, scale=0.125)
        found += [y, lse]
        backward = cudnn.attention_backward
        return found + list(backward(dy, q, q, q, None, y, lse, causal=True, scale=0.125))

    step()
    cudnn.synchronize()
    settled = len(ran)
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        results = step()
        graph = stream.end_capture()
    assert len(ran) == 2 * settled == 10, "the capture took the plain path"
    for factor in (1, 2):
        for array in (ready[0][1][0], q):
            cudnn.multiply(array, half(factor), out=array)
        cudnn.synchronize()
        graph.launch(stream)
        stream.synchronize()
        for got, want in zip(results, step(), strict=True):
            np.testing.assert_array_equal(cudnn.to_numpy(got), cudnn.to_numpy(want))


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed"])
def test_a_compiled_step_with_plans_of_cudnn_is_one_launch(cudnn, ran, precision):
    training = Training(pictures, cudnn, precision)
    losses = training.losses(10)
    assert "calls are one launch with" in training.run.explain(), training.run.explain()
    count = len(ran)
    losses += training.losses(5)
    assert len(ran) == count > 0, "a plan was run from the host"
    plain = Training(pictures, get_backend("cpu"), precision, compiled=False)
    digits = 1e-4 if precision == "float32" else 2e-2
    np.testing.assert_allclose(losses, plain.losses(15), rtol=digits)


def test_the_faster_side_is_measured_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUBACKPROP_CACHE", str(tmp_path))
    kernel, arguments = next(layer(*LAYERS[0]))
    given = [cast(a, np.float16) for a in arguments]
    cuda = CUDABackend(0, cudnn="auto")
    first = call(cuda, kernel, *given)[0]
    (table,) = tables.saved()
    ((_, choice),) = table.choices.items()
    assert choice.reason == "measured" and min(choice.seconds.values()) > 0
    before = table.path.stat().st_mtime_ns
    np.testing.assert_array_equal(call(cuda, kernel, *given)[0], first)
    np.testing.assert_array_equal(call(CUDABackend(0, cudnn="auto"), kernel, *given)[0], first)
    assert table.path.stat().st_mtime_ns == before
