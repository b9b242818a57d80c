"""The CUDA kernels of attention, executed on the CPU from the same source, against the
definitions."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from gpubackprop import testing
from gpubackprop.backends.attention import AttentionKernels
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import attention as overrides
from gpubackprop.backends.cuda import sources
from gpubackprop.backends.cuda.attention import CudaAttention
from gpubackprop.backends.cuda.kernels import Kernels
from gpubackprop.backends.offers import offered
from tests.backends.support import shim
from tests.backends.support.attention_cases import cases, fill
from tests.backends.support.shim import BFLOAT16

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

NUMPY = NumPyBackend()
# dtype, and policy of products.
MAKINGS = {
    "float32": (np.float32, "float32"),
    "tf32": (np.float32, "tf32"),
    "float64": (np.float64, "float32"),
    "float16": (np.float16, "float32"),
    "bfloat16": (BFLOAT16, "float32"),
}
if BFLOAT16 is None:
    del MAKINGS["bfloat16"]
KERNELS = ("attention", "attention_backward")


class OnShim(CudaAttention):
    """The overrides over NumPy arrays, their kernels run by the shim."""

    def __init__(self):
        super().__init__(np, "shim", "cuda:0")
        self.precision = "float32"
        self.launched, self.tensor, self.simple = [], set(), False
        inner = Kernels(SimpleNamespace(RawModule=shim.RawModule)).launch

        def launch(name, template, *arguments):
            self.launched.append(name)
            self.tensor.add(template[2])
            inner(name, (*template[:2], "0") if self.simple else template, *arguments)

        self.kernels = SimpleNamespace(launch=launch)

    def random_bits(self, *arguments):
        return NUMPY.random_bits(*arguments)


@pytest.fixture(params=[False, True], ids=["forward", "reversed"])
def backend(request, monkeypatch):
    monkeypatch.setattr(shim.RawModule, "reverse", request.param)
    return OnShim()


def cast(value, dtype):
    real = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(dtype) if real else value


def tolerance(backend, dtype, length):
    """Of what is multiplied in so many bits. TF32 has as many in its fraction as float16, bfloat16
    three fewer."""
    half = backend.precision == "tf32" or np.dtype(dtype).itemsize == 2
    return testing.tolerance(np.float16 if half else dtype, length) * (
        8 if dtype == BFLOAT16 else 1
    )


def readable(x):
    """As NumPy can compare it: it takes bfloat16 for no number."""
    return x.astype(np.float32) if x.dtype == BFLOAT16 else x


def compare(backend, kernel, note, args, options, dtype):
    args = [cast(a, dtype) for a in args]
    if kernel == "attention_backward":  # y and lse of these very numbers
        with np.errstate(all="ignore"):
            args[5:] = AttentionKernels.attention(NUMPY, *args[1:5], **options)
    wide = [cast(a, np.float64) for a in args]
    with np.errstate(all="ignore"):
        found = getattr(backend, kernel)(*args, **options)
        expected = getattr(AttentionKernels, kernel)(NUMPY, *wide, **options)
    length = max(a.size for a in args if isinstance(a, np.ndarray))
    for k, (got, want) in enumerate(zip(found, expected, strict=True)):
        if kernel == "attention" and k == 1:
            assert got.dtype == (np.float64 if dtype == np.float64 else np.float32)
        else:
            assert got.dtype == dtype
        testing.require_close(
            f"{kernel} {note} {np.dtype(dtype)}: {k}",
            readable(got),
            want,
            tolerance(backend, dtype, length),
        )


@pytest.mark.parametrize("making", MAKINGS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_compute_what_the_definitions_say(backend, kernel, making):
    dtype, backend.precision = MAKINGS[making]
    for note, args, options in cases(kernel):
        if making not in ("float32", "float64") and "large" in note:
            continue  # scores beyond what half precision resolves
        compare(backend, kernel, note, args, options, dtype)
    assert set(backend.launched) == (
        {"attention"} if kernel == "attention" else {"attention_queries", "attention_keys"}
    )
    assert backend.tensor == {"0" if making in ("float32", "float64") else "1"}


@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision_without_tensor_cores(backend, monkeypatch, kernel):
    backend.simple = True  # as compiled for sm_75
    monkeypatch.setitem(sources._PARTLY, ("TENSOR", "__half"), ("0",))
    monkeypatch.setattr(shim, "library", shim.library.__wrapped__)
    for note, args, options in cases(kernel):
        if "large" not in note:
            compare(backend, kernel, note, args, options, np.float16)
    assert backend.launched


@pytest.mark.parametrize("making", MAKINGS)
@pytest.mark.parametrize("width", [40, 64, 128])
def test_wide_heads(making, width):
    backend = OnShim()
    dtype, backend.precision = MAKINGS[making]
    if dtype == np.float64 and width > 64:
        pytest.skip("wider than there is room for in float64")
    q, k, v = fill((1, 2, 75, width), 1), fill((1, 1, 106, width), 2), fill((1, 1, 106, width), 3)
    options = {"causal": True, "past": 31, "scale": width**-0.5}
    compare(backend, "attention", "wide", (q, k, v, None), options, dtype)
    args = (fill(q.shape, 4), q, k, v, None, q, q[..., 0])
    compare(backend, "attention_backward", "wide", args, options, dtype)
    assert len(backend.launched) == 3


@pytest.mark.parametrize("making", MAKINGS)
def test_heads_that_lie_side_by_side_are_not_copied_apart(backend, monkeypatch, making):
    dtype, backend.precision = MAKINGS[making]
    packed = []
    monkeypatch.setattr(OnShim, "_packed", lambda self, x: packed.append(x.shape) or x)
    shape = (2, 35, 3, 3, 8)  # batches, rows, (q, k, v), heads, features
    for first in (0, 1):  # the second begins in the middle of a piece of 16 bytes
        memory = fill((math.prod(shape) + 1,), 5).astype(dtype)[first:][: math.prod(shape)]
        q, k, v = (memory.reshape(shape)[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        options = {"causal": True, "scale": 0.3}
        y, lse = backend.attention(q, k, v, None, **options)
        wide = [x.astype(np.float64) for x in (q, k, v)]
        want, _ = AttentionKernels.attention(NUMPY, *wide, None, **options)
        testing.require_close("y", readable(y), want, tolerance(backend, dtype, q.size))
        assert y.transpose(0, 2, 1, 3).flags.c_contiguous
        place = np.empty_like(y.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
        with offered((place,)):  # as a compiled step does
            assert backend.attention(q, k, v, None, **options)[0] is place
        np.testing.assert_array_equal(place, y)
        dy = fill((2, 35, 3, 8), 6).astype(dtype).transpose(0, 2, 1, 3)
        found = backend.attention_backward(dy, q, k, v, None, y, lse, **options)
        given = (dy.astype(np.float64), *wide, None, y.astype(np.float64), lse.astype(np.float64))
        want = AttentionKernels.attention_backward(NUMPY, *given, **options)
        for got, expected in zip(found, want, strict=True):
            testing.require_close(
                "slopes", readable(got), expected, tolerance(backend, dtype, q.size)
            )
            assert got.transpose(0, 2, 1, 3).flags.c_contiguous
    assert set(packed) == {lse.shape}


def test_wider_heads_and_mixed_dtypes_take_the_definition(backend):
    q = fill((1, 1, 3, 129), 1).astype(np.float32)
    y, lse = backend.attention(q, q, q)
    backend.attention_backward(q, q, q, q, None, y, lse)
    narrow = q[..., :4]
    backend.attention(narrow, narrow, narrow.astype(np.float64))
    assert backend.launched == []


def test_few_blocks_cover_many_tiles(backend, monkeypatch):
    monkeypatch.setattr(overrides, "_MAX_BLOCKS", 2)
    q, k = fill((2, 2, 70, 4), 1), fill((2, 1, 50, 4), 2)
    compare(backend, "attention", "few blocks", (q, k, k, None), {}, np.float64)
    args = (q, q, k, k, None, q, q[..., 0])
    compare(backend, "attention_backward", "few blocks", args, {}, np.float64)


def test_the_offset_may_live_on_the_device(backend):
    q = fill((1, 2, 5, 4), 1)
    place = {"p": 0.5, "seed": 3, "stream": 4}
    expected = AttentionKernels.attention(NUMPY, q, q, q, offset=2**40, **place)
    found = backend.attention(q, q, q, offset=np.array(2**40, np.uint64), **place)
    for got, want in zip(found, expected, strict=True):
        testing.require_close("offset", got, want, 1e-12)


def test_scores_beyond_half_precision(backend):
    q, k, v = (fill((1, 1, 3, 16), i).astype(np.float16) for i in range(3))
    big = (q * np.float16(200.0), k * np.float16(200.0), v)
    dy = fill(v.shape, 4).astype(np.float16)
    y, lse = backend.attention(*big, None)
    wide, _ = AttentionKernels.attention(NUMPY, *[x.astype(np.float64) for x in big], None)
    assert lse.max() > 65504
    np.testing.assert_allclose(y, wide, atol=1e-2)
    for found in backend.attention_backward(dy, *big, None, y, lse):
        assert np.isfinite(found).all()


def test_a_key_that_no_query_attends_to_may_be_infinite(backend):
    q, k = np.abs(fill((1, 1, 5, 4), 1)) + 0.5, fill((1, 1, 16, 4), 2)
    dy, v = fill(q.shape, 3), fill(k.shape, 4)
    k[..., 3, 1] = -np.inf
    with np.errstate(invalid="ignore"):
        y, lse = AttentionKernels.attention(NUMPY, q, k, v, None)
        found = backend.attention_backward(dy, q, k, v, None, y, lse)
        expected = AttentionKernels.attention_backward(NUMPY, dy, q, k, v, None, y, lse)
    for got, want in zip(found[1:], expected[1:], strict=True):
        assert np.isfinite(want).all()
        testing.require_close("infinite", got, want, 1e-12)
