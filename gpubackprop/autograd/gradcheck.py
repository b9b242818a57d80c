"""Checking derivatives: what the chain rule says against how the values really change.

A derivative is compared along one random direction of all inputs at once, under one random
cotangent of all results: the number ``sum(c * J v)`` meets every element of the Jacobian J, and
costs a handful of evaluations however large the inputs are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.autograd.chain_rule import nodes_below
from gpubackprop.autograd.tensor import Tensor, grad
from gpubackprop.errors import DTypeError, GradientError, ShapeError

Arrays = Sequence[np.ndarray]

EPSILON = float(np.finfo(np.float64).eps)
COMPLEX_STEP = 1e-30

# Operations that NumPy continues analytically from real to complex arguments.
ANALYTIC = frozenset(
    "add subtract multiply divide negative square sqrt reciprocal exp expm1 log sin cos tan sinh "
    "cosh tanh sum mean var reshape transpose broadcast_to concatenate stack split flip pad "
    "getitem take matmul linear cumsum sigmoid softmax log_softmax silu".split()
)


class GradientReport(NamedTuple):
    """What a gradient check found.

    Attributes
    ----------
    analytic : the directional derivative by the chain rule.
    numeric : the same by differences of values, or by the complex step.
    error : estimated error of `numeric`.
    allowed : the difference that was allowed.
    method : ``"central"`` or ``"complex"``.
    """

    analytic: float
    numeric: float
    error: float
    allowed: float
    method: str


def gradcheck(
    fn: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-3,
    tolerance: float = 1e-6,
    seed: int = 0,
    method: str = "auto",
    name: str | None = None,
    input_names: Sequence[str] = (),
) -> GradientReport:
    """Check the first derivative of `fn` at a point, along one random direction.

    Parameters
    ----------
    fn : called with `inputs`; returns a tensor or a sequence of tensors. It must give the same
        values every time.
    inputs : float64 tensors, of any device; those with ``requires_grad`` are varied. Anything else
        is handed on as it is.
    eps : half-width of the central difference. The same again at half of it gives the error
        estimate and, by Richardson's extrapolation, a derivative with an error of order ``eps**4``.
    tolerance : allowed difference, relative to the norm of ``gradient * direction`` or, where it
        is larger, the derivative itself.
    seed : chooses the direction and the cotangent.
    method : ``"central"``; ``"complex"`` (``imag(f(x + ih v)) / h``, exact to rounding, on the CPU
        and for analytic operations only); or ``"auto"``: complex where every recorded operation
        permits it, else central.
    name, input_names : what the error message calls `fn` and the inputs.

    Returns
    -------
    GradientReport

    Raises
    ------
    GradientError
        If the two derivatives differ, if a value or a derivative is not finite, or if there is no
        derivative at this point (the differences to the two sides do not come together).
    DTypeError
        If an input to be varied is not float64.

    Notes
    -----
    Central differences: Press et al., Numerical Recipes, section 5.7. Complex step: Squire & Trapp,
    SIAM Review 40 (1998) 110.
    """
    if method not in ("auto", "central", "complex"):
        raise GradientError(
            f"gradcheck: unknown method {method!r}; allowed: 'auto', 'central', 'complex'"
        )
    point = _Point(fn, inputs, seed, name, input_names)
    obstacle = point.obstacle()
    if method == "complex" and obstacle:
        raise GradientError(f"gradcheck: {point.name}: the complex step does not apply: {obstacle}")

    def by_differences(direction: Arrays) -> GradientReport:
        reports = []
        for h in (eps, eps / 16):  # the second where the function is too curved for the first
            found = _by_differences(point, direction, h)
            reports.append(point.report(direction, found, tolerance, "central"))
            if _agrees(reports[-1]) or reports[-1].error <= reports[-1].allowed:
                return reports[-1]
        return min(reports, key=lambda report: report.error)

    def measure(direction: Arrays) -> GradientReport:
        if method != "central" and not obstacle:
            found = _by_complex_step(point, direction)
            if found is not None:
                return point.report(direction, found, tolerance, "complex")
            if method == "complex":
                raise GradientError(f"gradcheck: {point.name}: a kernel refuses complex numbers")
        return by_differences(direction)

    report = measure(point.direction)
    if _agrees(report):
        return report
    culprits = []
    for j, i in enumerate(point.varied):
        alone = [v if k == j else np.zeros_like(v) for k, v in enumerate(point.direction)]
        if not _agrees(part := measure(alone)):
            culprits.append(f"{point.input_name(i)}, {_told(part)}")
    raise GradientError(
        f"gradcheck: {point.name}: wrong derivative by "
        + ("; by ".join(culprits) or f"all inputs together, {_told(report)}")
    )


def gradgradcheck(
    fn: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-3,
    tolerance: float = 1e-6,
    seed: int = 0,
    name: str | None = None,
    input_names: Sequence[str] = (),
) -> GradientReport:
    """Check the second derivative: :func:`gradcheck` of the first-order gradient.

    The gradient is taken with ``create_graph=True`` and is varied by `inputs` and by the cotangents
    of the results, so that the backward rule is checked as a function of everything it reads.

    Parameters
    ----------
    fn, inputs, eps, tolerance, seed, name, input_names : as for :func:`gradcheck`.

    Returns
    -------
    GradientReport

    Raises
    ------
    GradientError, DTypeError
        As :func:`gradcheck` does.
    """
    point = _Point(fn, inputs, seed, name, input_names)
    n = len(point.inputs)
    cotangents = [
        Tensor(t.backend.asarray(c), t.backend, requires_grad=True)
        for t, c in zip(point.results, point.cotangents, strict=True)
        if t.requires_grad
    ]
    if not cotangents:
        raise GradientError(f"gradgradcheck: {point.name}: no result depends on an input")

    def first(*arguments: Any) -> Any:
        results = [t for t in _tensors(fn(*arguments[:n]), point.name) if t.requires_grad]
        varied = [arguments[i] for i in point.varied]
        return grad(results, varied, arguments[n:], create_graph=True, allow_unused=True)

    names = [point.label(i) for i in range(n)]
    names += [f"cotangent of result {k}" for k in range(len(cotangents))]
    return gradcheck(
        first,
        [*point.inputs, *cotangents],
        eps=eps,
        tolerance=tolerance,
        seed=seed + 1,
        method="central",
        name=f"gradient of {point.name}",
        input_names=names,
    )


class _Measured(NamedTuple):
    """A numeric derivative and the parts of its error: of the formula, of the arithmetic."""

    slope: float
    truncation: float
    rounding: float


class _Point:
    """A function at a point, a direction, a cotangent, and the chain rule's gradient there."""

    def __init__(
        self,
        fn: Callable[..., Any],
        inputs: Tensor | Sequence[Any],
        seed: int,
        name: str | None,
        input_names: Sequence[str],
    ) -> None:
        self.fn = fn
        self.name = name or str(getattr(fn, "__name__", type(fn).__name__))
        self.names = input_names
        self.inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        self.varied = [
            i for i, t in enumerate(self.inputs) if isinstance(t, Tensor) and t.requires_grad
        ]
        if not self.varied:
            raise GradientError(f"gradcheck: {self.name}: no input has requires_grad=True")
        for i in self.varied:
            if self.inputs[i].dtype != np.float64:
                raise DTypeError(f"gradcheck: {self.name}: {self.input_name(i)} must be float64")
        rng = np.random.default_rng(seed)
        self.base = [np.array(self.inputs[i].numpy()) for i in self.varied]
        self.direction = [_signed(rng, x.shape) for x in self.base]
        leaves = self._place(self.base)
        self.results = self._call(leaves)
        if not self.results:
            raise GradientError(f"gradcheck: {self.name}: no result has a float dtype")
        self.values = [t.numpy() for t in self.results]
        for k, value in enumerate(self.values):
            if not np.isfinite(value).all():
                raise GradientError(
                    f"gradcheck: {self.name}: result {k} is not finite at this point"
                )
        self.cotangents = [_signed(rng, value.shape) for value in self.values]
        self.gradient = self._gradient([leaves[i] for i in self.varied])

    def label(self, i: int) -> str:
        """The name of input `i`, or its number."""
        return self.names[i] if i < len(self.names) else f"input {i}"

    def input_name(self, i: int) -> str:
        """The label with dtype and shape."""
        return f"{self.label(i)} ({self.inputs[i].dtype}{list(self.inputs[i].shape)})"

    def evaluate(self, direction: Arrays, step: complex) -> list[np.ndarray]:
        """The results at ``base + step * direction``."""
        moved = [x + step * v for x, v in zip(self.base, direction, strict=True)]
        results = self._call(self._place(moved))
        if [t.shape for t in results] != [v.shape for v in self.values]:
            raise ShapeError(
                f"gradcheck: {self.name}: the shapes of its results change with the inputs' values"
            )
        return [t.numpy() for t in results]

    def obstacle(self) -> str:
        """What forbids the complex step, or nothing."""
        if any(self.inputs[i].backend.array_type is not np.ndarray for i in self.varied):
            return "the inputs are not on the CPU"
        names = {node.op.name for node in nodes_below(t.node for t in self.results)}
        if not names:
            return "nothing was recorded"
        return ", ".join(sorted(names - ANALYTIC))

    def report(
        self, direction: Arrays, found: _Measured, tolerance: float, method: str
    ) -> GradientReport:
        """The numeric derivative along `direction` beside the chain rule's."""
        parts = [g * v for g, v in zip(self.gradient, direction, strict=True)]
        size = max(_total(p * p for p in parts) ** 0.5, abs(found.slope))
        allowed = tolerance * size + found.rounding
        error = found.truncation + found.rounding
        return GradientReport(_total(parts), found.slope, error, allowed, method)

    def _place(self, arrays: Arrays) -> list[Any]:
        placed = list(self.inputs)
        for i, x in zip(self.varied, arrays, strict=True):
            backend = self.inputs[i].backend
            placed[i] = Tensor(backend.asarray(x), backend, requires_grad=x.dtype.kind == "f")
        return placed

    def _call(self, inputs: Sequence[Any]) -> list[Tensor]:
        return [t for t in _tensors(self.fn(*inputs), self.name) if t.dtype.kind in "fc"]

    def _gradient(self, leaves: list[Tensor]) -> list[np.ndarray]:
        pairs = [
            (t, t.backend.asarray(c))
            for t, c in zip(self.results, self.cotangents, strict=True)
            if t.requires_grad
        ]
        if not pairs:  # nothing was recorded: by the chain rule 0, and the differences will tell
            return [np.zeros_like(x) for x in self.base]
        results, cotangents = zip(*pairs, strict=True)
        found = [g.numpy() for g in grad(results, leaves, cotangents, allow_unused=True)]
        for i, g in zip(self.varied, found, strict=True):
            if not np.isfinite(g).all():
                raise GradientError(
                    f"gradcheck: {self.name}: the gradient by {self.input_name(i)} is not finite"
                )
        return found


def _by_complex_step(point: _Point, direction: Arrays) -> _Measured | None:
    """The derivative from the imaginary part; None where a kernel refuses complex numbers."""
    try:
        values = point.evaluate(direction, 1j * COMPLEX_STEP)
    except (TypeError, ValueError, RuntimeError):
        return None
    parts = [c * (v.imag / COMPLEX_STEP) for c, v in zip(point.cotangents, values, strict=True)]
    return _Measured(_total(parts), 0.0, 64 * EPSILON * _total(np.abs(p) for p in parts))


def _by_differences(point: _Point, direction: Arrays, eps: float) -> _Measured:
    """The derivative by two central differences, extrapolated; an error where there is a kink."""
    sides = []
    for step in (eps, eps / 2):
        above, below = point.evaluate(direction, step), point.evaluate(direction, -step)
        sides.append(
            [
                ((a - v) / step, (v - b) / step)
                for a, v, b in zip(above, point.values, below, strict=True)
            ]
        )
    _refuse_kinks(point, sides[0], sides[1], eps)
    wide, narrow = (
        _total(c * (r + f) / 2 for c, (r, f) in zip(point.cotangents, side, strict=True))
        for side in sides
    )
    slope = (4 * narrow - wide) / 3
    rounding = 16 * EPSILON / eps * _total(np.abs(v) for v in point.values)
    return _Measured(slope, abs(slope - narrow), rounding)


def _refuse_kinks(point: _Point, wide: Sequence[Any], narrow: Sequence[Any], eps: float) -> None:
    """Raise where the slopes to the two sides do not come together as the step is halved."""
    for k, (far, (right, left)) in enumerate(zip(wide, narrow, strict=True)):
        gap = np.abs(right - left)
        noise = 64 * EPSILON / eps * np.abs(point.values[k])
        visible = gap > 1e-4 * (np.abs(right) + np.abs(left)) + noise + 1e-9
        # In a smooth function the gap halves with the step, or shrinks faster; in a kink it stays.
        kinks = visible & (gap > 0.75 * np.abs(far[0] - far[1]))
        if kinks.any():
            at = np.unravel_index(int(kinks.argmax()), kinks.shape)
            raise GradientError(
                f"gradcheck: {point.name}: no derivative at this point: element "
                f"{[int(i) for i in at]} of result {k} has the slope {float(left[at]):.6g} to one "
                f"side and {float(right[at]):.6g} to the other; choose inputs away from the kink"
            )


def _agrees(report: GradientReport) -> bool:
    return abs(report.analytic - report.numeric) <= report.allowed


def _told(report: GradientReport) -> str:
    told = (
        f"the chain rule gives {report.analytic:.12g}, the {report.method} step "
        f"{report.numeric:.12g} (difference {abs(report.analytic - report.numeric):.3g}, "
        f"allowed {report.allowed:.3g})"
    )
    if report.error > report.allowed:
        told += (
            f"; the numeric value is itself uncertain by {report.error:.3g}: "
            "try another eps, or a point with no kink near it"
        )
    return told


def _signed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random signs times magnitudes between 1/2 and 1, so that every element takes part."""
    return np.asarray(rng.uniform(0.5, 1.0, shape) * rng.choice((-1.0, 1.0), shape))


def _total(parts: Iterable[np.ndarray]) -> float:
    return float(sum(np.sum(p) for p in parts))


def _tensors(results: Any, name: str) -> list[Tensor]:
    found = [results] if isinstance(results, Tensor) else results
    if isinstance(found, (tuple, list)) and all(isinstance(t, Tensor) for t in found):
        return list(found)
    kind = type(results).__name__
    raise DTypeError(f"gradcheck: {name} must return a tensor or a sequence of tensors, not {kind}")
