"""The harness catches what it is there to catch: each operation below breaks one promise."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import testing
from gpubackprop.autograd import REGISTRY, Operation, Sample, Spec
from gpubackprop.errors import GpubackpropError, ShapeError

# A sound operation of two inputs, x * exp(w), from which the broken ones differ in one thing.


def forward(K, x, w):
    return K.multiply(x, K.exp(w))


def backward(K, call, dy, x, w):
    slope = K.exp(w)
    return K.multiply(dy, slope), K.multiply(dy, K.multiply(x, slope))


def infer(x, w):
    try:
        return Spec(
            np.broadcast_shapes(x.shape, w.shape), np.result_type(x.dtype, w.dtype, "float16")
        )
    except ValueError:
        raise ShapeError(f"scaled: {x} and {w} do not broadcast") from None


def samples(rng):
    for shapes in (((3, 4), (3, 4)), ((3, 4), (4,)), ((1,), (1,)), ((0, 2), (2,)), ((), (3,))):
        yield Sample(tuple(rng.standard_normal(s) for s in shapes))


SOUND = Operation("scaled", forward, backward, infer, samples, saves=("x", "w"), broadcasts=True)
FIRST = testing.samples_of(SOUND)[0]


def broken(**changes):
    return dataclasses.replace(SOUND, **changes)


def refused(op, message, check=testing.check_operation, *args):
    with pytest.raises(testing.CheckError, match=message) as caught:
        check(op, *args)
    assert op.name in str(caught.value)


def test_a_sound_operation_passes_without_being_registered():
    assert testing.check_operation(SOUND) == len(testing.samples_of(SOUND)) == 5
    assert "scaled" not in REGISTRY
    assert testing.check_operation(SOUND, devices=["cpu"]) == 5
    assert testing.check_operation(SOUND, devices=[testing.StandInBackend("other")]) == 5


def test_a_registered_operation_passes():
    op = dataclasses.replace(SOUND, name="scaled_for_a_test").register()
    try:
        assert testing.check_operation(op) == 5
        with pytest.raises(ValueError, match="registered already"):
            op.register()
    finally:
        del REGISTRY[op.name]


# Derivatives.


def test_a_dropped_factor():
    def wrong(K, call, dy, x, w):
        return K.multiply(dy, K.exp(w)), K.multiply(dy, x)

    refused(broken(backward=wrong), r"wrong derivative by w \(float64\[3, 4\]\)")
    refused(broken(backward=wrong), "chain rule gives", testing.check_gradient, FIRST)


def test_a_wrong_sign():
    def wrong(K, call, dy, x, w):
        dx, dw = backward(K, call, dy, x, w)
        return dx, K.negative(dw)

    refused(broken(backward=wrong), "wrong derivative by w", testing.check_gradient, FIRST)


def test_a_derivative_that_is_left_out():
    def wrong(K, call, dy, x, w):
        return backward(K, call, dy, x, w)[0], None

    refused(broken(backward=wrong), "by w .* chain rule gives 0", testing.check_gradient, FIRST)


def test_a_second_derivative_that_is_cut():
    def wrong(K, call, dy, x, w):
        slope = K.detach(K.exp(w))
        return K.multiply(dy, slope), K.multiply(dy, K.multiply(x, slope))

    op = broken(backward=wrong)
    testing.check_gradient(op, FIRST)
    refused(op, "gradient of scaled", testing.check_second_order, FIRST)
    testing.check_second_order(dataclasses.replace(op, order=1), FIRST)


def test_a_rule_that_cannot_run_on_tensors():
    def wrong(K, call, dy, x, w):
        slope = np.exp(w)
        return K.multiply(dy, slope), K.multiply(dy, K.multiply(x, slope))

    op = broken(backward=wrong)
    testing.check_gradient(op, FIRST)
    refused(op, "check_second_order: .*Tensor", testing.check_second_order, FIRST)
    stand_in = testing.StandInBackend()
    refused(op, "on stand-in .* backward rule fails", testing.check_parity, FIRST, stand_in)


def test_a_point_without_a_derivative_that_is_said_to_have_one():
    op = dataclasses.replace(
        REGISTRY["absolute"], samples=lambda rng: [Sample((np.array([1.0, 0.0]),))]
    )
    refused(op, "no derivative at this point")


# Shapes and dtypes.


def test_a_wrong_shape_rule():
    refused(
        broken(infer=lambda x, w: Spec(w.shape, infer(x, w).dtype)),
        r"infer promises float64\[4\]|infer promises float64\[\]",
    )


def test_a_wrong_dtype_rule():
    def wrong(x, w):
        return infer(x, w)._replace(dtype=x.dtype)

    refused(broken(infer=wrong), "infer promises float32.*forward gives float64")


def test_a_shape_rule_that_refuses_what_works():
    def wrong(x, w):
        if x.shape != w.shape:
            raise ShapeError("scaled: shapes must be equal")
        return infer(x, w)

    refused(broken(infer=wrong), "infer refuses what forward computes: scaled: shapes must be")


def test_a_forgotten_broadcast():
    refused(broken(broadcasts=False), r"shape \(3, 4\), the input \(4,\) \(set broadcasts=True")


def test_a_cotangent_of_another_shape():
    def wrong(K, call, dy, x, w):
        return K.sum(K.multiply(dy, K.exp(w)), axis=0), None

    refused(
        broken(backward=wrong), r"cotangent of input 0 has shape \(4,\)", testing.check_rule, FIRST
    )


def test_a_missing_cotangent():
    def wrong(K, call, dy, x, w):
        return (K.multiply(dy, K.exp(w)),)

    refused(broken(backward=wrong), "1 cotangents for 2 inputs", testing.check_rule, FIRST)


def test_a_gradient_in_double_precision():
    def wrong(K, call, dy, x, w):
        dx, dw = backward(K, call, dy, x, w)
        return K.multiply(dx, K.ones((), "float64")), dw

    refused(broken(backward=wrong), "cotangent of input 0 is float64 for an input of float32")


def test_digits_lost_on_the_way():
    def wrong(K, x, w):
        few = "float16" if w.dtype == np.float32 else w.dtype
        return K.multiply(x, K.astype(K.astype(K.exp(w), few), w.dtype))

    refused(broken(forward=wrong), "float32: .* elements differ", testing.check_precision, FIRST)


# Side effects.


def test_an_input_that_forward_changes():
    def wrong(K, x, w):
        return K.multiply(x, K.exp(w, out=w))

    refused(broken(forward=wrong), "forward changed input 1")


def test_a_parameter_that_forward_changes():
    def wrong(K, x, *, order):
        order.sort()
        return K.getitem(x, order)

    op = Operation(
        "sorted_rows",
        wrong,
        None,
        lambda x, *, order: x,
        lambda rng: [Sample((rng.standard_normal(3),), {"order": np.array([2, 0, 1])})],
    )
    refused(op, "forward changed an array among its parameters")


def test_a_cotangent_that_backward_changes():
    def wrong(K, call, dy, x, w):
        slope = K.exp(w)
        return K.multiply(dy, slope), K.multiply(K.multiply(dy, x, out=dy), slope)

    refused(broken(backward=wrong), "backward rule changed an array that is not its own")


def test_a_saved_value_that_backward_changes():
    def wrong(K, call, dy, x, w):
        slope = K.exp(w, out=w)
        return K.multiply(dy, slope), K.multiply(dy, K.multiply(x, slope))

    refused(broken(backward=wrong), "backward rule changed an array that is not its own")


def test_a_value_that_is_kept_behind_the_tapes_back():
    stash = {}

    def keeping(K, x, w):
        stash["w"] = w
        return forward(K, x, w)

    def wrong(K, call, dy, x):
        return backward(K, call, dy, x, stash["w"])

    op = broken(forward=keeping, backward=wrong, saves=("x",))
    refused(op, "everything that is not saved was overwritten", testing.check_rule, FIRST)


def test_a_gradient_that_needs_the_other_one_to_be_wanted():
    def wrong(K, call, dy, x, w):
        return backward(K, call, dy, x, w) if all(call.needs) else (dy, dy)

    refused(broken(backward=wrong), "when no other is wanted")


# Determinism, memory layout, devices.


def test_a_result_that_changes_from_call_to_call():
    ticks = itertools.count()

    def wrong(K, x, w):
        return K.multiply(forward(K, x, w), 1.0 + 1e-15 * (next(ticks) % 2))

    refused(broken(forward=wrong), "the same call twice: the bits differ")


def test_a_gradient_that_changes_from_call_to_call():
    ticks = itertools.count()

    def wrong(K, call, dy, x, w):
        dx, dw = backward(K, call, dy, x, w)
        return K.multiply(dx, 1.0 + 1e-15 * (next(ticks) % 2)), dw

    refused(broken(backward=wrong), "gradient by input 0 of the same call twice")


def test_strides_that_are_overlooked():
    def wrong(K, x, w):
        flat = np.lib.stride_tricks.as_strided(x, (x.size,), (8,))  # as if x lay in C order
        return forward(K, flat.reshape(x.shape), w)

    refused(
        broken(forward=wrong),
        "inputs (strided|Fortran order|reversed)",
        testing.check_forward,
        FIRST,
    )


def test_a_value_that_is_read_on_the_host():
    def wrong(K, x, w):
        return forward(K, x, w) if x.size and bool(K.isfinite(K.max(x))) else forward(K, x, w)

    refused(broken(forward=wrong), "on stand-in .*read on the host")


def test_a_device_that_computes_something_else():
    def wrong(K, x, w):
        return K.multiply(forward(K, x, w), 1.0 if K.name == "numpy" else 1.0 + 1e-9)

    refused(broken(forward=wrong), "on stand-in in float64: result 0")

    def wrong_slope(K, call, dy, x, w):
        dx, dw = backward(K, call, dy, x, w)
        return dx, dw if K.name in ("numpy", "tape") else K.multiply(dw, 1.5)

    refused(broken(backward=wrong_slope), "on stand-in in float64: gradient by input 1")


def test_an_operation_without_samples():
    refused(broken(samples=lambda rng: []), "yields nothing")


def test_failures_are_assertions_and_errors_of_the_library():
    assert issubclass(testing.CheckError, (AssertionError, GpubackpropError))


# The places to run.


def test_the_places_are_listed_with_reasons():
    places = {p.name: p for p in testing.backends()}
    assert set(places) == {"cpu", "stand-in", "cuda"}
    assert places["cpu"].backend is gb.tensor(1.0).backend
    assert testing.backends()[1].backend is places["stand-in"].backend
    for place in places.values():
        assert (place.backend is None) == bool(place.reason)


def test_the_stand_in_refuses_what_a_device_refuses():
    backend = testing.StandInBackend()
    x = backend.asarray(np.arange(6.0).reshape(2, 3))
    for read in (float, bool, int, list, len, np.asarray, lambda a: a == 1.0):
        with pytest.raises(TypeError, match="read on the host"):
            read(x)
    with pytest.raises(TypeError, match="host array"):
        backend.add(x, np.ones(3))
    with pytest.raises(TypeError):
        np.exp(x)
    with pytest.raises(TypeError):
        x + x
    with pytest.raises(AttributeError, match="use a kernel"):
        x.mean()
    assert "float64[2, 3]" in repr(x)
    np.testing.assert_array_equal(backend.to_numpy(x), np.arange(6.0).reshape(2, 3))


def test_a_network_trains_on_the_stand_in():
    backend = testing.StandInBackend()
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((20, 4)), rng.integers(0, 3, 20)
    grads = []
    for device in ("cpu", backend):
        w = gb.tensor(np.zeros((3, 4)), device=device, requires_grad=True)
        y = gb.nn.functional.linear(gb.tensor(x, device=device), w).relu() + 0.1
        cost = gb.nn.functional.cross_entropy(y, gb.tensor(labels, device=device))
        cost.backward()
        grads.append(w.grad.numpy())
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-12)


# How near is near.


def test_closeness():
    one = np.ones(3)
    testing.require_close("x", one, one + 1e-9, 1e-8)
    with pytest.raises(testing.CheckError, match=r"1 of 3 elements differ; element \[1\] is"):
        testing.require_close("x", np.array([1.0, 1.1, 1.0]), one, 1e-8)
    special = np.array([np.nan, np.inf, -np.inf])
    testing.require_close("x", special, special.copy(), 1e-8)
    for other in ([0.0, np.inf, -np.inf], [np.nan, -np.inf, -np.inf], [np.nan, 1e300, -np.inf]):
        with pytest.raises(testing.CheckError):
            testing.require_close("x", np.array(other), special, 1e-2)
        with pytest.raises(testing.CheckError):
            testing.require_close("x", special, np.array(other), 1e-2)
    with pytest.raises(testing.CheckError, match="shape"):
        testing.require_close("x", one, np.ones((3, 1)), 1e-8)
    with pytest.raises(testing.CheckError):
        testing.require_close("x", np.array([1, 2]), np.array([1, 3]), 10.0)


def test_tolerances_follow_the_arithmetic():
    assert testing.tolerance("float32") > 1e7 * testing.tolerance("float64")
    assert testing.tolerance("float32", 10_000) == pytest.approx(100 * testing.tolerance("float32"))


# What the author of an operation reads.


def in_place(K, x, w):
    x *= 2.0
    return K.multiply(x, K.exp(w))


def with_numpy(K, call, dy, x, w):
    return dy * np.exp(w), dy * x * np.exp(w)


KEPT: dict[str, np.ndarray] = {}


def keeping(K, x, w):
    KEPT["x"] = x
    return forward(K, x, w)


@pytest.mark.parametrize(
    ("changes", "failed", "mend"),
    [
        (
            {"backward": lambda K, call, dy, x, w: (dy, K.negative(dy))},
            ["check_gradient"],
            "the sign, a dropped factor",
        ),
        ({"broadcasts": False}, ["check_rule"], "broadcasts=True) does that sum"),
        ({"infer": lambda x, w: x.shape}, ["check_shape_rule"], "returns Spec(shape, dtype)"),
        ({"backward": with_numpy}, ["check_second_order", "check_parity"], "K.exp(x), not np.exp"),
        ({"forward": in_place}, ["check_forward", "check_parity"], "forward wrote into one"),
        (
            {
                "forward": keeping,
                "backward": lambda K, call, dy, w: backward(K, call, dy, KEPT["x"], w),
                "saves": ("w",),
            },
            ["check_rule"],
            "Name in saves every input",
        ),
        (
            {"backward": lambda K, call, dy, x, w: K.multiply(dy, x)},
            ["check_rule"],
            "that is (dx,), with the comma",
        ),
        (
            {"forward": lambda K, x, w: K.scaled(x, w)},
            ["check_shape_rule", "check_gradient"],
            "Backend states those that it has",
        ),
        ({"saves": ("w",)}, ["check_rule"], "backward(K, call, dy, *saved, **params)"),
    ],
    ids=[
        "sign",
        "broadcast",
        "infer",
        "numpy",
        "in-place",
        "unsaved",
        "no-tuple",
        "no-kernel",
        "forgotten",
    ],  # fmt: skip
)
def test_the_report_names_the_checks_and_what_mends_them(changes, failed, mend):
    with pytest.raises(testing.CheckError) as caught:
        testing.check_operation(broken(**changes))
    text = str(caught.value)
    assert text.startswith("scaled: ") and "checks fail" in text.splitlines()[0]
    for name in failed:
        assert f"\n{name} (" in text, text
    assert mend in text, text


def test_a_kink_is_told_from_a_wrong_rule():
    op = dataclasses.replace(
        REGISTRY["absolute"], samples=lambda rng: [Sample((np.array([1.0, 0.0]),))]
    )
    refused(op, "give the sample differentiable=False")


def test_samples_must_be_a_function_of_samples():
    refused(broken(samples=[FIRST]), "samples must be a function")
    refused(broken(samples=lambda rng: [(np.ones(3), np.ones(3))]), "not Sample")


def test_failures_of_one_cause_are_told_once():
    with pytest.raises(testing.CheckError) as caught:
        testing.check_operation(broken(broadcasts=False))
    assert str(caught.value).count("its backward rule gave a cotangent of shape") == 1
    assert "fails in the same way" in str(caught.value)
