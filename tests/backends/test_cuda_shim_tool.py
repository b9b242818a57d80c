"""The means of running CUDA kernels on the CPU: what they catch, and the launch geometry."""

from __future__ import annotations

import numpy as np
import pytest

from gpubackprop.backends.cuda import geometry, sources
from tests.backends.support import shim

needs_compiler = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")

RACE = """
__global__ void race(i64* out) {
  __shared__ i64 cell[64];
  cell[threadIdx.x] = threadIdx.x;
  %s
  out[threadIdx.x] = cell[63 - threadIdx.x];
}
"""
STUCK = """
__global__ void race(i64* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 1;
}
"""


@pytest.fixture
def tiny(monkeypatch):
    """Build one kernel that no file has."""

    def build(text: str, *arguments: str) -> shim.Kernel:
        signature = sources.Signature("race", "none", (), arguments)
        monkeypatch.setattr(sources, "signatures", lambda: {"race": signature})
        header = sources.source("philox").partition("// Philox")[0]
        return shim.build(header + text, ("race",))["race"]

    return build


@needs_compiler
def test_a_missing_barrier_shows_when_the_order_is_reversed(tiny):
    for barrier, equal in (("__syncthreads();", True), ("", False)):
        kernel = tiny(RACE % barrier, "i64*")
        results = []
        for reverse in (False, True):
            out = np.full(64, -1)
            kernel(1, 64, (out,), reverse)
            results.append(out)
        assert np.array_equal(*results) == equal


@needs_compiler
def test_threads_that_wait_in_vain_are_reported(tiny):
    with pytest.raises(RuntimeError, match="wait for each other for ever"):
        tiny(STUCK, "i64*")(1, 64, (np.zeros(64, np.int64),))


@needs_compiler
@pytest.mark.parametrize("move", ["load_pack(p, x + k, true, 4)", "store_pack(x + k, p, true, 4)"])
def test_a_pack_off_its_boundary_is_reported(tiny, move):
    text = f"__global__ void race(float* x, i64 k) {{\n  Pack<float> p = {{}};\n  {move};\n}}\n"
    kernel = tiny(text, "float*", "i64")
    x = np.zeros(16, np.float32)
    start = -x.ctypes.data % 16 // 4
    kernel(1, 32, (x, np.int64(start)))
    with pytest.raises(RuntimeError, match="misaligned address"):
        kernel(1, 32, (x, np.int64(start + 1)))


@needs_compiler
def test_a_global_store_into_shared_memory_is_reported(tiny):
    text = (
        "__global__ void race(float* x) {\n  __shared__ Pack<float> p[2];\n"
        "  store_pack(x, p[0], true, 4);\n  store_pack(%s, p[0], true, 4);\n}\n"
    )
    x = np.zeros(16, np.float32)
    x = x[-x.ctypes.data % 16 // 4 :][:4]
    tiny(text % "x", "float*")(1, 32, (x,))
    with pytest.raises(RuntimeError, match="shared memory where a global one"):
        tiny(text % "p[1].item", "float*")(1, 32, (x,))


@needs_compiler
def test_shared_memory_that_no_one_wrote_is_not_a_number(tiny):
    text = (
        "__global__ void race(float* x) {\n  __shared__ float cell[64];\n"
        "  if (threadIdx.x < %d) cell[threadIdx.x] = 1;\n  __syncthreads();\n"
        "  x[blockIdx.x * 64 + threadIdx.x] = cell[63 - threadIdx.x];\n}\n"
    )
    for written in (64, 40):
        x = np.zeros(128, np.float32)
        tiny(text % written, "float*")(2, 64, (x,))
        assert int(np.isnan(x).sum()) == 2 * (64 - written)


@needs_compiler
@pytest.mark.parametrize("start", [0, 1, 3])
def test_what_is_read_or_written_beside_an_array_is_reported(tiny, start):
    text = "__global__ void race(const float* x, float* y, i64 i, i64 j) {\n  y[j] = x[i];\n}\n"
    kernel = tiny(text, "const float*", "float*", "i64", "i64")
    x, y = np.arange(32, dtype=np.float32)[start:17], np.zeros(7, np.float32)

    def run(i: int, j: int) -> float:
        kernel(1, 32, (x, y, np.int64(i), np.int64(j)))
        return float(y[j])

    assert run(16 - start, 6) == 16
    assert np.isnan(run(-1, 0))  # of a word that is not an array's
    for i, j in ((20 - start, 0), (0, 1024)):
        with pytest.raises(RuntimeError, match="illegal address"):
            run(i, j)
    for j in (7, -1):
        with pytest.raises(RuntimeError, match="beside float"):
            run(0, j)
    np.testing.assert_array_equal(x, np.arange(start, 17))


@needs_compiler
def test_arrays_that_lie_over_each_other_are_the_same_memory_to_a_kernel(tiny):
    text = "__global__ void race(const float* x, float* y) {\n  y[0] = 3;\n  y[1] = x[0];\n}\n"
    y = np.zeros(4, np.float32)
    tiny(text, "const float*", "float*")(1, 32, (y, y))
    np.testing.assert_array_equal(y, [3, 3, 0, 0])


@needs_compiler
def test_wrong_arguments_are_refused():
    kernel = shim.library("norm", "float")["column_sum<float>"]
    x, n = np.zeros((4, 4), np.float32), np.int64(4)
    for wrong, said in (
        ((x.astype(np.float64), x, x, n, n, n), "float64"),
        ((x.T, x, x, n, n, n), "gaps"),
        ((x, x, x, 4, n, n), "NumPy scalar"),
        ((x, x, x, np.int32(4), n, n), "int32"),
        ((x, x, x, x, n, n), "array"),
    ):
        with pytest.raises(TypeError, match=said):
            kernel(1, 256, wrong)


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_half_precision_conversions_round_as_the_formats_do(dtype, tiny, monkeypatch):
    """Every 16-bit pattern survives a round trip, and floats between two of them round to even."""
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    element = sources.FLOATS[np.dtype(dtype).name]
    values = np.arange(2**16, dtype=np.uint16).view(dtype)
    values = values[np.isfinite(values.astype(np.float32))]
    wide = np.sort(values.astype(np.float32))
    middle = (wide[1:].astype(np.float64) + wide[:-1]) / 2
    near = np.concatenate([middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)])
    near = np.concatenate([near.astype(np.float32), wide, np.float32([np.inf, -np.inf, 1e30, 7e4])])
    text = (
        "__global__ void race(float* in, unsigned short* out, i64 n) {\n"
        "  for (i64 i = thread_index(); i < n; i += thread_count()) {\n"
        f"    {element} h(in[i]);\n    in[i] = h;\n    memcpy(out + i, &h, 2);\n  }}\n}}\n"
    )
    monkeypatch.setitem(shim._POINTED, "unsigned short", np.dtype(np.uint16))
    kernel = tiny(text, "float*", "unsigned short*", "i64")
    back, bits = near.copy(), np.empty(near.shape, np.uint16)
    with np.errstate(over="ignore"):
        kernel(8, 256, (back, bits, np.int64(near.size)))
        expected = near.astype(dtype)
    assert np.array_equal(back, expected.astype(np.float32))
    assert np.array_equal(bits, expected.view(np.uint16))


# Launch geometry.


def test_geometry_covers_and_stays_within_the_limits():
    for n in (1, 255, 256, 257, 10**6, 10**10):
        launch = geometry.over(n)
        assert 1 <= launch.grid <= 4096 and launch.block == 256
    assert geometry.over(257).grid == 2
    for rows, cols, team, grid in (
        (1, 10, 32, 1),
        (9, 256, 32, 2),
        (9, 257, 256, 9),
        (10**7, 10, 32, 65536),
    ):
        assert geometry.over_rows(rows, cols) == (team, (grid, 256))
    for rows in (1, 31, 4096, 10**6):
        span = geometry.row_span(rows)
        assert span >= 32 and -(-rows // span) <= 128
    for outer, size, count, tail in ((1, 1, 1, 1), (2, 50000, 4096, 512), (1, 10**6, 10, 1)):
        width, depth, launch = geometry.over_segments(outer, size, count, tail)
        assert 256 % (width * depth) == 0 and 1 <= launch.grid <= 65536
    assert geometry.over_segments(1, 10, 10**6, 1)[:2] == (1, 256)
    assert geometry.over_segments(1, 10**6, 10, 64)[:2] == (32, 1)
