"""Native recurrent layers, and the products they are made of, against their definitions in
float64."""

import numpy as np
import pytest

pytest.importorskip("numba")

from gpubackprop.backends import get_backend
from gpubackprop.backends.cpu.native.abi import kernel
from gpubackprop.backends.cpu.native.engine import Instruction, Program
from gpubackprop.backends.cpu.native.lowering import Site, load
from gpubackprop.backends.cpu.native.packing import packed
from gpubackprop.backends.cpu.native.panels import multiply_rows
from gpubackprop.backends.recurrent import RecurrentKernels

SMALL_TOO = ("recurrent",)
TABLE = load()
NUMPY = get_backend("cpu")
RNG = np.random.default_rng(7)
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
SHAPES = [(1, 1, 1), (3, 2, 5), (4, 5, 16), (2, 17, 33), (5, 3, 31), (1, 9, 64), (7, 1, 48)]
PARTS = [1, 2, 3]
KINDS = [("rnn", {}), ("rnn", {"nonlinearity": "relu"}), ("lstm", {}), ("gru", {})]


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def wide(a):
    return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a


def defined(name, arrays, options):
    found = getattr(RecurrentKernels, name)(NUMPY, *map(wide, arrays), **options)
    return found if isinstance(found, tuple) else (found,)


def computed(name, like, arrays, options, parts):
    """A native kernel's results, in memory that held no numbers; twice, since a program is run
    again and again."""
    outs = tuple(np.full(e.shape, np.nan, np.float32) for e in like)
    instructions = TABLE[name].lower(Site(parts), outs, *arrays, **options)
    assert instructions is not None
    program = Program(instructions, parts)
    program.run()
    first = [o.copy() for o in outs]
    program.run()
    for a, b in zip(first, outs, strict=True):
        np.testing.assert_array_equal(a, b)
    return outs


def agree(name, arrays, options, parts):
    expected = defined(name, arrays, options)
    found = computed(name, expected, arrays, options, parts)
    for f, e in zip(found, expected, strict=True):
        assert f.shape == e.shape
        np.testing.assert_allclose(f, e, rtol=3e-5, atol=3e-6 * max(1.0, np.nanmax(np.abs(e))))


def forward(kind, steps, batch, size, bias=True):
    """Arguments of all steps of a layer."""
    arrays = [normal(steps, batch, GATES[kind] * size), normal(batch, size)]
    if kind == "lstm":
        arrays.append(normal(batch, size))
    arrays.append(normal(GATES[kind] * size, size) / np.float32(size**0.5))
    if kind == "gru":
        arrays.append(normal(3 * size) if bias else None)
    return arrays


def backward(kind, steps, batch, size, options, bias=True):
    """Arguments of backpropagation through a layer, with what its steps left."""
    arrays = forward(kind, steps, batch, size, bias)
    left = [x.astype(np.float32) for x in defined(f"{kind}_steps", arrays, options)]
    weight = arrays[3] if kind == "lstm" else arrays[2]
    given = [normal(steps, batch, size), normal(batch, size)]
    if kind == "lstm":
        return [*given, normal(batch, size), weight, *left[1:]]
    return [*given, weight, *left]


def lengths_of(steps, batch):
    return RNG.integers(0, steps + 1, batch)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_steps_and_their_cotangents(kind, options, short, reverse, parts):
    for steps, batch, size in SHAPES:
        if short:
            options = {**options, "lengths": lengths_of(steps, batch)}
        options = {**options, "reverse": reverse}
        agree(f"{kind}_steps", forward(kind, steps, batch, size), options, parts)
        arrays = backward(kind, steps, batch, size, options)
        agree(f"{kind}_steps_backward", arrays, options, parts)


@pytest.mark.parametrize("kind", GATES)
def test_a_long_wide_layer(kind):
    agree(f"{kind}_steps", forward(kind, 40, 32, 128, bias=False), {}, 2)
    agree(f"{kind}_steps_backward", backward(kind, 40, 32, 128, {}, bias=False), {}, 2)


@pytest.mark.parametrize("kind", GATES)
def test_arrays_that_do_not_lie_in_order(kind):
    """As batches that come first, a weight that is a transpose, rows with gaps."""
    steps, batch, size = 4, 5, 19
    first = f"{kind}_steps"
    plain = forward(kind, steps, batch, size)
    spread = [
        None if x is None else np.swapaxes(np.swapaxes(x, 0, -1).copy(), 0, -1) for x in plain
    ]
    spread[0] = np.swapaxes(np.swapaxes(plain[0], 0, 1).copy(), 0, 1)
    agree(first, spread, {}, 2)
    gaps = [None if x is None else np.repeat(x, 2, axis=-1)[..., ::2] for x in plain]
    agree(first, gaps, {}, 2)

    second = f"{first}_backward"
    plain = backward(kind, steps, batch, size, {})
    spread = [np.swapaxes(np.swapaxes(x, 0, 1).copy(), 0, 1) for x in plain]
    agree(second, spread, {}, 2)
    agree(second, [np.repeat(x, 2, axis=-1)[..., ::2] for x in plain], {}, 2)
    agree(second, [np.broadcast_to(np.float32(1.5), plain[0].shape), *plain[1:]], {}, 2)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_nan_and_infinity_stay_in_their_sequence(kind, options):
    arrays = forward(kind, 5, 3, 20)
    arrays[0][2, 1, 3] = np.nan
    arrays[0][3, 2, :] = np.inf
    name = f"{kind}_steps"
    expected = defined(name, arrays, options)
    found = computed(name, expected, arrays, options, 2)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=3e-5, atol=3e-6)
    assert np.isnan(found[0][-1, 1]).any()
    assert np.isfinite(found[0][:, 0]).all()


def test_gates_that_saturate():
    arrays = [x * np.float32(60) for x in forward("lstm", 6, 2, 16)]
    agree("lstm_steps", arrays, {}, 1)


@pytest.mark.parametrize("kind", GATES)
def test_what_is_left_to_numpy(kind):
    arrays = forward(kind, 2, 3, 4)
    name = f"{kind}_steps"
    outs = tuple(e.astype(np.float32) for e in defined(name, arrays, {}))
    lower = TABLE[name].lower
    assert lower(Site(1), outs, *map(wide, arrays)) is None
    assert lower(Site(1), tuple(map(wide, outs)), *arrays) is None
    odd = np.ones(3, np.int32)
    assert lower(Site(1), outs, *arrays, lengths=odd) is None
    arrays[0] = arrays[0][:0]
    assert lower(Site(1), outs, *arrays) is None


@kernel
def once(frame, part, parts):
    """Frame: as the arguments of ``multiply_rows``."""
    multiply_rows(
        frame[0], frame[1], frame[2], frame[3], frame[4], frame[5], frame[6], frame[7]
    )  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 16, 29])
@pytest.mark.parametrize(
    ("depth", "blocks", "size"), [(1, 1, 1), (7, 3, 5), (33, 1, 65), (5, 2, 32)]
)
def test_products_of_panels(rows, depth, blocks, size):
    a, b = normal(rows, depth), normal(depth, blocks * size)
    site = Site(2)
    pack, panels = packed(site, b, blocks)
    padded = panels.size // depth // blocks
    out = np.full((rows + 1, blocks * padded), np.nan, np.float32)
    slots = [rows, blocks * padded, depth, a, a.strides[0], panels, out, out.strides[0]]
    Program([pack, Instruction(once, slots, parallel=False)], 2).run()
    found = out[:-1].reshape(rows, blocks, padded)
    expected = (wide(a) @ wide(b)).reshape(rows, blocks, size)
    np.testing.assert_allclose(found[..., :size], expected, rtol=1e-5, atol=1e-5)
    assert not found[..., size:].any()
    assert np.isnan(out[-1]).all()  # nothing was written past the rows
