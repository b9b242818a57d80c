"""The CUDA kernels of attention, executed on the CPU from the same source, against the
definitions."""

from __future__ import annotations

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
from tests.backends.support import shim
from tests.backends.support.attention_cases import cases, fill

pytestmark = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

NUMPY = NumPyBackend()
DTYPES = [np.float32, np.float64, np.float16]
KERNELS = ("attention", "attention_backward")


class OnShim(CudaAttention):
    """The overrides over NumPy arrays, their kernels run by the shim."""

    def __init__(self):
        super().__init__(np, "shim", "cuda:0")
        self.launched = []
        inner = Kernels(SimpleNamespace(RawModule=shim.RawModule)).launch

        def launch(name, *arguments):
            self.launched.append(name)
            inner(name, *arguments)

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
            f"{kernel} {note} {np.dtype(dtype)}: {k}", got, want, testing.tolerance(dtype, length)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_compute_what_the_definitions_say(backend, kernel, dtype):
    for note, args, options in cases(kernel):
        if dtype == np.float16 and "large" in note:
            continue  # scores beyond what float16 resolves
        compare(backend, kernel, note, args, options, dtype)
    assert set(backend.launched) == (
        {"attention"} if kernel == "attention" else {"attention_queries", "attention_keys"}
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_widest_heads(backend, dtype):
    width = overrides.FEATURES.get(sources.FLOATS[np.dtype(dtype).name], 128)
    q, k, v = fill((1, 2, 9, width), 1), fill((1, 1, 40, width), 2), fill((1, 1, 40, width), 3)
    options = {"causal": True, "past": 31, "scale": width**-0.5}
    compare(backend, "attention", "wide", (q, k, v, None), options, dtype)
    args = (fill(q.shape, 4), q, k, v, None, q, q[..., 0])
    compare(backend, "attention_backward", "wide", args, options, dtype)
    assert len(backend.launched) == 3


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
