"""Products that take activations and sums along, over a stand-in for cuBLASLt: every epilogue, what
is beside the matrices, and what becomes of it where the library has no such thing.

What only the real library can show is in test_cuda_products_gpu.py.
"""

from __future__ import annotations

import sys
import threading
import warnings

import numpy as np
import pytest

from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import CUDABackend, matrices
from gpubackprop.backends.joined import JoinedKernels, mask_shape
from tests.backends.support import fake_cupy, fake_lt, shim
from tests.backends.test_cuda_products import (
    UNITS,
    close,
    every_other,
    library,  # noqa: F401
    on_gpu,
    random,
    transposed,
    wide,
    with_gaps,
)

MISSING = fake_lt.missing() or shim.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "gcc is there")

NUMPY = NumPyBackend()
DTYPES = ["float32", "float16", "bfloat16"]
ACTIVATIONS = ["relu", "gelu_tanh"]


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.FakeCuPy())
    return CUDABackend()


@pytest.fixture
def lt(library):  # noqa: F811
    """The stand-in's numbers, put back at the end."""
    yield library
    for name, value in {"without": 0, "keeps_nan": 1, "slope": 0, "refuse": 0}.items():
        library.set(name, value)


def layer(cuda, dtype="float32", lead=(6,), k=5, n=16):
    return [cuda.asarray(random(s, dtype, i)) for i, s in enumerate(((*lead, k), (n, k), (n,)))]


def expected(kernel, *args):
    """What a kernel gives by its definition, in float64."""
    given = [wide(a.on_host) if isinstance(a, fake_cupy.ndarray) else a for a in args]
    return getattr(JoinedKernels, kernel)(NUMPY, *given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_forwards(cuda, lt, dtype, activation, keep, biased):
    for lead in ((6,), (1,), (2, 3)):
        x, w, b = layer(cuda, dtype, lead)
        args = (x, w, b if biased else None, activation, keep)
        assert cuda.joins("linear_activation", *args)
        before = lt("calls")
        y, kept = cuda.linear_activation(*args)
        assert lt("calls") == before + 1
        function = f"{activation}_kept" if keep else activation
        assert lt("epilogue") == matrices.EPILOGUES[biased, function]
        want, z = expected("linear_activation", *args)
        assert y.dtype == x.dtype
        close(cuda.to_numpy(y), want, dtype, 5)
        if not keep:
            assert kept is None
        elif activation == "relu":
            assert (kept.shape, kept.dtype) == (mask_shape(y.shape), np.uint8)
        else:
            close(cuda.to_numpy(kept), z, dtype, 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("n", [8, 128, 136])
def test_backwards(cuda, lt, dtype, activation, summed, n):
    for lead in ((6,), (1,), (2, 3)):
        x, w, b = layer(cuda, dtype, lead, n=n)
        y, kept = cuda.linear_activation(x, w, b, activation, True)
        value, kept = (y, kept) if activation == "relu" else (kept, None)
        dy, above = random((*lead, 9), dtype, 3), random((9, n), dtype, 4)
        turned = transposed if len(lead) == 1 else np.copy  # else the rows are no matrix's
        for first, second in ((np.copy, np.copy), (np.copy, transposed), (turned, with_gaps)):
            args = (on_gpu(cuda, first(dy)), on_gpu(cuda, second(above)), value, kept)
            dz, total = cuda.matmul_activation_backward(*args, activation, summed)
            assert lt("epilogue") == matrices.EPILOGUES[summed, f"{activation}_backward"]
            want, sums = expected("matmul_activation_backward", *args, activation, summed)
            close(cuda.to_numpy(dz), want, dtype, 9)
            assert (total is None) == (not summed)
            if summed:
                near = 9 * UNITS[dtype] * (2 + np.abs(want).reshape(-1, n).sum(axis=0))
                np.testing.assert_array_less(np.abs(wide(cuda.to_numpy(total)) - sums), near)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [np.copy, transposed, with_gaps, every_other])
def test_row_sums(cuda, lt, dtype, layout):
    args = [on_gpu(cuda, layout(random((7, 80), dtype))), cuda.asarray(random((80, 5), dtype, 1))]
    y, sums = cuda.matmul_row_sums(*args)
    assert lt("epilogue") == matrices.EPILOGUES[True, "row_sums"] == 512
    want = expected("matmul_row_sums", *args)
    close(cuda.to_numpy(y), want[0], dtype, 80)
    close(cuda.to_numpy(sums), want[1], dtype, 80)


def test_precision_holds_for_them_too(cuda, lt):
    x, w, b = layer(cuda)
    cuda.precision = "tf32"
    for kernel, args in (
        ("linear_activation", (x, w, b, "relu")),
        ("matmul_row_sums", (w, x.T.copy())),
    ):
        getattr(cuda, kernel)(*args)
        assert lt("compute") == 77 and lt("epilogue") > 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("without", ["first", "last", "both"])
def test_what_the_library_lacks_is_done_as_before_without_a_word(cuda, lt, activation, without):
    x, w, b = layer(cuda)
    dy, above = cuda.asarray(random((6, 9), seed=3)), cuda.asarray(random((9, 16), seed=4))
    epilogues = [matrices.EPILOGUES[True, f"{activation}_{way}"] for way in ("kept", "backward")]

    def both():
        y, kept = cuda.linear_activation(x, w, b, activation, True)
        value, mask = (y, kept) if activation == "relu" else (kept, None)
        back = (dy, above, value, mask, activation, True)
        for got, want in zip(
            (y, *cuda.matmul_activation_backward(*back)),
            (
                expected("linear_activation", x, w, b, activation)[0],
                *expected("matmul_activation_backward", *back),
            ),
            strict=True,
        ):
            close(cuda.to_numpy(got), want, "float32", 9 * 6)

    both()
    for kept in (cuda._signatures, cuda._library._plans, cuda._trials):
        kept.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if without == "both":
            lt.set("refuse", 1)
        else:
            lt.set("without", epilogues[without == "last"])
        both()
    assert not cuda._refusals


def test_the_memory_of_an_older_mask_is_not_read(cuda, lt):
    """A mask that the library could not write lies where it wrote another one."""
    x, w, b = layer(cuda)
    dy, above = cuda.asarray(random((6, 9), seed=3)), cuda.asarray(random((9, 16), seed=4))
    place = [cuda.empty((6, 16), np.float32), cuda.empty(mask_shape((6, 16)), np.uint8)]
    cuda.written_to(place, cuda.linear_activation, x, w, b, "relu", True)
    assert int(place[1].data.ptr) in cuda._masks
    lt.set("without", matrices.EPILOGUES[True, "relu_kept"])
    cuda._signatures.clear()
    cuda._library._plans.clear()
    for _ in range(2):
        asked = lt("asked")
        assert cuda._product(x, w.T, place[0], b, "relu_kept", auxiliary=place[1]) is None
    assert lt("asked") == asked, "a refusal is remembered"
    negative = cuda.negative(x)
    cuda.written_to(place, cuda.linear_activation, negative, w, b, "relu", True)
    args = (dy, above, *place, "relu", True)
    for got, want in zip(
        cuda.matmul_activation_backward(*args),
        expected("matmul_activation_backward", *args),
        strict=True,
    ):
        close(cuda.to_numpy(got), want, "float32", 9 * 6)


def test_results_are_written_where_they_shall_lie(cuda, lt, monkeypatch):
    x, w, b = layer(cuda)
    dy, above = cuda.asarray(random((6, 9), seed=3)), cuda.asarray(random((9, 16), seed=4))
    assert asked(cuda) == ALL
    monkeypatch.setattr(cuda, "copyto", lambda *_: pytest.fail("copied"))
    for activation in ACTIVATIONS:
        y, total = cuda.empty((6, 16), np.float32), cuda.empty((16,), np.float32)
        relu = activation == "relu"
        kept = cuda.empty(mask_shape(y.shape), np.uint8) if relu else cuda.empty(y.shape, y.dtype)
        cuda.written_to((y, kept), cuda.linear_activation, x, w, b, activation, True)
        close(cuda.to_numpy(y), expected("linear_activation", x, w, b, activation)[0], "float32", 5)
        args = (dy, above, y if relu else kept, kept if relu else None, activation, True)
        dz = cuda.empty(y.shape, y.dtype)
        cuda.written_to((dz, total), cuda.matmul_activation_backward, *args)
        want, sums = expected("matmul_activation_backward", *args)
        close(cuda.to_numpy(dz), want, "float32", 9)
        close(cuda.to_numpy(total), sums, "float32", 9 * 6)


def test_what_does_not_lie_as_the_library_wants_it(cuda, lt):
    """Auxiliary matrices with gaps, of another dtype, of a width that is no multiple of eight."""
    x1, x2 = cuda.asarray(random((6, 9))), cuda.asarray(random((9, 16), seed=1))
    for value in (with_gaps(random((6, 16), seed=2)), transposed(random((6, 16), seed=2))):
        args = (x1, x2, on_gpu(cuda, value), None, "gelu_tanh", True)
        dz, total = cuda.matmul_activation_backward(*args)
        want, sums = expected("matmul_activation_backward", *args)
        close(cuda.to_numpy(dz), want, "float32", 9)
        close(cuda.to_numpy(total), sums, "float32", 9 * 6)
    x, w, b = layer(cuda, n=7)
    y, z = cuda.linear_activation(x, w, b, "gelu_tanh", True)
    wanted = expected("linear_activation", x, w, b, "gelu_tanh", True)
    for got, want in zip((y, z), wanted, strict=True):
        close(cuda.to_numpy(got), want, "float32", 5)


def test_threads_do_not_take_each_others_auxiliary(cuda):
    x1, x2 = cuda.asarray(random((6, 9))), cuda.asarray(random((9, 16), seed=1))
    values = [cuda.asarray(random((6, 16), seed=i)) for i in range(4)]
    cuda.matmul_activation_backward(x1, x2, values[0], None, "gelu_tanh", True)
    wrong = []

    def work(i):
        args = (x1, x2, values[i], None, "gelu_tanh", True)
        want, sums = expected("matmul_activation_backward", *args)
        for _ in range(100):
            dz, total = cuda.matmul_activation_backward(*args)
            if not np.allclose(cuda.to_numpy(dz), want, atol=1e-4):
                wrong.append(i)
            if not np.allclose(cuda.to_numpy(total), sums, atol=1e-4):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


# What compiled steps may use.
def asked(cuda, dtype="float32", n=16):
    """Which kernels join, by name."""
    x, w, b = layer(cuda, dtype, n=n)
    above, dy = cuda.empty((9, n), x.dtype), cuda.empty((6, 9), x.dtype)
    y, mask = cuda.empty((6, n), x.dtype), cuda.empty(mask_shape((6, n)), np.uint8)
    forth, back = "linear_activation", "matmul_activation_backward"
    questions = {
        "relu": (forth, x, w, b, "relu", False),
        "relu kept": (forth, x, w, b, "relu", True),
        "relu back": (back, dy, above, y, mask, "relu", True),
        "gelu": (forth, x, w, None, "gelu_tanh", False),
        "gelu kept": (forth, x, w, b, "gelu_tanh", True),
        "gelu back": (back, dy, above, y, None, "gelu_tanh", True),
        "sums": ("matmul_row_sums", dy.T, x),
    }
    return {name for name, question in questions.items() if cuda.joins(*question)}


ALL = {"relu", "relu kept", "relu back", "gelu", "gelu kept", "gelu back", "sums"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_what_gives_what_its_definition_gives_joins(cuda, lt, dtype, precision):
    cuda.precision = precision
    assert asked(cuda, dtype) == ALL
    before = lt("calls")
    assert asked(cuda, dtype) == ALL
    assert lt("calls") == before, "a trial is made once"


def test_what_the_library_lacks_does_not_join(cuda, lt):
    assert asked(cuda, "float64") == set()
    assert asked(cuda, n=12) == ALL - {"gelu kept", "gelu back"}
    for name, number in (("sums", 512), ("relu back", 152), ("gelu kept", 164), ("gelu", 32)):
        lt.set("without", number)
        for kept in (cuda._signatures, cuda._library._plans, cuda._trials):
            kept.clear()
        missing = ALL - asked(cuda)
        assert name in missing, name
        assert missing <= {name, "gelu back"}, name  # what is tried with what is kept
    lt.set("without", 0)


@pytest.mark.parametrize(
    ("knob", "value", "lost"),
    [
        ("keeps_nan", 0, {"relu", "relu kept"}),
        ("slope", 1, {"relu kept", "relu back"}),
    ],
)
def test_a_relu_of_another_meaning_does_not_join(cuda, lt, knob, value, lost):
    """NVIDIA says neither what becomes of NaN, nor what the slope is at 0."""
    lt.set(knob, value)
    assert asked(cuda) == ALL - lost


def test_a_cpu_joins_nothing():
    x = np.ones((4, 8), np.float32)
    assert not NUMPY.joins("linear_activation", x, x, None, "relu", False)


def test_a_trial_without_memory_is_no_error(cuda, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(cuda, "lacks_memory", lambda error: isinstance(error, MemoryError))
    monkeypatch.setattr(cuda, "full", full)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asked(cuda) == set()


def test_a_trial_that_fails_says_so_and_ends_nothing(cuda, monkeypatch):
    def full(*_):
        raise TypeError("no such kernel")

    monkeypatch.setattr(cuda, "full", full)
    words = "linear_activation on cuda:0 could not be tried.*TypeError: no such kernel"
    with pytest.warns(RuntimeWarning, match=words):
        assert asked(cuda) == set()


@pytest.mark.parametrize("lead", [(2, 3), (2, 2, 3)])
def test_rows_that_are_no_matrix_have_one_sum_all_the_same(cuda, lt, lead):
    """Each product of a batch would write sums of its own."""
    dy = on_gpu(cuda, transposed(random((*lead, 9))))
    above, value = cuda.asarray(random((9, 16), seed=1)), cuda.asarray(random((*lead, 16), seed=2))
    args = (dy, above, value, None, "gelu_tanh", True)
    for got, want in zip(
        cuda.matmul_activation_backward(*args),
        expected("matmul_activation_backward", *args),
        strict=True,
    ):
        close(cuda.to_numpy(got), want, "float32", 9 * 12)
    assert lt("epilogue") == 1


# What is so for the moment only.
def test_a_trial_that_another_threads_capture_spoils_is_made_again(cuda, lt):
    """cuBLASLt proposes nothing while a stream is captured, whoever asks."""
    lt.set("refuse", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # products by themselves are refused as well
        assert asked(cuda) == set() and not cuda._trials
    lt.set("refuse", 0)
    assert asked(cuda) == ALL and len(cuda._trials) == len(ALL)
    cuda._trials.clear()
    cuda._signatures.clear()
    cuda._library._plans.clear()
    lt.set("refuse", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert asked(cuda) == set() and not any(cuda._trials.values())
        assert len(cuda._trials) == len(ALL), "a refusal for good is kept"


class CaptureError(RuntimeError):
    status = 900  # cudaErrorStreamCaptureUnsupported


@pytest.mark.parametrize(("error", "forgotten"), [(CaptureError, True), (TypeError, False)])
def test_an_error_of_a_capture_is_forgotten(cuda, monkeypatch, error, forgotten):
    def full(*_):
        raise error("not now")

    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="not now"):
        patch.setattr(cuda, "full", full)
        assert asked(cuda) == set()
    assert asked(cuda) == (ALL if forgotten else set())


def test_a_failure_of_the_library_is_forgotten(cuda, lt):
    lt.set("refuse", 4)
    with pytest.warns(RuntimeWarning, match="could not be tried.*LtError"):
        assert asked(cuda) == set()
    lt.set("refuse", 0)
    assert asked(cuda) == ALL


def test_nothing_is_tried_within_a_capture(cuda, lt):
    calls = lt("calls")
    cuda.xp.capturing = True
    assert asked(cuda) == set() and lt("calls") == calls
    cuda.xp.capturing = False
    assert asked(cuda) == ALL
