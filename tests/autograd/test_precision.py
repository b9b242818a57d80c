"""Mixed precision: what runs in what, and that the derivatives know."""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.autograd import REGISTRY, STATE, Operation, apply
from gpubackprop.autograd import precision as module
from gpubackprop.autograd.precision import ROWS, current
from gpubackprop.backends import get_backend
from gpubackprop.backends.interception import intercepted
from gpubackprop.errors import ConfigError, ShapeError
from gpubackprop.nn import functional as F
from gpubackprop.recipes.residual import ResidualBlock
from gpubackprop.testing import StandInBackend, samples_of

ml_dtypes = pytest.importorskip("ml_dtypes")

HALF = {"bf16-mixed": np.dtype(ml_dtypes.bfloat16), "fp16-mixed": np.dtype(np.float16)}
DIGITS = {"bf16-mixed": 2.0**-8, "fp16-mixed": 2.0**-11}  # half a step at 1
MIXED = pytest.mark.parametrize("name", HALF)
RNG = np.random.default_rng(5)


def leaf(*shape, dtype=np.float32):
    return gb.tensor(RNG.standard_normal(shape).astype(dtype), requires_grad=True)


def test_every_operation_has_one_row():
    names = [name for row in ROWS.values() for name in row.split()]
    assert len(names) == len(set(names))
    assert set(names) == set(REGISTRY)


@MIXED
def test_products_round_their_operands_and_their_result(name):
    half, x, w, b = HALF[name], leaf(4, 64), leaf(3, 64), leaf(3)
    with gb.precision(name):
        y = F.linear(x, w, b)
    wide = [t.numpy().astype(half).astype(np.float64) for t in (x, w, b)]
    exact = wide[0] @ wide[1].T + wide[2]
    assert y.dtype == half
    # One rounding at the end, not one for each term or for the bias.
    np.testing.assert_allclose(
        y.numpy().astype(np.float64), exact, rtol=1.01 * DIGITS[name], atol=1e-5
    )


@MIXED
def test_gradients_reach_parameters_as_float32(name):
    half, x, w = HALF[name], leaf(5, 4), leaf(3, 4)
    with gb.precision(name):
        loss = F.linear(x, w).sum()
    assert loss.dtype == np.float32
    loss.backward()  # behind the block: the dtypes are those of the forward pass
    assert x.grad.dtype == w.grad.dtype == np.float32
    expected = np.ones((5, 3)).T @ x.numpy().astype(half).astype(np.float64)
    np.testing.assert_allclose(w.grad.numpy(), expected, rtol=1.01 * DIGITS[name], atol=1e-6)
    assert (w.grad.numpy() == w.grad.numpy().astype(half)).all()  # it was rounded on its way


@MIXED
def test_rows_of_the_table(name):
    half, x, h = HALF[name], leaf(2, 3), leaf(2, 3).astype(HALF[name])
    image = leaf(4, 2, 5, 5).astype(half)
    ones, three = (gb.tensor(np.ones(n, np.float32)) for n in (2, 3))
    with gb.precision(name):
        assert gb.matmul(x, x.T).dtype == gb.einsum("ij,kj->ik", x, h).dtype == half
        for y in (gb.exp(h), h.sum(), h.mean(), F.softmax(h, dim=-1), h**2):
            assert y.dtype == np.float32
        for norm in (F.layer_norm, F.rms_norm):
            assert norm(h, 3).dtype == norm(h, 3, three).dtype == half
            assert norm(x, 3).dtype == np.float32
        assert F.group_norm(image, 1, ones, ones).dtype == half
        assert F.instance_norm(image, weight=ones, bias=ones).dtype == half
        assert (h + x).dtype == gb.where(h > 0, h, x).dtype == np.float32
        assert gb.concatenate([h, x]).dtype == np.float32
        for y in (h * 2.0, 1.5 - h, h + h, F.relu(h), F.gelu(h), h[0], h.reshape(6), h.clip(0, 1)):
            assert y.dtype == half
        assert F.batch_norm(image, None, None, ones, ones, training=True).dtype == half
        assert F.batch_norm(image, None, None, training=True).dtype == half
        assert F.max_pool2d(image, 2).dtype == F.avg_pool2d(image, 2).dtype == half
        assert F.dropout(h, 0.5).dtype == half
        target = gb.tensor(np.zeros(2, np.int64))
        assert F.cross_entropy(h, target).dtype == F.mse_loss(h, h).dtype == np.float32
        assert h.astype(np.float32).dtype == np.float32  # what is asked for is done
        assert x.argmax().dtype == np.int64
        q = leaf(1, 2, 3, 4)
        assert F.scaled_dot_product_attention(q, q, q).dtype == half


def test_double_precision_is_left_alone():
    x = leaf(3, 4, dtype=np.float64)
    with gb.precision("fp16-mixed"):
        assert (x @ x.T).dtype == np.float64
        assert (x @ x.T.astype(np.float32)).dtype == np.float64


def test_a_host_array_beside_a_tensor_is_an_operand_too():
    x, y = gb.tensor(np.ones((1, 2), np.float32)), np.array([[1.0 + 2.0**-12], [-1.0]], np.float32)
    assert (x @ y).item() == 2.0**-12
    with gb.precision("fp16-mixed"):
        assert (x @ y).item() == 0.0  # it was rounded before


def test_blocks_lie_in_each_other_and_end_with_errors():
    assert current() == "float32"
    with gb.precision("bf16-mixed"):
        with gb.precision("float32"):
            assert current() == "float32"
            assert (leaf(2, 2) @ leaf(2, 2)).dtype == np.float32
        with pytest.raises(ZeroDivisionError), gb.precision("tf32"):
            assert current() == get_backend("cpu").precision == "tf32"
            raise ZeroDivisionError
        assert current() == "bf16-mixed" and get_backend("cpu").precision == "float32"
    assert current() == "float32" and STATE.policy is None


def test_an_error_of_an_operation_leaves_the_precision_as_it_was():
    with gb.precision("fp16-mixed"):
        with pytest.raises(ShapeError):
            leaf(2, 3) @ leaf(2, 3)
        assert current() == "fp16-mixed"
        assert (leaf(2, 2) @ leaf(2, 2)).dtype == np.float16


def test_a_decorated_function_and_other_threads():
    found = {}

    @gb.precision("fp16-mixed")
    def product(key):
        found[key] = (leaf(2, 2) @ leaf(2, 2)).dtype

    product("here")
    with gb.precision("bf16-mixed"):
        thread = threading.Thread(target=lambda: found.update(there=current()))
        thread.start()
        thread.join()
    assert found == {"here": np.float16, "there": "float32"}


def test_errors(monkeypatch):
    with pytest.raises(ConfigError, match="did you mean 'bf16-mixed'"):
        gb.precision("bf16_mixed")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ConfigError, match=r"pip install 'gpubackprop\[bf16\]'"):
        gb.precision("bf16-mixed")
    gb.precision("fp16-mixed")  # NumPy has it


def test_tf32_is_what_backends_read_and_a_cpu_says_once_that_it_has_none(monkeypatch):
    monkeypatch.setattr(module, "_TOLD", set())
    backend, x = get_backend("cpu"), leaf(2, 2)
    with pytest.warns(UserWarning, match="'tf32' means float32 on cpu"), gb.precision("tf32"):
        assert backend.precision == "tf32"
        assert (x @ x).dtype == np.float32
    assert backend.precision == "float32"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with gb.precision("tf32"):
            assert ((x @ x).numpy() == x.numpy() @ x.numpy()).all()


def test_a_backend_that_has_tf32_says_nothing(monkeypatch):
    monkeypatch.setattr(module, "_TOLD", set())
    backend = StandInBackend("another")
    backend.has_tf32 = True
    x = gb.tensor(np.eye(2, dtype=np.float32), device=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with gb.precision("tf32"):
            x @ x


def test_the_precision_that_a_backend_was_given_holds_where_no_block_does():
    backend = StandInBackend("a third")
    assert backend.precision == "float32"
    backend.precision = "tf32"
    assert backend.precision == "tf32"
    with gb.precision("float32"):
        assert backend.precision == "float32"
    with pytest.raises(ConfigError, match="'float32' or 'tf32', not 'fp16'"):
        backend.precision = "fp16"


def test_a_rule_that_is_recorded_runs_as_it_is():
    """A rule that multiplies float32 matrices: they are not rounded."""
    gram = Operation(
        "gram",  # in no row, so that float32 stays float32
        lambda K, x: K.matmul(x, K.transpose(x)),
        lambda K, call, dy, x: (K.matmul(K.add(dy, K.transpose(dy)), x),),
        lambda x: x,
        lambda rng: (),
        saves=("x",),
    )
    array = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    found = []
    for inside in ("fp16-mixed", "float32"):
        x = gb.tensor(array, requires_grad=True)
        with gb.precision(inside):
            y = apply(gram, x)
            (g,) = gb.grad((y * y).sum(), x, create_graph=True)
        (h,) = gb.grad((g * g).sum(), x)
        found.append((g.numpy(), h.numpy()))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@MIXED
def test_a_checkpoint_is_run_again_in_the_precision_of_the_first_run(name):
    x, w = leaf(6, 5), leaf(5, 5)

    def block(h):
        return F.gelu(h @ w).sum()

    with gb.precision(name):
        plain = block(x)
    plain.backward()
    expected = x.grad.numpy().copy(), w.grad.numpy().copy()
    x.grad = w.grad = None
    with gb.precision(name):
        again = gb.checkpoint(block, x)
    again.backward()
    for t, g in zip((x, w), expected, strict=True):
        np.testing.assert_array_equal(t.grad.numpy(), g)
    assert current() == "float32"


def run(op, sample, dtype, half):
    """Results and gradients of an operation on inputs that `half` holds, as tensors of `dtype`."""
    inputs = []
    for x in sample.inputs:
        if isinstance(x, np.ndarray) and x.dtype.kind == "f":
            inputs.append(gb.tensor(x.astype(half).astype(dtype), requires_grad=True))
        else:
            inputs.append(gb.tensor(x) if isinstance(x, np.ndarray) else x)
    results = apply(op, *inputs, **sample.params)
    results = results if isinstance(results, tuple) else (results,)
    roots = [y for y in results if y.requires_grad]
    if not roots or not sample.differentiable:
        return results, ()
    rng = np.random.default_rng(1)
    seeds = [gb.tensor(rng.standard_normal(y.shape)).astype(y.dtype) for y in roots]
    leaves = [x for x in inputs if isinstance(x, gb.Tensor) and x.requires_grad]
    return results, gb.grad(roots, leaves, seeds, allow_unused=True)


def gap(found, exact):
    """The difference as a share of the length of what it should be, both taken as vectors."""
    found, exact = found.numpy().astype(np.float64), exact.numpy().astype(np.float64)
    assert found.shape == exact.shape
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(found[~finite], exact[~finite])
    return np.linalg.norm((found - exact)[finite]) / max(np.linalg.norm(exact[finite]), 1e-2)


@MIXED
@pytest.mark.parametrize("op", REGISTRY.values(), ids=list(REGISTRY))
def test_every_operation_on_half_tensors(op, name):
    """Values and gradients are those of double precision but for a few roundings."""
    half, most = HALF[name], 20 * DIGITS[name]
    for sample in samples_of(op):
        exact, slopes = run(op, sample, np.float64, half)
        with gb.precision(name):
            found, gradients = run(op, sample, half, half)
        for y, want in zip(found, exact, strict=True):
            assert gap(y, want) <= most, sample
            if op.name != "astype":
                assert y.dtype in (half, np.float32) or y.dtype.kind not in "fV"
        for g, want in zip(gradients, slopes, strict=True):
            assert g.dtype == half
            assert gap(g, want) <= most, sample


def wide_results(backend, batch, run):
    """Kernels that made arrays of four axes for a batch, wider than half precision."""
    found = []

    def call(kernel_name, kernel, args, kwargs):
        result = kernel(*args, **kwargs)
        for a in result if isinstance(result, tuple) else (result,):
            shape, dtype = getattr(a, "shape", ()), getattr(a, "dtype", None)
            if len(shape) == 4 and shape[0] == batch and dtype.itemsize > 2:
                found.append((kernel_name, dtype.name))
        return result

    with intercepted(backend, call):
        run()
    return found


@MIXED
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_residual_block_makes_no_float32_picture(name, training):
    """Neither forwards nor backwards, with its parameters in float32: batch normalisation has its
    statistics in float32 and nothing else."""
    backend = get_backend("cpu")
    block = ResidualBlock(4, 8, 2, "B")
    block.train(training)
    x = gb.tensor(RNG.standard_normal((5, 6, 6, 4)).astype(HALF[name]), requires_grad=True)

    def step():
        with gb.precision(name):
            y = block(x)
        assert y.dtype == HALF[name]
        if training:
            y.backward(gb.tensor(np.ones(y.shape, HALF[name])))

    assert wide_results(backend, 5, step) == []
    if training:
        assert {p.grad.dtype for p in block.parameters()} == {np.dtype(np.float32)}
    with gb.precision("float32"):
        assert wide_results(backend, 5, lambda: block(x.detach().astype(np.float32)))


def test_parameters_that_are_trained_beside_fixed_moments_do_not_overflow():
    """Their gradients are sums over a whole batch: beyond float16 here."""
    x = gb.tensor(np.full((300, 16, 16, 2), 2.0, np.float16), requires_grad=True)
    scale, shift = leaf(2), leaf(2)
    with gb.precision("fp16-mixed"):
        y = apply(REGISTRY["scale_shift"], x, scale, shift)
    y.backward(gb.tensor(np.ones(y.shape, np.float16)))
    assert (scale.grad.numpy() == 2 * 300 * 256).all() and (shift.grad.numpy() == 300 * 256).all()
    assert x.grad.dtype == np.float16


@MIXED
@pytest.mark.parametrize("op", ["rnn", "lstm", "gru"])
def test_recurrent_layers_multiply_their_input_in_half_precision(op, name):
    """One product of half operands for all steps; the states are float32 throughout."""
    backend, half = get_backend("cpu"), HALF[name]
    gates, states = {"rnn": (1, 1), "lstm": (4, 2), "gru": (3, 1)}[op]
    x, *others = leaf(5, 3, 4), *(leaf(3, 6) for _ in range(states))
    weights = leaf(gates * 6, 4), leaf(gates * 6, 6), leaf(gates * 6), leaf(gates * 6)
    seen = []

    def call(kernel_name, kernel, args, kwargs):
        if kernel_name in ("wide_matmul", "matmul") or "_steps" in kernel_name:
            dtypes = {str(a.dtype) for a in args if hasattr(a, "dtype")}
            seen.append((kernel_name, dtypes))
        return kernel(*args, **kwargs)

    with intercepted(backend, call):
        with gb.precision(name):
            y, *_ = apply(REGISTRY[op], x, *others, *weights, None)
        y.backward(gb.tensor(np.ones(y.shape, np.float32)))
    assert y.dtype == np.float32
    assert seen == [
        ("wide_matmul", {half.name}),
        (f"{op}_steps", {"float32"}),
        (f"{op}_steps_backward", {"float32"}),
        ("matmul", {half.name}),  # of the input
        ("matmul", {half.name}),  # of its weight
        ("matmul", {"float32"}),  # of the state's
    ]
    for t in (x, *others, *weights):
        assert t.grad.dtype == np.float32
    exact = apply(REGISTRY[op], x, *others, *weights, None)[0].numpy()
    apart = np.abs(y.numpy() - exact).max()
    assert 0 < apart < 20 * DIGITS[name]


def test_the_page_shows_the_table():
    page = (Path(__file__).parents[2] / "docs" / "precision.md").read_text(encoding="utf-8")
    for row in ROWS.values():
        assert ", ".join(f"`{name}`" for name in row.split()) + " |" in page
