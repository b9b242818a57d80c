"""What is asked of an operation: one function for each promise of its record.

Every function takes an operation and a sample, and raises :class:`CheckError` with the operation,
the sample and the values, or returns None.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec

import numpy as np

from gpubackprop.autograd import Operation, Sample, Spec, Tensor, gradcheck, gradgradcheck
from gpubackprop.backends import Backend, get_backend
from gpubackprop.errors import DTypeError, GpubackpropError
from gpubackprop.testing import calls
from gpubackprop.testing.closeness import (
    CheckError,
    longest,
    magnitude,
    require_close,
    require_same_bits,
    tolerance,
)

P = ParamSpec("P")


def _reported(
    check: Callable[Concatenate[Operation, Sample, P], None],
) -> Callable[Concatenate[Operation, Sample, P], None]:
    """`check`, with any error of the operation told as a failed check of the sample."""

    @functools.wraps(check)
    def reported(op: Operation, sample: Sample, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            check(op, sample, *args, **kwargs)
        except CheckError:
            raise
        except Exception as error:
            told = f"{calls.describe(op, sample)}: {check.__name__}: {error}"
            raise CheckError(told) from error

    return reported


@_reported
def check_shape_rule(op: Operation, sample: Sample) -> None:
    """``infer`` foretells shape and dtype of the results, in every float dtype and in a mixture."""
    about = calls.describe(op, sample)
    real = [i for i, x in enumerate(sample.inputs) if calls.is_real_array(x)]
    mixtures: list[dict[int, str]] = [
        dict.fromkeys(real, d) for d in ("float64", "float32", "float16")
    ]
    mixtures += [{**mixtures[0], i: "float32"} for i in real if len(real) > 1]
    mixtures.append(dict.fromkeys(real, "int32"))
    for mixture in mixtures:
        inputs = [calls.cast(x, mixture.get(i)) for i, x in enumerate(sample.inputs)]
        specs = [Spec.of(x) for x in inputs]
        integers = "int32" in mixture.values()
        try:
            found = calls.run(op, sample._replace(inputs=tuple(inputs)), get_backend("cpu"))
        except GpubackpropError as error:
            if mixture is mixtures[0] or not (integers or isinstance(error, DTypeError)):
                raise
            continue  # an operation may refuse a dtype, in words
        try:
            promised = op.infer(*specs, **sample.params)
        except GpubackpropError as error:
            if integers:
                continue
            raise CheckError(f"{about}: infer refuses what forward computes: {error}") from error
        promised = (promised,) if isinstance(promised, Spec) else tuple(promised)
        actual = tuple(Spec.of(t.array) for t in found.outputs)
        if promised != actual:
            listed = [", ".join(map(str, s)) for s in (promised, actual)]
            given = ", ".join(map(str, specs))
            raise CheckError(
                f"{about}: infer promises {listed[0]}, forward gives {listed[1]} (of {given})"
            )


@_reported
def check_forward(op: Operation, sample: Sample) -> None:
    """Inputs stay as they are, memory layout does not matter, the same call gives the same bits."""
    about = calls.describe(op, sample)
    cpu = get_backend("cpu")
    outcome = calls.run(op, sample, get_backend("cpu"))
    for i, (x, t) in enumerate(zip(sample.inputs, outcome.inputs, strict=True)):
        if isinstance(x, np.ndarray):
            require_same_bits(f"{about}: forward changed input {i}", t.numpy(), x)
    before = [x.copy() for x in calls.arrays_in(sample.params)]
    params = calls.place(sample.params, cpu)
    again = calls.call(op, outcome.inputs, params)
    for old, new in zip(before, calls.arrays_in(params), strict=True):
        require_same_bits(f"{about}: forward changed an array among its parameters", new, old)
    for k, (first, second) in enumerate(zip(outcome.values(), again.values(), strict=True)):
        require_same_bits(f"{about}: result {k} of the same call twice", second, first)
    relative, scale = _allowance(sample, outcome.values(), np.float64)
    for layout, moved in _in_layouts(sample):
        inputs = [Tensor(x, cpu) if isinstance(x, np.ndarray) else x for x in moved]
        other = calls.call(op, inputs, params)
        for k, (got, want) in enumerate(zip(other.values(), outcome.values(), strict=True)):
            require_close(f"{about}: result {k}, inputs {layout}", got, want, relative, scale)
    if any(isinstance(x, np.ndarray) and x.ndim for x in sample.inputs):
        # NumPy's reductions give scalars: these must do where an array without axes does.
        inputs = [
            x[()] if isinstance(x, np.ndarray) and not x.ndim else t
            for x, t in zip(sample.inputs, outcome.inputs, strict=True)
        ]
        other = calls.call(op, inputs, params)
        for k, (got, want) in enumerate(zip(other.values(), outcome.values(), strict=True)):
            require_close(f"{about}: result {k} with NumPy scalars", got, want, relative, scale)


@_reported
def check_precision(op: Operation, sample: Sample, dtype: Any = np.float32) -> None:
    """Values and gradients in `dtype` are float64's, but for rounding that long sums explain."""
    about = calls.describe(op, sample)
    rounded = calls.replaced(sample, lambda x: x.astype(dtype))
    wanted = calls.differentiable_inputs(op, rounded)
    cpu = get_backend("cpu")
    try:
        narrow = calls.run(op, rounded, cpu, wanted=wanted)
    except DTypeError:
        return  # refused in words: nothing to compare
    wide = calls.run(op, rounded, cpu, np.float64, wanted)
    found, expected = narrow.values(), wide.values()
    if np.finfo(dtype).bits >= 32:  # float16 leaves too few digits for a bound that means something
        found = found + calls.gradients(narrow, wanted)
        expected = expected + calls.gradients(wide, wanted)
    relative, scale = _allowance(sample, expected, dtype)
    steep = _steepness(op, rounded, wanted)
    top = float(np.finfo(dtype).max)
    for k, (got, want) in enumerate(zip(found, expected, strict=False)):
        what = (
            f"result {k}"
            if k < len(narrow.outputs)
            else f"gradient by input {wanted[k - len(narrow.outputs)]}"
        )
        if want.dtype.kind == "f" and np.any(np.abs(want[np.isfinite(want)]) > top / 4):
            continue  # beyond the range of the dtype
        what = f"{about}: {what} in {np.dtype(dtype)}"
        require_close(what, got, want, relative, scale + steep[k])


@_reported
def check_rule(op: Operation, sample: Sample) -> None:
    """The backward rule keeps its contract.

    It gives one cotangent per input, of its shape and dtype, the same ones whether or not others
    are wanted; it changes nothing, and it reads nothing but what ``saves`` names.
    """
    wanted = calls.differentiable_inputs(op, sample)
    if not wanted:
        return
    about = calls.describe(op, sample)
    cpu = get_backend("cpu")
    for dtype in (np.float64, np.float32):
        try:
            _check_rule_call(op, sample, dtype, wanted, about)
        except DTypeError:
            if dtype is np.float64:
                raise
    outcome = calls.run(op, sample, cpu, wanted=wanted)
    expected = calls.gradients(outcome, wanted)
    for i, got, want in zip(wanted, calls.gradients(outcome, wanted), expected, strict=True):
        require_same_bits(f"{about}: gradient by input {i} of the same call twice", got, want)
    relative, scale = _allowance(sample, expected, np.float64)
    for i, want in zip(wanted, expected, strict=True):
        got = calls.gradients(calls.run(op, sample, cpu, wanted=[i]), [i])[0]
        require_close(
            f"{about}: gradient by input {i} when no other is wanted", got, want, relative, scale
        )
    for layout, moved in _in_layouts(sample):
        inputs = [
            Tensor(x, cpu, i in wanted) if isinstance(x, np.ndarray) else x
            for i, x in enumerate(moved)
        ]
        other = calls.call(op, inputs, calls.place(sample.params, cpu))
        for i, got, want in zip(
            wanted, calls.gradients(other, wanted, strided=True), expected, strict=True
        ):
            require_close(
                f"{about}: gradient by input {i}, inputs {layout}", got, want, relative, scale
            )
    for i, got, want in zip(
        wanted, _after_the_rest_is_gone(op, sample, wanted), expected, strict=True
    ):
        require_same_bits(
            f"{about}: gradient by input {i} after everything that is not saved was overwritten",
            got,
            want,
        )


@_reported
def check_gradient(op: Operation, sample: Sample, *, tolerance: float = 1e-6) -> None:
    """The first derivative is right: :func:`gpubackprop.autograd.gradcheck` in float64."""
    _check_derivative(gradcheck, op, sample, tolerance)


@_reported
def check_second_order(op: Operation, sample: Sample, *, tolerance: float = 1e-6) -> None:
    """The derivative of the derivative is right, where the operation promises one."""
    if op.order >= 2:
        _check_derivative(gradgradcheck, op, sample, tolerance)


@_reported
def check_parity(op: Operation, sample: Sample, backend: Backend, dtype: Any = np.float64) -> None:
    """Values and gradients on `backend` are those of the CPU."""
    about = f"{calls.describe(op, sample)} on {backend.device} in {np.dtype(dtype)}"
    wanted = calls.differentiable_inputs(op, sample)
    try:
        here = calls.run(op, sample, get_backend("cpu"), dtype, wanted)
    except DTypeError:
        return
    try:
        there = calls.run(op, sample, backend, dtype, wanted)
    except GpubackpropError as error:
        raise CheckError(f"{about}: {error}") from error
    steep = _steepness(op, sample, wanted)
    relative, scale = _allowance(sample, here.values(), dtype)
    for k, (ours, theirs) in enumerate(zip(here.outputs, there.outputs, strict=True)):
        if ours.dtype != theirs.dtype:
            raise CheckError(f"{about}: result {k} is {theirs.dtype}, on the CPU {ours.dtype}")
        what = f"{about}: result {k}"
        require_close(what, theirs.numpy(), ours.numpy(), relative, scale + steep[k])
    expected = calls.gradients(here, wanted)
    relative, scale = _allowance(sample, expected, dtype)
    try:
        found = calls.gradients(there, wanted)
    except Exception as error:
        raise CheckError(f"{about}: the backward rule fails: {error}") from error
    for i, got, want, slope in zip(
        wanted, found, expected, steep[len(here.outputs) :], strict=True
    ):
        require_close(f"{about}: gradient by input {i}", got, want, relative, scale + slope)


def _check_derivative(check: Any, op: Operation, sample: Sample, tolerance: float) -> None:
    wanted = calls.differentiable_inputs(op, sample)
    if not wanted:
        return
    cpu = get_backend("cpu")
    inputs = [
        Tensor(x.copy(), cpu, i in wanted) if isinstance(x, np.ndarray) else x
        for i, x in enumerate(sample.inputs)
    ]

    def fn(*arguments: Any) -> Any:
        return calls.call(op, arguments, sample.params).outputs

    with np.errstate(all="ignore"):
        check(fn, inputs, tolerance=tolerance, name=op.name, input_names=op.inputs)


def _check_rule_call(
    op: Operation, sample: Sample, dtype: Any, wanted: list[int], about: str
) -> None:
    cpu = get_backend("cpu")
    outcome = calls.run(op, sample, cpu, dtype, wanted)
    node = next((t.node for t in outcome.outputs if t.node is not None), None)
    if node is None or node.saved is None or op.backward is None:
        raise CheckError(f"{about}: no result is differentiable, though the inputs {wanted} are")
    dy = tuple(calls.cotangent(t.shape, t.dtype, k) for k, t in enumerate(outcome.outputs))
    watched = [*dy, *[x for x in node.saved if isinstance(x, np.ndarray)]]
    watched += [t.array for t in (*outcome.inputs, *outcome.outputs) if isinstance(t, Tensor)]
    before = [x.copy() for x in watched]
    with np.errstate(all="ignore"):
        cotangents = op.backward(
            cpu, node, dy if op.outputs != "one" else dy[0], *node.saved, **node.params
        )
    if not isinstance(cotangents, (tuple, list)):
        raise CheckError(
            f"{about}: the backward rule gives a {type(cotangents).__name__}, not a tuple of "
            "cotangents"
        )
    found = list(cotangents)
    for x, old in zip(watched, before, strict=True):
        require_same_bits(
            f"{about}: the backward rule changed an array that is not its own", x, old
        )
    if len(found) != len(sample.inputs):
        raise CheckError(
            f"{about}: the backward rule gives {len(found)} cotangents "
            f"for {len(sample.inputs)} inputs"
        )
    for i in wanted:
        g, x = found[i], outcome.inputs[i]
        if g is None:
            continue  # a derivative of 0; the gradient check finds out
        if g.dtype not in (x.dtype, *[t.dtype for t in outcome.outputs]):
            raise CheckError(
                f"{about}: the cotangent of input {i} is {g.dtype} for an input of {x.dtype}"
            )
        if g.shape != x.shape and not (op.broadcasts and _repeats(x.shape, g.shape)):
            raise CheckError(
                f"{about}: the cotangent of input {i} has shape {g.shape}, the input {x.shape}"
                + ("" if op.broadcasts else " (set broadcasts=True if forward repeats its inputs)")
            )


def _after_the_rest_is_gone(op: Operation, sample: Sample, wanted: list[int]) -> list[np.ndarray]:
    """Gradients after another call was made and every array that is not saved was overwritten."""
    cpu = get_backend("cpu")
    outcome = calls.run(op, sample, cpu, wanted=wanted)
    calls.run(op, calls.replaced(sample, lambda x: np.flip(x, 0) if x.ndim else x), cpu)
    nodes = [t.node for t in outcome.outputs if t.node is not None]
    saved = [x for n in nodes for x in n.saved or () if isinstance(x, np.ndarray)]
    for t in (*outcome.inputs, *outcome.outputs):
        if isinstance(t, Tensor) and t.array.flags.writeable:
            if not any(np.shares_memory(t.array, x) for x in saved):
                t.array[...] = 99
    return calls.gradients(outcome, wanted)


def _in_layouts(sample: Sample) -> Iterator[tuple[str, list[Any]]]:
    """The inputs, all of them in each of the layouts that they can have."""
    ways = [dict(calls.layouts(x)) if isinstance(x, np.ndarray) else {} for x in sample.inputs]
    for layout in dict.fromkeys(name for way in ways for name in way):
        yield layout, [way.get(layout, x) for way, x in zip(ways, sample.inputs, strict=True)]


def _allowance(sample: Sample, values: Sequence[Any], dtype: Any) -> tuple[float, float]:
    """Relative tolerance and scale for results of a sample computed in `dtype`."""
    inputs = [*sample.inputs, *calls.arrays_in(sample.params)]
    return tolerance(dtype, longest(inputs)), magnitude([*inputs, *values])


def _steepness(op: Operation, sample: Sample, wanted: list[int]) -> list[float]:
    """By how many times the relative error of the inputs each result and gradient may change."""
    step, rng = 1e-8, np.random.default_rng(0)
    around = [
        calls.replaced(sample, lambda x: x * (1 + step * rng.uniform(-1, 1, x.shape)))
        for _ in range(3)
    ]
    found = []
    for s in (sample, *around):
        outcome = calls.run(op, s, get_backend("cpu"), np.float64, wanted)
        found.append(outcome.values() + calls.gradients(outcome, wanted))
    return [
        magnitude([(x - at) / step for x in near]) if at.dtype.kind == "f" else 0.0
        for at, *near in zip(*found, strict=True)
    ]


def _repeats(shape: tuple[int, ...], broadcast: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to the shape `broadcast`."""
    try:
        return np.broadcast_shapes(shape, broadcast) == broadcast
    except ValueError:
        return False
