"""The gradient check itself: it passes what is right, names what is wrong, and sees kinks."""

from __future__ import annotations

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop.autograd import GradientReport, Operation, Sample, apply, gradcheck, gradgradcheck
from gpubackprop.errors import DTypeError, GradientError, ShapeError
from gpubackprop.testing import StandInBackend


def leaf(values, dtype="float64", device=None):
    return gb.tensor(np.array(values, dtype), device=device, requires_grad=True)


def make(name, forward, backward, **options):
    options.setdefault("saves", ("x",))
    return Operation(
        name, forward, backward, lambda *s, **p: s[0], lambda r: [Sample(())], **options
    )


CUBE = make(
    "cube",
    lambda K, x: K.multiply(K.square(x), x),
    lambda K, call, dy, x: (K.multiply(dy, K.multiply(K.square(x), 3.0)),),
)
WRONG_CUBE = make(
    "wrong_cube",
    CUBE.forward,
    lambda K, call, dy, x: (K.multiply(dy, K.multiply(K.square(x), 2.0)),),
)
# Right at first order; the slope holds x constant, so that the second derivative is 0.
FLAT_CUBE = make(
    "flat_cube",
    CUBE.forward,
    lambda K, call, dy, x: (K.multiply(dy, K.multiply(K.square(K.detach(x)), 3.0)),),
)


def test_a_right_derivative_passes():
    x, y = leaf(np.linspace(-1, 1, 12).reshape(3, 4)), leaf([0.3, -2.0, 1.0, 0.5])
    report = gradcheck(lambda a, b: (a * b).sin() + a.tanh(), [x, y])
    assert isinstance(report, GradientReport)
    assert report.analytic == pytest.approx(report.numeric, rel=1e-9)
    assert report.method == "complex"
    assert gradcheck(lambda a, b: (a * b).sin() + gb.erf(a), [x, y]).method == "central"
    assert gradcheck(lambda a: apply(CUBE, a), x).method == "central"
    assert x.grad is None, "the user's leaves stay as they are"


def test_the_two_methods_agree():
    x = leaf(np.linspace(0.2, 1.4, 6))

    def fn(t):
        return (t.sqrt() * t.log() + t.exp() / t).sum()

    exact, central = (gradcheck(fn, x, method=m) for m in ("complex", "central"))
    assert exact.analytic == central.analytic
    assert abs(exact.numeric - exact.analytic) < 1e-13 * abs(exact.analytic)
    assert abs(central.numeric - exact.analytic) <= central.error
    assert 0 < exact.error < central.error < 1e-3


def test_the_estimated_error_bounds_the_true_one():
    x = leaf(np.linspace(0.2, 1.4, 6))
    for eps in (1e-2, 1e-3, 1e-4):
        report = gradcheck(lambda t: (t * 3.0).exp(), x, method="central", eps=eps)
        assert abs(report.numeric - report.analytic) <= report.error


def test_a_wrong_factor_is_named_with_both_values():
    x = leaf(np.linspace(0.5, 1.5, 4))
    with pytest.raises(GradientError) as caught:
        gradcheck(lambda t: apply(WRONG_CUBE, t), x, name="wrong_cube", input_names=["x"])
    message = str(caught.value)
    for part in ("wrong_cube", "x (float64[4])", "chain rule gives", "central step", "allowed"):
        assert part in message
    with pytest.raises(GradientError, match="wrong derivative"):
        gradcheck(lambda t: apply(CUBE, t) + t.detach(), x)


def test_the_wrong_input_is_named_and_the_right_one_is_not():
    x, y = leaf([0.5, 1.0]), leaf([2.0, 3.0])
    with pytest.raises(GradientError, match=r"by second \(float64\[2\]\)") as caught:
        gradcheck(lambda a, b: a * apply(WRONG_CUBE, b), [x, y], input_names=["first", "second"])
    assert "first" not in str(caught.value)


def test_one_wrong_element_among_many_is_seen():
    def wrong(K, call, dy, x):
        spoiled = K.scatter_getitem(K.full((1,), 1e-3, x.dtype), slice(777, 778), (1000,))
        return (K.add(K.multiply(dy, K.multiply(x, 2.0)), spoiled),)

    op = make("almost_square", lambda K, x: K.square(x), wrong)
    with pytest.raises(GradientError):
        gradcheck(lambda t: apply(op, t), leaf(np.linspace(0.1, 2, 1000)))


def test_a_wrong_second_derivative_is_found_where_the_first_is_right():
    x = leaf([0.5, 1.5])
    gradcheck(lambda t: apply(FLAT_CUBE, t), x)
    gradgradcheck(lambda t: apply(CUBE, t), x)
    with pytest.raises(GradientError, match="gradient of flat"):
        gradgradcheck(lambda t: apply(FLAT_CUBE, t), x, name="flat")


@pytest.mark.parametrize(
    ("fn", "point"),
    [
        (abs, [1.0, 0.0]),
        (lambda t: t.relu(), [0.0, -2.0]),
        (lambda t: gb.maximum(t, 0.5), [0.5, 2.0]),
        (lambda t: gb.max(t), [1.0, 1.0]),
        (lambda t: t.relu() * 100.0 + t * t, [1.0, 0.0]),
    ],
)
def test_a_point_without_a_derivative_is_recognised(fn, point):
    with pytest.raises(GradientError, match="no derivative at this point: element .* slope"):
        gradcheck(fn, leaf(point))


def test_a_strong_curve_is_not_taken_for_a_kink():
    x = leaf([0.1, -0.2, 0.0])
    gradcheck(lambda t: (t * 20.0).tanh(), x, method="central")
    gradcheck(lambda t: t * t * 1e6, x, method="central")
    gradcheck(lambda t: gb.nn.functional.softplus(t * 30.0), x)
    gradcheck(lambda t: abs(t + 0.5), x)


def test_a_value_that_is_not_finite_is_told():
    with pytest.raises(GradientError, match="result 0 is not finite"), np.errstate(all="ignore"):
        gradcheck(lambda t: t.log(), leaf([0.0, 1.0]))
    with pytest.raises(GradientError, match="gradient by input 0 .* is not finite"):
        with np.errstate(all="ignore"):
            gradcheck(lambda t: t.sqrt(), leaf([0.0, 1.0]))


def test_a_result_that_lost_its_history_is_found():
    x = leaf([1.0, 2.0])
    with pytest.raises(GradientError, match="chain rule gives 0"):
        gradcheck(lambda t: t.detach() * 2.0, x)
    gradcheck(lambda t: gb.tensor(np.ones(3)), x)  # a constant has the derivative 0
    gradcheck(gb.floor, leaf([0.5, 1.5]))


def test_arguments_are_checked():
    with pytest.raises(DTypeError, match=r"input 0 \(float32\[2\]\) must be float64"):
        gradcheck(lambda t: t * 2.0, leaf([1.0, 2.0], "float32"))
    with pytest.raises(GradientError, match="no input has requires_grad"):
        gradcheck(lambda t: t * 2.0, gb.tensor(np.ones(2)))
    with pytest.raises(GradientError, match="unknown method 'exact'"):
        gradcheck(lambda t: t * 2.0, leaf([1.0]), method="exact")
    with pytest.raises(DTypeError, match="must return a tensor"):
        gradcheck(lambda t: t.numpy(), leaf([1.0]))
    with pytest.raises(GradientError, match="no result has a float dtype"):
        gradcheck(lambda t: t > 0.0, leaf([1.0]))
    with pytest.raises(GradientError, match="complex step does not apply: erf"):
        gradcheck(lambda t: gb.erf(t), leaf([1.0]), method="complex")
    with pytest.raises(ShapeError, match="shapes of its results change"):
        gradcheck(lambda t: t[t > 1.0], leaf([1.0, 2.0]), method="central")
    with pytest.raises(GradientError, match="no result depends on an input"):
        gradgradcheck(lambda t: gb.tensor(np.ones(2)), leaf([1.0]))


def test_inputs_that_are_not_varied_are_handed_on():
    x = leaf([1.0, 2.0])
    gradcheck(
        lambda a, b, c, d: a * b * c if d is None else a, [x, gb.tensor(np.ones(2)), 3.0, None]
    )


def test_several_results_and_shapes():
    x, empty, one = leaf(np.ones((2, 3))), leaf(np.ones((0, 3))), leaf(2.0)
    gradcheck(lambda a, b, c: (a * c, b * c, (a.sum() * c).exp() * 1e-3), [x, empty, one])
    gradgradcheck(lambda a, b, c: (a * c, b * c, (a * c).tanh()), [x, empty, one])


def test_on_another_device():
    backend = StandInBackend()
    x = leaf([0.5, 1.5], device=backend)
    assert gradcheck(lambda t: t.exp() * t, x).method == "central"
    gradgradcheck(lambda t: t.exp() * t, x)


def test_the_seed_chooses_the_direction():
    x = leaf(np.linspace(-1, 1, 5))
    values = {gradcheck(gb.sin, x, seed=s).analytic for s in (0, 1, 0)}
    assert len(values) == 2
