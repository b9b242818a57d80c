"""``nn.functional``: meanings that a comparison with a peer does not show, and errors in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.autograd.gradcheck import gradcheck
from gpubackprop.backends.random import Generator, manual_seed, using
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.nn import functional as F

RNG = np.random.default_rng(11)
POINTWISE = [
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.kl_div,
    F.quadratic_cost,
]
COSTS = [*POINTWISE[:-1], F.cross_entropy, F.nll_loss]


def named(f: Callable[..., Any]) -> str:
    return f.__name__


def x32(*shape: int, grad: bool = False) -> gb.Tensor:
    return gb.tensor(RNG.uniform(0.1, 0.9, shape).astype(np.float32), requires_grad=grad)


def nodes_below(t: gb.Tensor) -> list[str]:
    """Names of the recorded operations that `t` was made by, each once."""
    seen, stack = {}, [t.node]
    while stack:
        node = stack.pop()
        if node is not None and hasattr(node, "op") and node.number not in seen:
            seen[node.number] = node.op.name
            stack.extend(node.edges)
    return sorted(seen.values())


# Shapes of targets.


@pytest.mark.parametrize("cost", POINTWISE, ids=named)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (4, 1), (1,), ()])
def test_a_target_that_would_broadcast_is_an_error(cost: Any, shape: tuple[int, ...]) -> None:
    x = x32(4) if shape != (4,) else x32(4, 1)
    with pytest.raises(ShapeError) as caught:
        cost(x, x32(*shape))
    assert cost.__name__ in str(caught.value)
    assert "must have the same shape; they would broadcast to" in str(caught.value)


@pytest.mark.parametrize("cost", POINTWISE, ids=named)
def test_a_target_that_fits_in_no_way_is_an_error(cost: Any) -> None:
    with pytest.raises(ShapeError, match=r"float32\[2, 3\].*float32\[5\].*same shape$"):
        cost(x32(2, 3), x32(5))


def test_the_error_of_a_column_target_tells_how_to_mend_it() -> None:
    with pytest.raises(ShapeError, match=r"broadcast to \(10, 10\).*reshape the target to \(10,\)"):
        F.mse_loss(x32(10), x32(10, 1))


@pytest.mark.parametrize("cost", COSTS, ids=named)
def test_an_unknown_reduction_is_an_error(cost: Any) -> None:
    target = gb.tensor([0, 1]) if cost in (F.cross_entropy, F.nll_loss) else x32(2, 3)
    with pytest.raises(ConfigError, match="'avg'.*allowed: mean, sum, none"):
        cost(x32(2, 3), target, reduction="avg")


def test_integer_targets_do_not_widen_the_result() -> None:
    x = x32(4, grad=True)
    loss = F.binary_cross_entropy_with_logits(x, gb.tensor(np.array([0, 1, 1, 0])))
    assert loss.dtype == np.float32
    loss.backward()
    assert x.grad.dtype == np.float32


def test_targets_may_be_host_arrays_but_not_lists() -> None:
    x = x32(3, 2)
    labels = np.array([0, 1, 1])
    assert F.cross_entropy(x, labels).item() == F.cross_entropy(x, gb.tensor(labels)).item()
    with pytest.raises(DTypeError, match=r"cross_entropy: target is a list; make a tensor"):
        F.cross_entropy(x, [0, 1, 1])


@pytest.mark.parametrize("cost", POINTWISE[:4], ids=named)
def test_integer_inputs_are_an_error(cost: Any) -> None:
    with pytest.raises(DTypeError, match="input must be real numbers, not int64"):
        cost(gb.tensor(np.arange(3)), x32(3))


# Class indices.


@pytest.mark.parametrize("label", [3, -1, 255])
@pytest.mark.parametrize("cost", [F.cross_entropy, F.nll_loss], ids=named)
def test_a_label_out_of_range_is_named(cost: Any, label: int) -> None:
    labels = gb.tensor(np.array([0, 2, label, 1]))
    with pytest.raises(
        IndexError, match=rf"target\[2\] = {label} is not a class index in \[0, 3\)"
    ):
        cost(x32(4, 3), labels)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"ignore_index": 1}])
def test_a_label_out_of_range_is_named_with_options(options: dict[str, Any]) -> None:
    with pytest.raises(IndexError, match=r"target\[1\] = 7"):
        F.cross_entropy(x32(2, 3), gb.tensor([0, 7]), **options)


@pytest.mark.parametrize("cost", [F.cross_entropy, F.nll_loss], ids=named)
def test_a_label_out_of_range_is_named_in_an_image(cost: Any) -> None:
    labels = np.zeros((2, 4, 5), np.int64)
    labels[1, 0, 3] = 9
    with pytest.raises(IndexError, match=r"target\[1, 0, 3\] = 9 is not a class index in \[0, 3\)"):
        cost(x32(2, 3, 4, 5), gb.tensor(labels))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.uint64])
def test_every_integer_dtype_holds_labels(dtype: Any) -> None:
    x, labels = x32(300, 100), RNG.integers(0, 100, 300)
    for cost in (F.cross_entropy, F.nll_loss):
        expected = cost(x, gb.tensor(labels)).item()
        assert cost(x, gb.tensor(labels.astype(dtype))).item() == expected


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (np.zeros((4, 1), np.int64), r"reshape it to \(4,\)"),
        (np.eye(4, 3, dtype=np.int64), r"argmax\(axis=1\)"),
        (np.zeros(3, np.int64), "one index for each of the 4 rows"),
        (np.zeros((4, 2), np.float32), r"taken as probabilities and must have the shape \(4, 3\)"),
    ],
)
def test_a_class_target_of_a_wrong_shape_is_an_error(target: np.ndarray, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        F.cross_entropy(x32(4, 3), gb.tensor(target))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (np.zeros(4, np.float32), r'class indices must be integers: target.astype\("int64"\)'),
        (np.full(4, np.nan), "class indices must be integers"),
        (np.ones((4, 3), bool), "target is boolean"),
        (np.ones(4, bool), "target is boolean"),
    ],
)
def test_a_class_target_of_a_wrong_dtype_is_an_error(target: np.ndarray, words: str) -> None:
    with pytest.raises(DTypeError, match=words):
        F.cross_entropy(x32(4, 3), gb.tensor(target))


@pytest.mark.parametrize("cost", [F.cross_entropy, F.nll_loss], ids=named)
@pytest.mark.parametrize("weight", [np.ones(1), np.ones(4), np.ones((1, 3)), np.ones(())])
def test_class_weights_of_a_wrong_shape_are_an_error(cost: Any, weight: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"weight .*must have shape \(3,\), one for each class"):
        cost(x32(4, 3), gb.tensor([0, 1, 2, 0]), gb.tensor(weight.astype(np.float32)))


def test_wrong_options_of_cross_entropy_are_errors() -> None:
    x, labels, share = x32(2, 3), gb.tensor([0, 1]), x32(2, 3)
    for target in (labels, share):
        with pytest.raises(ConfigError, match="label_smoothing must be between 0 and 1, not 1.5"):
            F.cross_entropy(x, target, label_smoothing=1.5)
    with pytest.raises(ConfigError, match="ignore_index=2 is for class indices"):
        F.cross_entropy(x, share, ignore_index=2)


def test_a_nan_among_probabilities_is_named() -> None:
    share = np.full((2, 3), 1 / 3)
    share[1, 2] = np.nan
    with pytest.raises(ConfigError, match=r"target\[1, 2\] = nan is not a number"):
        F.cross_entropy(gb.tensor(np.zeros((2, 3))), gb.tensor(share))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
def test_an_ignored_row_takes_no_part_even_if_it_is_not_finite(options: dict[str, Any]) -> None:
    x = gb.tensor(np.array([[1.0, 2.0], [np.nan, np.inf], [0.5, 0.0]]), requires_grad=True)
    with np.errstate(invalid="ignore"):
        loss = F.cross_entropy(x, gb.tensor([0, -100, 1]), **options)
        loss.backward()
    kept = gb.tensor(x.numpy()[[0, 2]], requires_grad=True)
    expected = F.cross_entropy(kept, gb.tensor([0, 1]), **options)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_array_equal(x.grad.numpy()[1], 0.0)
    np.testing.assert_allclose(x.grad.numpy()[[0, 2]], kept.grad.numpy(), rtol=1e-12)


def test_class_weights_have_a_gradient() -> None:
    x = gb.tensor(RNG.standard_normal((5, 3)), requires_grad=True)
    weight = gb.tensor(RNG.uniform(0.5, 2.0, 3), requires_grad=True)
    labels = gb.tensor(np.array([0, 2, -100, 2, 1]))
    for reduction in ("mean", "sum", "none"):
        gradcheck(lambda a, w, r=reduction: F.cross_entropy(a, labels, w, reduction=r), [x, weight])


def test_cross_entropy_agrees_with_its_parts() -> None:
    x, labels = gb.tensor(RNG.standard_normal((6, 4))), gb.tensor(RNG.integers(0, 4, 6))
    weight = gb.tensor(RNG.uniform(0.5, 2.0, 4))
    parts = F.nll_loss(F.log_softmax(x, dim=1), labels, weight)
    whole = F.cross_entropy(x, labels, weight)
    rows = F.cross_entropy(x, gb.tensor(np.eye(4)[labels.numpy()]), weight, reduction="sum")
    assert whole.item() == pytest.approx(parts.item(), rel=1e-12)
    assert rows.item() == pytest.approx(
        F.cross_entropy(x, labels, weight, reduction="sum").item(), rel=1e-12
    )


# Probabilities.


@pytest.mark.parametrize("argument", ["input", "target"])
@pytest.mark.parametrize("value", [1.5, -0.25, np.nan])
def test_a_value_that_is_no_probability_is_named(argument: str, value: float) -> None:
    values = {"input": np.full((2, 3), 0.5), "target": np.full((2, 3), 0.5)}
    values[argument][0, 2] = value
    with pytest.raises(ConfigError, match=rf"{argument}\[0, 2\] = {value} is not between 0 and 1"):
        F.binary_cross_entropy(*(gb.tensor(values[k]) for k in ("input", "target")))


@pytest.mark.parametrize("shape", [(4,), (2, 1, 3), (5, 2, 3)])
def test_a_weight_that_enlarges_the_loss_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="does not broadcast to the shape"):
        F.binary_cross_entropy_with_logits(x32(2, 3), x32(2, 3), weight=x32(*shape))


def test_logits_of_any_size_give_finite_losses() -> None:
    x = gb.tensor(np.array([-1e4, 1e4, 1e4, -1e4]), requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(x, np.array([1.0, 0.0, 1.0, 0.0]), reduction="none")
    np.testing.assert_array_equal(loss.numpy(), [1e4, 1e4, 0.0, 0.0])
    loss.backward(np.ones(4))
    np.testing.assert_array_equal(x.grad.numpy(), [-1.0, 1.0, 0.0, 0.0])


def test_options_of_losses_are_checked() -> None:
    with pytest.raises(ConfigError, match="delta must be positive, not 0"):
        F.huber_loss(x32(2), x32(2), delta=0)
    with pytest.raises(ConfigError, match="beta must not be negative, but is -1"):
        F.smooth_l1_loss(x32(2), x32(2), beta=-1)


# The textbook's cost, and the size of the graph.


def test_quadratic_cost_is_the_textbooks() -> None:
    a = gb.tensor(RNG.uniform(0, 1, (5, 3)), requires_grad=True)
    y = RNG.uniform(0, 1, (5, 3))
    cost = F.quadratic_cost(a, y)
    expected = sum(np.sum((y[i] - a.numpy()[i]) ** 2) / 2 for i in range(5)) / 5
    assert cost.item() == pytest.approx(expected, rel=1e-12)
    cost.backward()
    np.testing.assert_allclose(a.grad.numpy(), (a.numpy() - y) / 5, rtol=1e-12)
    single = F.quadratic_cost(gb.tensor([1.0, 2.0, 2.0]), np.zeros(3, np.float32))
    assert single.item() == 4.5


def test_a_step_has_few_nodes() -> None:
    x, (w1, b1, w2, b2) = x32(10, 7), (x32(*s, grad=True) for s in ((5, 7), (5,), (3, 5), (3,)))
    out = F.sigmoid(F.linear(F.sigmoid(F.linear(x, w1, b1)), w2, b2))
    names = nodes_below(F.quadratic_cost(out, x32(10, 3)))
    assert names == ["linear", "linear", "mse_loss", "sigmoid", "sigmoid"]
    assert len(nodes_below(F.cross_entropy(out, gb.tensor(np.zeros(10, np.int64))))) == 5


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "cross_entropy"])
def test_the_mean_of_nothing_is_nan(name: str) -> None:
    x = gb.tensor(np.zeros((0, 3)))
    target = np.zeros(0, np.int64) if name == "cross_entropy" else np.zeros((0, 3))
    with np.errstate(invalid="ignore"):
        assert np.isnan(getattr(F, name)(x, target).item())


def test_accuracy() -> None:
    scores = gb.tensor(np.array([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]))
    assert F.accuracy(scores, gb.tensor([1, 0, 1, 1])).item() == 0.75
    assert F.accuracy(scores, np.eye(2)[[1, 0, 1, 1]]).item() == 0.75
    for wrong in (np.zeros((4, 1), np.int64), np.zeros(3, np.int64), np.zeros(4)):
        with pytest.raises(ShapeError, match="accuracy: target must hold 4 class indices"):
            F.accuracy(scores, wrong)


# Dropout.


def test_dropout_outside_training_is_the_input_itself() -> None:
    x = x32(4, 5)
    assert F.dropout(x, 0.7, training=False) is x
    assert F.dropout(x, 0.0) is x


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(p: float) -> None:
    x = gb.tensor(np.ones(40_000, np.float32), requires_grad=True)
    y = F.dropout(x, p, generator=Generator(3))
    kept = y.numpy() != 0
    # The number kept is binomial: five standard deviations.
    assert abs(kept.mean() - (1 - p)) < 5 * np.sqrt(p * (1 - p) / x.size)
    np.testing.assert_allclose(y.numpy()[kept], 1 / (1 - p), rtol=1e-6)
    y.backward(np.full(40_000, 2.0, np.float32))
    np.testing.assert_array_equal(x.grad.numpy(), 2 * y.numpy())


def test_dropout_of_everything_is_zero() -> None:
    x = x32(3, 4, grad=True)
    y = F.dropout(x, 1.0, generator=Generator(0))
    y.sum().backward()
    assert not y.numpy().any() and not x.grad.numpy().any()


def test_dropout_moves_its_generator_on_by_a_word_per_element() -> None:
    x, generator = x32(3, 7), Generator(5)
    first, second = (F.dropout(x, generator=generator).numpy() for _ in range(2))
    assert (first != second).any()
    assert generator.state() == (5, 0, 12)  # twice 21 words, in blocks of four
    again = Generator.from_state((5, 0, 6))
    np.testing.assert_array_equal(F.dropout(x, generator=again).numpy(), second)


def test_dropout_takes_the_default_generator() -> None:
    x = x32(50)
    with using(Generator(0)):
        manual_seed(8)
        first = F.dropout(x).numpy()
        manual_seed(8)
        np.testing.assert_array_equal(F.dropout(x).numpy(), first)
        assert (F.dropout(x).numpy() != first).any()


@pytest.mark.parametrize("p", [-0.1, 1.1, np.nan])
def test_dropout_of_no_probability_is_an_error(p: float) -> None:
    with pytest.raises(ConfigError, match="p must be a probability between 0 and 1"):
        F.dropout(x32(3), p, training=False)


# The rest.


def test_embedding_names_a_row_out_of_range() -> None:
    table = x32(5, 2)
    for wrong in (5, -1):
        with pytest.raises(IndexError, match=rf"embedding: input\[1, 0\] = {wrong} is not a row"):
            F.embedding(gb.tensor([[0, 4], [wrong, 2]]), table)
    with pytest.raises(DTypeError, match="must be integers"):
        F.embedding(x32(3), table)
    with pytest.raises(ConfigError, match="padding_idx 5 is no row of weight, which has 5"):
        F.embedding(gb.tensor([0]), table, padding_idx=5)


def test_the_padding_row_has_its_value_but_no_gradient() -> None:
    table = x32(4, 2, grad=True)
    rows = F.embedding(np.array([3, 1, 3, 0]), table, padding_idx=-1)
    np.testing.assert_array_equal(rows.numpy(), table.numpy()[[3, 1, 3, 0]])
    rows.sum().backward()
    np.testing.assert_array_equal(table.grad.numpy(), [[1, 1], [1, 1], [0, 0], [0, 0]])


def test_one_hot() -> None:
    np.testing.assert_array_equal(F.one_hot(gb.tensor([2, 0])).numpy(), [[0, 0, 1], [1, 0, 0]])
    with pytest.raises(IndexError, match=r"one_hot: tensor\[1\] = 4 is not a class in \[0, 3\)"):
        F.one_hot(gb.tensor([2, 4]), 3)
    with pytest.raises(DTypeError, match="must be integers, not float32"):
        F.one_hot(x32(3))
    with pytest.raises(ShapeError, match="pass num_classes"):
        F.one_hot(gb.tensor(np.zeros(0, np.int64)))


def test_options_of_activations_are_checked() -> None:
    with pytest.raises(ConfigError, match="approximate must be 'none' or 'tanh', not 'erf'"):
        F.gelu(x32(3), approximate="erf")
    with pytest.raises(ConfigError, match="min_val"):
        F.hardtanh(x32(3), 1.0, -1.0)
    with pytest.raises(ConfigError, match="beta must not be 0"):
        F.softplus(x32(3), beta=0.0)
    with pytest.raises(ShapeError, match="axis 2 is out of range for 2 axes"):
        F.softmax(x32(3, 2), dim=2)
    with pytest.raises(ShapeError, match=r"must be normalized_shape \(3,\)"):
        F.layer_norm(x32(3, 2), 3)
    with pytest.raises(ShapeError, match="weight .* must have the shape"):
        F.layer_norm(x32(3, 2), 2, x32(3))


@pytest.mark.parametrize(
    ("dtype", "far"), [("float16", 6e4), ("float32", 1e30), ("float64", 1e200)]
)
def test_the_slope_of_gelu_tanh_far_from_0_is_a_number(dtype: str, far: float) -> None:
    x = gb.tensor(np.array([-far, far], dtype), requires_grad=True)
    with np.errstate(over="ignore"):
        F.gelu(x, approximate="tanh").sum().backward()
    assert x.grad.numpy().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("weight", "bias", "words"),
    [
        ((3,), None, r"linear: weight must have shape \(out, in\), not float32\[3\]"),
        ((4, 3), (1,), r"linear: bias must have shape \(4,\), not float32\[1\]"),
        ((4, 3), (2, 4), r"linear: bias must have shape \(4,\)"),
    ],
)
def test_linear_repeats_no_parameter(weight: Any, bias: Any, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        F.linear(x32(2, 3), x32(*weight), bias and x32(*bias))


def test_logsigmoid_keeps_its_digits() -> None:
    x = gb.tensor(np.array([-1000.0, -40.0, 40.0]), requires_grad=True)
    y = F.logsigmoid(x)
    np.testing.assert_allclose(y.numpy(), [-1000.0, -40.0, -np.exp(-40.0)], rtol=1e-15)
    y.backward(np.ones(3))
    np.testing.assert_allclose(x.grad.numpy(), [1.0, 1.0, np.exp(-40.0)], atol=1e-16)


def test_softplus_follows_a_small_threshold_only() -> None:
    x = gb.tensor(np.array([0.5, 1.5, 25.0]))
    exact = np.log1p(np.exp(x.numpy()))
    np.testing.assert_allclose(F.softplus(x).numpy(), exact, rtol=1e-15)
    np.testing.assert_allclose(
        F.softplus(x, threshold=1.0).numpy(), [exact[0], 1.5, 25.0], rtol=1e-15
    )
