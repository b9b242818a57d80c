"""A backend's own version of a composite kernel computes what the kernel's definition says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpubackprop import testing
from gpubackprop.backends import Backend, kernel_names
from gpubackprop.backends.base import Backend as Contract
from gpubackprop.backends.cpu import backend as numpy_module
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.primitives import Primitives
from gpubackprop.backends.updates import Updates
from gpubackprop.testing.calls import layouts, place
from tests.backends.support import (
    attention_cases,
    convolution_cases,
    images_cases,
    joined_cases,
    norms_cases,
    recurrent_cases,
)

PRIMITIVES = {*Primitives.__annotations__, *vars(Primitives)}
DEFINED = [n for n in kernel_names() if n not in PRIMITIVES]
UPDATES = [n for n in DEFINED if n.endswith("_update")]
COMPOSITES = [n for n in DEFINED if n not in UPDATES and n != "detach"]
PLACES = [
    pytest.param(p, id=p.name, marks=[pytest.mark.gpu] if p.name == "cuda" else [])
    for p in testing.backends()
    if p.name != "stand-in"  # it runs the definitions themselves
]
SHAPES = ((3, 5), (1, 1), (0, 3), (7, 2), (2, 1, 130))
DTYPES = ("float64", "float32", "float16")
EXTREME = (np.inf, -np.inf, np.nan, 1e30, -1e30, 0.0, -0.0, 1e-30, 40.0, -800.0)

Case = tuple[str, tuple[Any, ...], dict[str, Any]]


def fill(shape: tuple[int, ...], seed: int, content: str = "usual") -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.standard_normal(shape))
    if content == "extreme":
        x.reshape(-1)[: min(x.size, len(EXTREME))] = EXTREME[: x.size]
    return x


def labels(n: int, classes: int, seed: int, ignored: bool) -> np.ndarray:
    target = np.random.default_rng(seed).integers(0, classes, n)
    if ignored:
        target[::3] = -100
    return target


def softmax_of(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def calls_of(kernel: str) -> Iterator[Case]:
    """Arguments for a kernel, with a word that says what they are."""
    elementwise = "sigmoid relu leaky_relu elu gelu gelu_tanh silu softplus".split()
    for seed, shape in enumerate(SHAPES):
        x, dy = fill(shape, seed), fill(shape, seed + 100)
        if kernel in elementwise:
            yield f"{shape}", (x,), {}
            yield f"{shape} extreme", (fill(shape, seed, "extreme"),), {}
            for layout, moved in layouts(x):
                yield f"{shape} {layout}", (moved,), {}
        elif kernel.removesuffix("_backward") in {*elementwise, "tanh"}:
            slope = kernel.removesuffix("_backward")
            x = {"sigmoid": softmax_of(x) if x.size else x, "tanh": np.tanh(x)}.get(slope, x)
            yield f"{shape}", (dy, x), {}
            for layout, moved in layouts(x):
                yield f"{shape} {layout}", (dy, moved), {}
            if slope not in ("sigmoid", "tanh"):
                yield f"{shape} extreme", (dy, fill(shape, seed, "extreme")), {}
        elif kernel in ("softmax", "log_softmax"):
            for axis in range(-1, len(shape) - 1):
                if shape[axis]:
                    yield f"{shape} axis {axis}", (x,), {"axis": axis}
                    yield (
                        f"{shape} axis {axis} extreme",
                        (fill(shape, 3, "extreme"),),
                        {"axis": axis},
                    )
                    yield f"{shape} axis {axis} large", (x * 1e4 + 1e6,), {"axis": axis}
            for layout, moved in layouts(x):
                yield f"{shape} {layout}", (moved,), {}
        elif kernel in ("softmax_backward", "log_softmax_backward"):
            for axis in range(-1, len(shape) - 1):
                y = softmax_of(x, axis) if shape[axis] else x
                yield f"{shape} {axis}", (dy, y if kernel[0] == "s" else np.log(y)), {"axis": axis}
            for layout, moved in layouts(dy):
                y = softmax_of(x)
                yield f"{shape} {layout}", (moved, y if kernel[0] == "s" else np.log(y)), {}
        elif kernel in ("mean", "var", "logsumexp"):
            for axis in (None, 0, -1, (0, 1)):
                if x.size or kernel != "logsumexp":
                    yield f"{shape} {axis}", (x,), {"axis": axis}
                    yield f"{shape} {axis} kept", (x + 100,), {"axis": axis, "keepdims": True}
            if kernel != "var" and x.size:
                yield f"{shape} extreme", (fill(shape, seed, "extreme"),), {"axis": -1}
        elif kernel == "sum_to":
            for small in (shape, shape[1:], (1, *shape[1:]), (*shape[:-1], 1), ()):
                yield f"{shape} to {small}", (x, small), {}
        elif kernel == "square_norm":
            yield f"{shape}", (x,), {}
            yield f"{shape} extreme", (fill(shape, seed, "extreme"),), {}
            for layout, moved in layouts(x):
                yield f"{shape} {layout}", (moved,), {}
        elif kernel == "dropout":
            for p in (0.0, 0.3, 1.0):
                yield f"{shape} {p}", (x, p, 7, 1, 5), {}
        elif kernel == "dropout_backward":
            yield f"{shape}", (dy, x > 0, 0.25), {}
        elif kernel == "bernoulli":
            for p in (0.0, 0.25, 0.999, 1.0):
                yield f"{shape} {p}", (shape, p, 7, 1, 5), {}
        elif kernel == "uniform":
            yield f"{shape}", (shape, 2**63 + 1, 2**31, 9), {}
        elif kernel == "linear":
            w, b = fill((4, shape[-1]), seed + 1), fill((4,), seed + 2)
            yield f"{shape}", (x, w, b), {}
            yield f"{shape} no bias", (x, w, None), {}
            for layout, moved in layouts(w):
                yield f"{shape} {layout}", (x, moved, b), {}
        elif kernel == "wide_matmul":
            yield f"{shape}", (x, fill((shape[-1], 4), seed + 1)), {}
            for layout, moved in layouts(x):
                yield f"{shape} {layout}", (moved, fill((shape[-1], 4), seed + 1)), {}
        elif kernel == "addmm":
            w = fill((shape[-1], 4), seed + 1)
            y = fill((*shape[:-1], 4), seed + 2)
            yield f"{shape}", (y, x, w), {}
            for layout, moved in layouts(x):
                yield f"{shape} {layout}", (y, moved, w), {}
            for layout, moved in layouts(y):
                yield f"{shape} sum {layout}", (moved, x, w), {}
        elif kernel in ("layer_norm", "layer_norm_backward"):
            for axes in range(1, len(shape)):
                inner = shape[len(shape) - axes :]
                w, b = fill(inner, seed + 1), fill(inner, seed + 2)
                if kernel == "layer_norm":
                    for mean in (0.0, 1000.0):
                        yield f"{shape} {axes} about {mean}", (x + mean, w, b, axes, 1e-5), {}
                    yield f"{shape} {axes} plain", (x, None, None, axes, 1e-5), {}
                else:
                    over = tuple(range(-axes, 0))
                    mean = x.mean(axis=over, keepdims=True)
                    rstd = 1 / np.sqrt(x.var(axis=over, keepdims=True) + 1e-3)
                    yield f"{shape} {axes}", (dy, x, w, mean, rstd, axes), {}
                    yield f"{shape} {axes} plain", (dy, x, None, mean, rstd, axes), {}
    if kernel.startswith(("softmax_cross_entropy", "smoothed_targets")):
        yield from cross_entropies(kernel)
    for group in (
        attention_cases,
        convolution_cases,
        images_cases,
        joined_cases,
        norms_cases,
        recurrent_cases,
    ):
        yield from group.cases(kernel)


def cross_entropies(kernel: str) -> Iterator[Case]:
    for seed, (n, classes) in enumerate(((4, 3), (1, 1), (0, 3), (33, 10), (5, 130))):
        x, dy = fill((n, classes), seed), fill((n,), seed + 1)
        weight = np.abs(fill((classes,), seed + 2)) + 0.1
        for ignored in (False, True):
            target = labels(n, classes, seed, ignored)
            for w, smoothing in ((None, 0.0), (weight, 0.0), (None, 0.1), (weight, 0.2)):
                options = {"weight": w, "label_smoothing": smoothing}
                note = f"{n} x {classes} ignored={ignored} weight={w is not None} {smoothing}"
                if kernel == "softmax_cross_entropy":
                    yield note, (x, target), options
                    yield f"{note} large", (x * 1e3, target), options
                elif kernel == "softmax_cross_entropy_backward":
                    top = x.max(axis=1, initial=-np.inf)
                    total = np.exp(x - top[:, None]).sum(axis=1)
                    yield note, (dy, x, top, total, target), options
                else:
                    yield note, (target, classes, np.float64, w, -100, smoothing), {}
    if kernel == "softmax_cross_entropy":
        x, target = fill((4, 3), 0), np.array([0, 1, 2, 1])
        x[:, 0] = -np.inf
        yield "a class that is ruled out", (x[1:], target[1:]), {}
        yield "a target that is ruled out", (x, target), {}


def run(backend: Backend, kernel: Any, args: Any, options: Any, dtype: str) -> list[np.ndarray]:
    def ready(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            cast = np.empty_like(value, dtype=dtype)  # keeps the order of the axes
            cast[...] = value
            return (
                place(cast, backend) if cast.flags.c_contiguous else backend.asarray(strided(cast))
            )
        return np.dtype(dtype) if value is np.float64 else place(value, backend)

    def strided(value: np.ndarray) -> np.ndarray:
        return dict(layouts(value))["strided"]

    with np.errstate(all="ignore"):
        result = kernel(*map(ready, args), **{n: ready(v) for n, v in options.items()})
    several = result if isinstance(result, tuple) else (result,)
    return [backend.to_numpy(x) for x in several if x is not None]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", COMPOSITES)
def test_override_equals_definition(place, kernel, dtype):
    backend = place.backend
    definition = getattr(Contract, kernel)
    tried = 0
    for note, args, options in calls_of(kernel):
        if dtype == "float16" and ("large" in note or "about" in note):
            continue  # beyond float16
        what = f"{kernel} {note}"
        expected = run(backend, definition.__get__(backend), args, options, dtype)
        found = run(backend, getattr(backend, kernel), args, options, dtype)
        tried += 1
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        length = max((a.size for a in arrays), default=1)
        scale = 1000.0 if "about" in note else 1.0
        for got, want in zip(found, expected, strict=True):
            assert got.dtype == want.dtype, what
            if dtype == "float16":  # a kernel that computes in float need not overflow half-way
                want = np.where(np.isnan(want), got, want)
            testing.require_close(what, got, want, testing.tolerance(dtype, length), scale)
    assert tried >= 5, "the kernel has no cases"


def test_every_override_is_compared():
    own = {
        n
        for n in DEFINED
        if inspect.getattr_static(NumPyBackend, n) is not inspect.getattr_static(Contract, n)
    }
    assert {"softmax", "linear", "adam_update"} <= own
    assert own <= {*COMPOSITES, *UPDATES}


@pytest.mark.parametrize("kernel", ["sigmoid", "relu", "gelu", "silu", "softplus", "elu"])
def test_a_value_without_axes(kernel):
    backend = NumPyBackend()
    for x in (np.array(0.5), np.float64(-0.5), np.float32(0.25)):
        expected = getattr(Contract, kernel)(backend, x)
        found = getattr(backend, kernel)(x)
        assert found.dtype == expected.dtype == x.dtype
        assert found == pytest.approx(expected, rel=1e-6)


def test_a_label_out_of_range_is_named():
    x, target = fill((4, 3), 0), np.array([0, 1, 3, 1])
    with pytest.raises(IndexError, match=r"target\[2\] = 3 is not a class index in \[0, 3\)"):
        NumPyBackend().softmax_cross_entropy(x, target)


# Updates: the flat buffers of an optimizer, in slices and at once.
OPTIONS: dict[str, list[tuple[int, dict[str, Any]]]] = {
    "sgd_update": [
        (0, {}),
        (0, {"weight_decay": 0.1}),
        (1, {"momentum": 0.9}),
        (1, {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
        (1, {"momentum": 0.9, "nesterov": True}),
    ],
    "adagrad_update": [(1, {}), (1, {"lr_decay": 0.1, "weight_decay": 0.1})],
    "rmsprop_update": [
        (1, {}),
        (2, {"weight_decay": 0.1}),
        (3, {"momentum": 0.9, "alpha": 0.9}),
    ],
    "adam_update": [
        (2, {}),
        (2, {"weight_decay": 0.1}),
        (2, {"weight_decay": 0.1, "decoupled": True, "beta1": 0.5}),
    ],
}
STATES = {"sgd_update": 1, "adagrad_update": 1, "rmsprop_update": 3, "adam_update": 2}
CALLS = [
    pytest.param(kernel, used, options, id=f"{kernel}-{i}")
    for kernel, ways in OPTIONS.items()
    for i, (used, options) in enumerate(ways)
]


def buffers(kernel: str, used: int, size: int, dtype: str) -> list[np.ndarray | None]:
    rng = np.random.default_rng(size)
    arrays = [rng.standard_normal(size).astype(dtype) for _ in range(2)]
    states = [np.abs(rng.standard_normal(size)).astype(dtype) + 1 for _ in range(used)]
    if kernel == "rmsprop_update" and used > 1:
        states[1] *= np.asarray(0.01, dtype)  # a running mean, below the root of the mean square
    return [*arrays, *states, *[None] * (STATES[kernel] - used)]


def updated(backend: Backend, kernel: Any, arrays: Any, **options: Any) -> list[np.ndarray]:
    ready = [None if a is None else backend.asarray(a.copy()) for a in arrays]
    kernel(*ready, **options)
    return [backend.to_numpy(a) for a in ready if a is not None]


def test_every_update_is_here():
    assert set(OPTIONS) == set(UPDATES)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kernel", "used", "options"), CALLS)
def test_update_equals_definition(monkeypatch, place, kernel, used, options, dtype):
    monkeypatch.setattr(numpy_module, "UPDATE_BLOCK", 16)
    backend = place.backend
    definition = getattr(Updates, kernel)
    for size in (0, 1, 15, 16, 17, 32, 45):
        arrays = buffers(kernel, used, size, dtype)
        for step in (1, 2, 1000):
            options = {**options, "lr": 0.01, "step": step}
            host = NumPyBackend()
            expected = updated(host, definition.__get__(host), arrays, **options)
            found = updated(backend, getattr(backend, kernel), arrays, **options)
            for got, want in zip(found, expected, strict=True):
                assert got.dtype == want.dtype == np.dtype(dtype)
                if backend.name == "numpy":
                    np.testing.assert_array_equal(got, want)
                else:
                    testing.require_close(kernel, got, want, testing.tolerance(dtype))
            assert not size or not np.array_equal(found[0], arrays[0]), "nothing was updated"
            np.testing.assert_array_equal(found[1], arrays[1], "the gradient is only read")


@pytest.mark.parametrize(("kernel", "used", "options"), CALLS)
def test_update_at_the_real_block_size(kernel, used, options):
    backend = NumPyBackend()
    for size in (numpy_module.UPDATE_BLOCK - 1, numpy_module.UPDATE_BLOCK + 1):
        arrays = buffers(kernel, used, size, "float32")
        definition = getattr(Updates, kernel).__get__(backend)
        expected = updated(backend, definition, arrays, lr=0.01, step=3, **options)
        found = updated(backend, getattr(backend, kernel), arrays, lr=0.01, step=3, **options)
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kernel", "used", "options"), CALLS)
def test_a_scaled_gradient_and_a_step_that_is_skipped(place, kernel, used, options, dtype):
    backend = place.backend
    arrays = buffers(kernel, used, 45, dtype)
    scaled = [arrays[0], arrays[1] * np.asarray(0.3, dtype), *arrays[2:]]
    numbers = {"lr": 0.01, "step": 3, **options}
    kernels = getattr(backend, kernel)
    expected = updated(backend, kernels, scaled, **numbers)
    expected[1] = arrays[1]  # only read
    for scale in (0.3, backend.asarray(np.array(0.3, dtype)), backend.asarray(np.array(0.3))):
        for skip in (False, backend.asarray(np.array(False))):
            found = updated(backend, kernels, arrays, scale=scale, skip=skip, **numbers)
            for got, want in zip(found, expected, strict=True):
                np.testing.assert_array_equal(got, want)
        for skip in (True, backend.asarray(np.array(True))):
            found = updated(backend, kernels, arrays, scale=scale, skip=skip, **numbers)
            for got, want in zip(found, [a for a in arrays if a is not None], strict=True):
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("kernel", "used", "options"), CALLS)
def test_rate_and_step_may_be_arrays(place, kernel, used, options):
    backend = place.backend
    arrays = buffers(kernel, used, 20, "float32")
    for step in (1, 7):
        numbers = {"lr": 0.01, "step": step}
        kernels = getattr(backend, kernel)
        expected = updated(backend, kernels, arrays, **numbers, **options)
        state = {n: backend.asarray(np.array(v, np.float64)) for n, v in numbers.items()}
        found = updated(backend, kernels, arrays, **state, **options)
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_array_equal(got, want)
        for name, value in numbers.items():
            assert backend.to_numpy(state[name]) == value, "an update may not write to its rate"
