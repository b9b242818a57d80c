"""Launches over more than 2**31 elements, and what decides how many threads a kernel gets.

The arrays are address space without memory behind it: nothing is run. Every kernel is asked for
through the backend, and its grid, its block and the width of each number that it is given are
looked at.
"""

from __future__ import annotations

import math
import mmap
import re
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpubackprop.backends.chains.chain import Chain, Operand, Result, Step
from gpubackprop.backends.chains.layouts import FLAT, Table
from gpubackprop.backends.cuda import geometry, sources
from gpubackprop.backends.cuda.kernels import Function
from tests.backends import test_cuda_backend as fakes
from tests.backends.support import fake_cupy

# Of every GPU that is compiled for: CUDA C++ Programming Guide, "Technical specifications per
# compute capability".
MOST_BLOCKS, MOST_THREADS = 2**31 - 1, 1024
REGISTERS, MOST_REGISTERS = 65536, 255  # of a multiprocessor, of a thread
FLAT_GRID_ONLY = 65535  # what the second and third axis of a grid allow: none is used
BIG = 2**31 + 24
NO_RESERVE = 0x4000  # of <linux/mman.h>; Python 3.13 has a name for it

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="address space without memory needs Linux"
)


class Launches:
    """Stands where the kernels would be launched, and checks each launch."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Any, ...]] = {}

    def launch(self, name: str, template: Any, shape: geometry.Launch, *arguments: Any) -> None:
        self.check(sources.signatures()[name], shape, arguments)

    def written(self, text: str, code: str, name: str, template: Any = ()) -> Function:
        signature = sources.declared(text)[name]

        def launch(grid: Any, block: Any, arguments: Any) -> None:
            self.check(signature, geometry.Launch(*grid, *block), arguments)

        return Function(launch, signature)

    def check(self, signature: Any, shape: geometry.Launch, arguments: Any) -> None:
        assert len(shape) == 2, "one axis of blocks and one of threads"
        assert 1 <= shape.grid <= MOST_BLOCKS
        assert shape.block % 32 == 0 and 32 <= shape.block <= MOST_THREADS
        wrapped = Function(None, signature).wrapped(
            [None if getattr(a, "dtype", 0) == np.uint64 and not a.shape else a for a in arguments]
        )  # raises where a number is wider than what the kernel reads
        for kind, given in zip(signature.arguments, wrapped, strict=True):
            if kind == "i64":
                assert isinstance(given, np.int64)
        self.seen[signature.name] = (shape, wrapped)


class Vast:
    """A CUDA backend whose arrays take no memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.K = fakes.make()
        self.launches = Launches()
        self.device = self.K.xp.device()
        K = self.K
        monkeypatch.setattr(K, "kernels", self.launches)
        for name, stand_in in {
            "empty": self.array,
            "zeros": self.array,
            "copy": lambda x: self.array(x.shape, x.dtype),
            "copyto": lambda target, source: None,
            "astype": lambda x, dtype: self.array(x.shape, dtype),
            "matmul": self._product,
            "addmm": lambda c, a, b, out=None: out,
            "add": lambda a, b, out=None: a,
            "_product_and_bias": lambda a, b, bias, out=None: out,
        }.items():
            monkeypatch.setattr(K, name, stand_in, raising=False)

    def array(self, shape: Any, dtype: Any = np.float16) -> fake_cupy.ndarray:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype, size = np.dtype(dtype), math.prod(shape)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        memory = mmap.mmap(-1, max(size * dtype.itemsize, 1), flags=flags)
        values = np.frombuffer(memory, dtype, size).reshape(shape)
        return fake_cupy.ndarray(values, self.device)

    def _product(self, a: Any, b: Any, out: Any = None) -> Any:
        shape = (*a.shape[:-1], b.shape[-1])
        return self.array(shape, a.dtype) if out is None else out


@pytest.fixture
def vast(monkeypatch):
    return Vast(monkeypatch)


def elementwise(v: Vast) -> None:
    K, x = v.K, v.array(BIG)
    for name in ("sigmoid", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "softplus", "erf"):
        getattr(K, name)(x)
    for name in ("relu", "sigmoid", "tanh", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu"):
        getattr(K, f"{name}_backward")(x, x)
    keep = v.array(BIG, np.bool_)
    K.dropout(x, 0.5, 1, 2, 3)
    K.dropout_backward(x, keep, 0.5)
    assert K._inner(x, x, None) is not None  # of matmul, for which something else stands here
    K.bernoulli((BIG,), 0.5, 1, 2, 3)
    K.uniform((BIG,), 1, 2, 3)
    K.random_bits(1, 2, 3, BIG)
    K.scale_shift(v.array((2**20 + 1, 2**11 + 8)), v.array(2**11 + 8), v.array(2**11 + 8))


def rows(v: Vast) -> None:
    K = v.K
    for shape in ((2**24 + 8, 129), (3, 2**30)):
        x, target = v.array(shape), v.array(shape[0], np.int64)
        K.softmax(x), K.log_softmax(x), K.softmax_backward(x, x), K.log_softmax_backward(x, x)
        K.softmax_cross_entropy(x, target)
        row = v.array(shape[0], np.float32)
        K.softmax_cross_entropy_backward(row, x, row, row, target)
        w, b = v.array(shape[1]), v.array(shape[1])
        moments = v.array((shape[0], 1), np.float32)
        K.layer_norm(x, w, b, 1, 1e-5)
        K.layer_norm_backward(x, x, w, moments, moments, 1)
        K.rms_norm(x, w, 1, 1e-5)
        K.rms_norm_backward(x, x, w, moments, 1)
        wide, scale = v.array(shape, np.float32), v.array(shape[1], np.float32)
        K.layer_norm(wide, scale, scale, 1, 1e-5, np.float16)
        K.layer_norm_backward(x, wide, scale, moments, moments, 1)


def groups(v: Vast) -> None:
    K, x = v.K, v.array((2**11 + 1, 2**6, 2**5, 2**9))
    w, moments = v.array(2**9), v.array((2**11 + 1, 8), np.float32)
    K.group_norm(x, w, w, 8, 1e-5)
    K.group_norm_backward(x, x, w, moments, moments, 8)
    K.batch_norm(x, w, w, 1e-5)
    each = v.array(2**9, np.float32)
    K.batch_norm_backward(x, x, w, each, each, None, None)


def updates(v: Vast) -> None:
    K = v.K
    p, g, s, t, u = (v.array(BIG, np.float32) for _ in range(5))
    place, flag = v.array((), np.float32), v.array((), np.bool_)
    for scale, skip in ((None, None), (0.5, flag), (place, flag)):
        more = {"lr": 0.1, "step": 2, "scale": scale, "skip": skip}
        K.sgd_update(p, g, s, momentum=0.9, **more)
        K.adagrad_update(p, g, s, **more)
        K.rmsprop_update(p, g, s, t, u, momentum=0.9, **more)
        K.adam_update(p, g, s, t, **more)
    K.square_norm(g)


def places(v: Vast) -> None:
    K, table, index = v.K, v.array((2**22, 2**9 + 8)), v.array(2**22 + 8, np.int64)
    K.take(table, index)
    K.scatter_take(v.array((2**22 + 8, 2**9 + 8)), index, 0, 2**22)
    few = v.array(2**10, np.int64)
    K.scatter_take(v.array((2**10, 2**21 + 8)), few, 0, 2**10)
    K.take_along_axis(v.array(BIG), v.array(BIG, np.int64), 0)
    K.scatter_along_axis(v.array(BIG), v.array(BIG, np.int64), 0, BIG)


def images(v: Vast) -> None:
    K, x = v.K, v.array((2**15 + 8, 32, 32, 2**6))
    windows = ((2, 2), (2, 2), (0, 0))
    y, winner = K.max_pool(x, *windows, (1, 1))
    K.max_pool_backward(y, winner, (32, 32), *windows, (1, 1))
    K.avg_pool_backward(K.avg_pool(x, *windows), (32, 32), *windows)
    # One image whose columns alone are more than the buffer of columns holds.
    big, w = v.array((1, 2**14, 2**13, 16)), v.array((16, 16, 3, 3))
    around = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    y = K.conv(big, w, None, *around)
    K.conv_transpose(y, w, (2**14, 2**13), *around)


def heads(v: Vast) -> None:
    K, q = v.K, v.array((2**10 + 1, 2**5, 2**10, 2**6))
    y, lse = K.attention(q, q, q, causal=True)
    K.attention_backward(q, q, q, q, None, y, lse, causal=True)


def steps(v: Vast) -> None:
    K, n, size = v.K, 2**21 + 8, 2**10
    for name, many in (("rnn", 1), ("gru", 3), ("lstm", 4)):
        h, w = v.array((n, size)), v.array((many * size, size))
        x, dy = v.array((1, n, many * size)), v.array((1, n, size))
        before = v.array((2, n, size))
        if name == "rnn":
            K.rnn_steps(x, h, w)
            K.rnn_steps_backward(dy, h, w, before)
        elif name == "gru":
            K.gru_steps(x, h, w)
            K.gru_steps_backward(dy, h, w, before, x, dy)
        else:
            K.lstm_steps(x, h, h, w)
            K.lstm_steps_backward(dy, h, h, w, before, x)


SUBJECTS = (elementwise, rows, groups, updates, places, images, heads, steps)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.__name__)
def test_launches_of_vast_arrays(vast, subject):
    subject(vast)
    assert vast.launches.seen


def test_every_kernel_is_launched_over_a_vast_array(monkeypatch):
    seen: set[str] = set()
    for subject in SUBJECTS:
        vast = Vast(monkeypatch)
        subject(vast)
        seen |= set(vast.launches.seen)
    assert seen == set(sources.signatures())


X = Operand("input", 0)
TABLES = [
    (Table(1, BIG, (FLAT,)), ("flat", "all")),
    (Table(2**20 + 1, 2**11 + 8, (FLAT, "columns", "rows", "scalar")), ("flat", "all")),
    (Table(2**24 + 8, 129, (FLAT,)), ("flat", "rows")),
    (Table(3, 2**30, (FLAT,)), ("rows", "columns", "all")),
    (Table(2**24 + 8, 129, (FLAT,)), ("columns", "flat")),
    (Table(2, 2**30 + 8, (FLAT,)), ("columns",)),
    (Table(2**31 + 8, 1, (FLAT,)), ("columns", "rows")),
]


@pytest.mark.parametrize(("lies", "hows"), TABLES, ids=lambda v: str(v)[:40])
def test_launches_of_vast_chains(vast, lies, hows):
    shapes = {FLAT: (lies.rows, lies.columns), "columns": (lies.columns,)}
    shapes |= {"rows": (lies.rows,), "scalar": (), "all": ()}
    inputs = [vast.array(shapes[kind]) for kind in lies.kinds]
    steps = [Step("relu", (X,))]
    steps += [Step("add", (Operand("step", k), Operand("input", k + 1)))
              for k in range(len(inputs) - 1)]  # fmt: skip
    results = tuple(Result(len(steps) - 1, how) for how in hows)
    outs = [vast.array(shapes[how]) for how in hows]
    vast.K.chain(inputs, Chain(lies, tuple(steps), results), outs)()
    over_blocks = bool(set(hows) - {"flat", "rows"})
    assert set(vast.launches.seen) == ({"chain", "finish"} if over_blocks else {"chain"})
    shape, wrapped = vast.launches.seen["chain"]
    assert shape.block == geometry.BLOCK
    rows, columns, spans, height, _ = wrapped[-5:]
    assert rows * columns == lies.rows * lies.columns and spans * height >= rows


def test_a_block_never_asks_for_more_registers_than_there_are():
    """So every kernel can be launched with its block, whatever it is compiled to."""
    assert geometry.BLOCK * MOST_REGISTERS <= REGISTERS
    for file in sources.FILES:
        text = sources.source(file)
        bounds = re.findall(r"__launch_bounds__\((\w+)", text)
        assert len(bounds) == text.count("__launch_bounds__")
        assert set(bounds) <= {str(geometry.BLOCK)}, "a launch of more threads would fail"


@pytest.mark.parametrize("rows", [1, 3, 33, 1000, 1030, 33000, 10**6 + 7, 2**33])
@pytest.mark.parametrize("packs", [1, 2, 3, 31, 32, 33, 5000, 2**31 + 1])
def test_columns_are_covered_once(rows, packs):
    width, spans, height, launch = geometry.over_columns(rows, packs)
    assert 256 % width == 0 and width & (width - 1) == 0
    assert (spans - 1) * height < rows <= spans * height, "a span without rows, or rows without one"
    assert 1 <= launch.grid <= FLAT_GRID_ONLY + 1 and launch.block == 256
    tiles = -(-packs // width)
    # Enough blocks for a large GPU where there is the work for it.
    assert launch.grid >= min(512, tiles * -(-rows // (256 // width * 4)))


def test_widths_of_launches():
    for n in (1, 32, 33, 10**5, 2**40):
        assert 1 <= geometry.over_tiles(n).grid <= 4096
        assert 1 <= geometry.over(n).grid <= 4096
        for team, launch in (geometry.over_rows(n, 100), geometry.over_rows(n, 2**40)):
            assert 1 <= launch.grid <= 65536 and launch.block % team == 0


def test_no_kernel_counts_elements_in_32_bits():
    """Names of all 32-bit numbers that a kernel is given: none of them is a size of an array."""
    narrow = set()
    for file in sources.FILES:
        text = sources.source(file)
        for _, _, arguments in sources._KERNEL.findall(text):
            for argument in arguments.split(","):
                kind, _, word = argument.strip().rpartition(" ")
                if kind in ("int", "u32"):
                    narrow.add(word)
    assert narrow == {
        *("nesterov", "decoupled", "relu", "causal", "wide"),  # yes or no
        "stage",
        *("width", "depth", "parts", "d", "dv"),  # threads of a block; features of a head
        *("shift", "blocks"),  # a bit of a key; no more than a block has threads
        *("stream", "threshold"),
    }


def test_no_loop_over_elements_counts_in_32_bits():
    for file in sources.FILES:
        for start, end in re.findall(
            r"for \(int \w+ = ([^;]*); [^<;]*<=? ([^;]*);", sources.source(file)
        ):
            bound = (
                r"[A-Z]+|([A-Z]+|\d) \* [A-Z]+|\d+|[A-Z]+ / \d+|\d+ / [A-Z]+|dv|features|depth|"
                r"parts|n|COUNT \* features|2 \* WORDS - skip|R::L"
            )
            assert re.fullmatch(bound, end.strip()), f"{file}: a loop from {start} to {end}"


def test_one_number_too_wide_is_found():
    signature = SimpleNamespace(name="k", arguments=("int",))
    with pytest.raises(OverflowError):
        Launches().check(signature, geometry.Launch(1), (BIG,))
    with pytest.raises(AssertionError):
        Launches().check(signature, geometry.Launch(2**31), (1,))
