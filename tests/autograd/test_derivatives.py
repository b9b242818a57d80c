"""grad() and higher derivatives: targets anywhere in the graph, any order, through every kernel."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.autograd import gradcheck, gradgradcheck, tape
from gpubackprop.backends import get_backend, kernel_names
from gpubackprop.backends.primitives import Primitives
from gpubackprop.errors import GradientError


def leaf(values):
    return gb.tensor(np.array(values, np.float64), requires_grad=True)


def draw(*shape, seed=0):
    return leaf(np.random.default_rng([seed, *shape]).standard_normal(shape))


# grad().


def test_grad_touches_no_leaf():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    gx, gy = gb.grad((x * x * y).sum(), [x, y])
    np.testing.assert_array_equal(gx.numpy(), [6.0, 16.0])
    np.testing.assert_array_equal(gy.numpy(), [1.0, 4.0])
    assert x.grad is None and y.grad is None
    assert not gx.requires_grad


def test_by_an_intermediate_result():
    x = leaf(3.0)
    y = x * x
    z = y * y + y
    gy, gx = gb.grad(z, [y, x])
    assert (gy.item(), gx.item()) == (2 * 9.0 + 1.0, 19.0 * 6.0)
    assert gb.grad(y, y)[0].item() == 1.0
    both = gb.grad(x * x, [x, x])
    assert [g.item() for g in both] == [6.0, 6.0]


def test_by_one_of_many_outputs():
    x = leaf([1.0, 2.0, 3.0, 4.0])
    first, second = gb.split(x, 2)
    (g,) = gb.grad((first * 2.0 + second * first).sum(), second)
    np.testing.assert_array_equal(g.numpy(), [1.0, 2.0])
    (g,) = gb.grad((second * second).sum(), x)
    np.testing.assert_array_equal(g.numpy(), [0.0, 0.0, 6.0, 8.0])


def test_of_several_outputs_with_cotangents():
    x = leaf([1.0, 2.0])
    a, b = x * 2.0, x * x
    (g,) = gb.grad([a, b], x, [np.array([1.0, 1.0]), gb.tensor(np.array([10.0, 100.0]))])
    np.testing.assert_array_equal(g.numpy(), [2.0 + 20.0, 2.0 + 400.0])
    with pytest.raises(GradientError, match="2 outputs, but 1 grad_outputs"):
        gb.grad([x * 2.0, x * 3.0], x, [np.ones(2)])


def test_what_the_target_does_not_lead_to_is_not_walked():
    x, y = leaf(2.0), leaf(3.0)
    a = x * x
    b = y * y
    gb.grad(a + b, x)
    (g,) = gb.grad(b, y)  # b's saved values were not needed for x and are still there
    assert g.item() == 6.0


def test_an_input_that_is_not_used():
    x, y = leaf(2.0), leaf([3.0, 4.0])
    with pytest.raises(GradientError, match=r"do not depend on input 1 \(shape \(2,\)\)"):
        gb.grad(x * x, [x, y])
    gx, gy = gb.grad(x * x, [x, y], allow_unused=True)
    assert gx.item() == 4.0
    np.testing.assert_array_equal(gy.numpy(), [0.0, 0.0])
    with pytest.raises(GradientError, match="input 0 .* does not require a gradient"):
        gb.grad(x * x, gb.tensor(1.0))
    with pytest.raises(GradientError, match="output 0 .* does not require a gradient"):
        gb.grad(gb.tensor(1.0), x)


# Higher orders.


@pytest.mark.parametrize("power", [lambda x: x**4, lambda x: x * x * x * x, lambda x: (x**2) ** 2])
def test_derivatives_of_x_to_the_fourth(power):
    x = leaf([1.5, -2.0])
    y = power(x)
    for order, expected in enumerate((4 * x.numpy() ** 3, 12 * x.numpy() ** 2, 24 * x.numpy()), 1):
        (y,) = gb.grad(y.sum(), x, create_graph=True)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, err_msg=f"order {order}")
    (y,) = gb.grad(y.sum(), x, create_graph=True)
    np.testing.assert_allclose(y.numpy(), [24.0, 24.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("function", "derivatives"),
    [
        (lambda x: x.exp(), lambda v: [math.exp(v)] * 5),
        (
            lambda x: x.sin(),
            lambda v: [math.cos(v), -math.sin(v), -math.cos(v), math.sin(v), math.cos(v)],
        ),
        (
            lambda x: x.log(),
            lambda v: [(-1) ** (n + 1) * math.factorial(n - 1) / v**n for n in range(1, 6)],
        ),
        (
            lambda x: 1.0 / x,
            lambda v: [(-1) ** n * math.factorial(n) / v ** (n + 1) for n in range(1, 6)],
        ),
        (
            lambda x: x.tanh(),
            lambda v: (lambda t: [1 - t * t, -2 * t * (1 - t * t), (1 - t * t) * (6 * t * t - 2)])(
                math.tanh(v)
            ),
        ),
    ],
    ids=["exp", "sin", "log", "reciprocal", "tanh"],
)
def test_known_derivatives_of_high_order(function, derivatives):
    x = leaf(0.7)
    y = function(x)
    for expected in derivatives(0.7):
        (y,) = gb.grad(y, x, create_graph=True)
        assert y.item() == pytest.approx(expected, rel=1e-10)


def test_backward_with_create_graph_gives_gradients_with_a_history():
    x = leaf([1.0, 2.0])
    (x**3).sum().backward(create_graph=True)
    first = x.grad
    np.testing.assert_array_equal(first.numpy(), [3.0, 12.0])
    x.grad = None
    first.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [6.0, 12.0])


def test_a_penalty_on_the_gradient_trains():
    # The cost contains a first derivative, so that its gradient needs a second one.
    x, w = draw(4, 3), draw(3, seed=1)

    def cost(w):
        y = (x @ w).tanh().sum()
        (g,) = gb.grad(y, x, create_graph=True)
        return (g * g).sum()

    gradcheck(cost, w)
    before = cost(w).item()
    for _ in range(50):
        (g,) = gb.grad(cost(w), w)
        w = gb.tensor(w.numpy() - 0.02 * g.numpy(), requires_grad=True)
    assert cost(w).item() < 0.7 * before


def test_a_hessian_is_symmetric_and_right():
    x = draw(3)
    a = np.random.default_rng(5).standard_normal((3, 3))
    quadratic = (x @ gb.tensor(a) @ x) * 0.5
    (g,) = gb.grad(quadratic, x, create_graph=True)
    rows = [gb.grad(g[i], x, retain_graph=True)[0].numpy() for i in range(3)]
    np.testing.assert_allclose(np.stack(rows), (a + a.T) / 2, atol=1e-12)


def test_second_derivatives_reach_the_cotangent_too():
    x, c = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    (g,) = gb.grad(x * x, x, c, create_graph=True)
    (by_c,) = gb.grad(g.sum(), c)
    np.testing.assert_array_equal(by_c.numpy(), [2.0, 4.0])


# Every composite kernel, run on the tape by its definition.

ROWS, LABELS = (4, 3), np.array([0, 2, -100, 1])
WEIGHT = np.array([0.5, 1.0, 2.0])


def cross_entropy(K, x, **options):
    return K.softmax_cross_entropy(x, gb.tensor(LABELS), **options)[0]


def cross_entropy_slope(K, *arrays, **options):
    return K.softmax_cross_entropy_backward(*arrays, gb.tensor(LABELS), **options)


def mask():
    return gb.tensor(np.arange(12).reshape(ROWS) % 3 > 0)


def winners():
    return gb.tensor(np.array([4, 5, 7, 8, 1, 0, 4, 3], np.uint8).reshape(1, 2, 2, 2))


IMAGE = (1, 4, 4, 2)
WINDOWS = (3, 3), (2, 2), (1, 1)  # kernel, stride, padding
STEPS = (2, 2), ((1, 1), (1, 1)), (1, 1), 2  # stride, padding, dilation, groups
STATES, STATE = (2, 2, 3), (2, 3)
HEADS, KEYS = (1, 2, 2, 2), (1, 1, 4, 2)

COMPOSITES = {
    "sum_to": (lambda K, x: K.sum_to(x, (1, 3)), [ROWS]),
    "mean": (lambda K, x: K.mean(x, axis=0, keepdims=True), [ROWS]),
    "var": (lambda K, x: K.var(x, axis=-1, ddof=1), [ROWS]),
    "logsumexp": (lambda K, x: K.logsumexp(x, axis=0), [ROWS]),
    "linear": (lambda K, x, w, b: K.linear(x, w, b), [ROWS, (2, 3), (2,)]),
    "wide_matmul": (lambda K, x, y: K.wide_matmul(x, y), [ROWS, (3, 2)]),
    "addmm": (lambda K, y, a, b: K.addmm(y, a, b), [(4, 2), ROWS, (3, 2)]),
    "linear_activation": (
        lambda K, x, w, b: K.linear_activation(x, w, b, "gelu_tanh", True),
        [ROWS, (2, 3), (2,)],
    ),
    "matmul_activation_backward": (
        lambda K, *arrays: K.matmul_activation_backward(*arrays, None, "gelu_tanh", True),
        [ROWS, (3, 2), (4, 2)],
    ),
    "matmul_row_sums": (lambda K, x, y: K.matmul_row_sums(x, y), [ROWS, (3, 2)]),
    "sigmoid": (lambda K, x: K.sigmoid(x), [ROWS]),
    "sigmoid_backward": (lambda K, dy, y: K.sigmoid_backward(dy, y), [ROWS, ROWS]),
    "tanh_backward": (lambda K, dy, y: K.tanh_backward(dy, y), [ROWS, ROWS]),
    "relu": (lambda K, x: K.relu(x), [ROWS]),
    "relu_backward": (lambda K, dy, y: K.relu_backward(dy, y), [ROWS, ROWS]),
    "leaky_relu": (lambda K, x: K.leaky_relu(x, negative_slope=0.2), [ROWS]),
    "leaky_relu_backward": (lambda K, dy, x: K.leaky_relu_backward(dy, x, 0.2), [ROWS, ROWS]),
    "elu": (lambda K, x: K.elu(x, alpha=0.7), [ROWS]),
    "elu_backward": (lambda K, dy, x: K.elu_backward(dy, x, 0.7), [ROWS, ROWS]),
    "gelu": (lambda K, x: K.gelu(x), [ROWS]),
    "gelu_backward": (lambda K, dy, x: K.gelu_backward(dy, x), [ROWS, ROWS]),
    "gelu_tanh": (lambda K, x: K.gelu_tanh(x), [ROWS]),
    "gelu_tanh_backward": (lambda K, dy, x: K.gelu_tanh_backward(dy, x), [ROWS, ROWS]),
    "silu": (lambda K, x: K.silu(x), [ROWS]),
    "silu_backward": (lambda K, dy, x: K.silu_backward(dy, x), [ROWS, ROWS]),
    "softplus": (lambda K, x: K.softplus(x), [ROWS]),
    "softmax": (lambda K, x: K.softmax(x, axis=0), [ROWS]),
    "softmax_backward": (lambda K, dy, y: K.softmax_backward(dy, y, 1), [ROWS, ROWS]),
    "log_softmax": (lambda K, x: K.log_softmax(x), [ROWS]),
    "log_softmax_backward": (lambda K, dy, y: K.log_softmax_backward(dy, y), [ROWS, ROWS]),
    "softmax_cross_entropy": (
        lambda K, x: cross_entropy(K, x, weight=gb.tensor(WEIGHT), label_smoothing=0.1),
        [ROWS],
    ),
    "softmax_cross_entropy_backward": (
        lambda K, *arrays: cross_entropy_slope(
            K, *arrays, weight=gb.tensor(WEIGHT), label_smoothing=0.1
        ),
        [ROWS[:1], ROWS, ROWS[:1], ROWS[:1]],
    ),
    "layer_norm": (lambda K, x, w, b: K.layer_norm(x, w, b, 1, 1e-3)[0], [ROWS, (3,), (3,)]),
    "layer_norm_backward": (
        lambda K, dy, x, w, m, r: K.layer_norm_backward(dy, x, w, m, r, 1),
        [ROWS, ROWS, (3,), (4, 1), (4, 1)],
    ),
    "batch_norm": (lambda K, x, w, b: K.batch_norm(x, w, b, 1e-3), [ROWS, (3,), (3,)]),
    "batch_norm_backward": (
        lambda K, *arrays: K.batch_norm_backward(*arrays),
        [ROWS, ROWS, (3,), (3,), (3,), (3,), (3,)],
    ),
    "scale_shift": (lambda K, x, w, b: K.scale_shift(x, w, b), [ROWS, (3,), (3,)]),
    "group_norm": (
        lambda K, x, w, b: K.group_norm(x, w, b, 2, 1e-3),
        [(2, 3, 4), (4,), (4,)],
    ),
    "group_norm_backward": (
        lambda K, *arrays: K.group_norm_backward(*arrays, 2),
        [(2, 3, 4), (2, 3, 4), (4,), (2, 2), (2, 2)],
    ),
    "rms_norm": (lambda K, x, w: K.rms_norm(x, w, 1, 1e-3), [ROWS, (3,)]),
    "rms_norm_backward": (
        lambda K, *arrays: K.rms_norm_backward(*arrays, 1),
        [ROWS, ROWS, (3,), (4, 1)],
    ),
    "dropout": (lambda K, x: K.dropout(x, 0.4, 3, 1, 0)[0], [ROWS]),
    "dropout_backward": (lambda K, dy: K.dropout_backward(dy, mask(), 0.4), [ROWS]),
    # Images of 4 x 4 pixels and 2 channels under windows of 3 x 3, two pixels apart.
    "conv": (lambda K, x, w, b: K.conv(x, w, b, *STEPS), [IMAGE, (4, 1, 3, 3), (4,)]),
    "conv_transpose": (
        lambda K, dy, w: K.conv_transpose(dy, w, (4, 4), *STEPS),
        [(1, 2, 2, 4), (4, 1, 3, 3)],
    ),
    "conv_weight": (
        lambda K, x, dy: K.conv_weight(x, dy, (3, 3), *STEPS),
        [IMAGE, (1, 2, 2, 4)],
    ),
    "max_pool": (lambda K, x: K.max_pool(x, *WINDOWS, (1, 1))[0], [IMAGE]),
    "max_pool_backward": (
        lambda K, dy: K.max_pool_backward(dy, winners(), (4, 4), *WINDOWS, (1, 1)),
        [(1, 2, 2, 2)],
    ),
    "avg_pool": (lambda K, x: K.avg_pool(x, *WINDOWS, False, False), [IMAGE]),
    "avg_pool_backward": (
        lambda K, dy: K.avg_pool_backward(dy, (4, 4), *WINDOWS, False, False),
        [(1, 2, 2, 2)],
    ),
    # Two steps of two sequences with three features.
    "rnn_steps": (lambda K, *arrays: K.rnn_steps(*arrays), [STATES, STATE, (3, 3)]),
    "rnn_steps_backward": (
        lambda K, *arrays: K.rnn_steps_backward(*arrays),
        [STATES, STATE, (3, 3), (3, 2, 3)],
    ),
    "lstm_steps": (
        lambda K, *arrays: K.lstm_steps(*arrays),
        [(2, 2, 12), STATE, STATE, (12, 3)],
    ),
    "lstm_steps_backward": (
        lambda K, *arrays: K.lstm_steps_backward(*arrays),
        [STATES, STATE, STATE, (12, 3), (3, 2, 3), (2, 2, 12)],
    ),
    "gru_steps": (
        lambda K, *arrays: K.gru_steps(*arrays),
        [(2, 2, 9), STATE, (9, 3), (9,)],
    ),
    "gru_steps_backward": (
        lambda K, *arrays: K.gru_steps_backward(*arrays),
        [STATES, STATE, (9, 3), (3, 2, 3), (2, 2, 9), STATES],
    ),
    # Two heads that share the keys of one.
    "attention": (
        lambda K, q, k, v, m: K.attention(q, k, v, m, True, 1, 0.7),
        [HEADS, KEYS, KEYS, (2, 4)],
    ),
    "attention_backward": (
        lambda K, *arrays: K.attention_backward(*arrays, True, 1, 0.7),
        [HEADS, HEADS, KEYS, KEYS, (2, 4), HEADS, HEADS[:3]],
    ),
    "attention_mask_backward": (
        lambda K, *arrays: K.attention_mask_backward(*arrays, True, 1, 0.7),
        [HEADS, HEADS, KEYS, KEYS, (2, 4), HEADS, HEADS[:3]],
    ),
    "rotary": (lambda K, x, c, s: K.rotary(x, c, s), [HEADS, (2, 1), (2, 1)]),
}
# These give constants.
NO_SLOPE = {"detach", "smoothed_targets", "bernoulli", "uniform", "square_norm"}


def test_every_composite_is_here():
    defined = set(kernel_names()) - {*vars(Primitives), *Primitives.__annotations__}
    assert {n for n in defined if not n.endswith("_update")} - NO_SLOPE == set(COMPOSITES)


def on_tape(name):
    """The kernel on tensors, and inputs for it."""
    kernel, shapes = COMPOSITES[name]
    inputs = [draw(*shape, seed=i + 1) for i, shape in enumerate(shapes)]
    if name.removesuffix("_backward") in ("relu", "leaky_relu", "elu"):
        for t in inputs:  # away from the kink
            t.array[...] += np.sign(t.array) * 0.1
    return functools.partial(kernel, tape.TAPE_KERNELS), inputs


@pytest.mark.parametrize("name", COMPOSITES)
def test_composite_kernel_has_two_derivatives_on_the_tape(name):
    kernel, inputs = on_tape(name)
    gradcheck(kernel, inputs, name=name)
    gradgradcheck(kernel, inputs, name=name)


@pytest.mark.parametrize(
    "name", ["gelu", "gelu_tanh", "softmax", "log_softmax", "layer_norm", "silu", "softplus"]
)
def test_third_derivatives_through_composites(name):
    kernel, inputs = on_tape(name)

    def gradient(*arguments):
        return gb.grad((kernel(*arguments) ** 2).sum(), arguments[:1], create_graph=True)

    gradgradcheck(gradient, inputs, name=f"gradient of {name}")


@pytest.mark.parametrize("name", COMPOSITES)
def test_composite_on_the_tape_has_the_value_of_the_kernel_on_arrays(name):
    kernel, inputs = on_tape(name)
    found, expected = kernel(*inputs), COMPOSITES[name][0](ArrayKernels(), *inputs)
    if not isinstance(found, tuple):
        found, expected = (found,), (expected,)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-12, atol=1e-12)


class ArrayKernels:
    """The CPU's kernels, which take tensors for their arrays."""

    def __getattr__(self, name):
        kernel = getattr(get_backend("cpu"), name)

        def call(*args, **options):
            bare = [getattr(a, "array", a) for a in args]
            return kernel(*bare, **{n: getattr(v, "array", v) for n, v in options.items()})

        return call
