"""Running an operation on one of its samples, on any backend, in any dtype and layout."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.autograd import Operation, Sample, Tensor, apply, grad
from gpubackprop.backends import Backend
from gpubackprop.testing.closeness import CheckError


class Outcome(NamedTuple):
    """What a call gave.

    Attributes
    ----------
    inputs : the arguments, with tensors in the place of arrays.
    outputs : the resulting tensors.
    """

    inputs: list[Any]
    outputs: tuple[Tensor, ...]

    def values(self) -> list[np.ndarray]:
        """The results as NumPy arrays."""
        return [t.numpy() for t in self.outputs]


def samples_of(op: Operation, seed: int = 0) -> list[Sample]:
    """The operation's samples, the same ones at every call with the same seed."""
    rng = np.random.default_rng([seed, zlib.crc32(op.name.encode())])
    try:
        found = list(op.samples(rng))
    except TypeError as error:
        raise CheckError(
            f"{op.name}: samples must be a function that yields samples, samples(rng): {error}"
        ) from error
    for sample in found:
        if not isinstance(sample, Sample) or not isinstance(sample.inputs, tuple):
            raise CheckError(
                f"{op.name}: samples() yields {_brief(sample)}, not Sample((inputs, ...), "
                "{params})"
            )
    return found


def describe(op: Operation, sample: Sample) -> str:
    """One line that identifies a sample in a message."""
    parts = []
    for i, x in enumerate(sample.inputs):
        name = op.inputs[i] if i < len(op.inputs) else f"input {i}"
        parts.append(f"{name}={_brief(x)}")
    parts += [f"{name}={_brief(value)}" for name, value in sample.params.items()]
    note = f" [{sample.note}]" if sample.note else ""
    return f"{op.name}({', '.join(parts)}){note}"


def differentiable_inputs(op: Operation, sample: Sample) -> list[int]:
    """Positions of the inputs that a derivative can be asked by."""
    if op.backward is None or not sample.differentiable:
        return []
    return [i for i, x in enumerate(sample.inputs) if is_real_array(x)]


def is_real_array(x: Any) -> bool:
    """Whether `x` is an array of floats."""
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def run(
    op: Operation,
    sample: Sample,
    backend: Backend,
    dtype: Any = None,
    wanted: Sequence[int] = (),
) -> Outcome:
    """Call `op` on copies of a sample's inputs.

    Parameters
    ----------
    backend : where to run.
    dtype : what to cast real inputs to; None leaves them.
    wanted : positions of the inputs that require a gradient.
    """
    inputs = [
        Tensor(backend.asarray(cast(x, dtype)), backend, i in wanted)
        if isinstance(x, np.ndarray)
        else x
        for i, x in enumerate(map(fresh, sample.inputs))
    ]
    return call(op, inputs, place(sample.params, backend))


def call(op: Operation, inputs: Sequence[Any], params: dict[str, Any]) -> Outcome:
    """Call `op` on arguments that are ready."""
    with np.errstate(all="ignore"):
        result = apply(op, *inputs, **params)
    return Outcome(list(inputs), result if isinstance(result, tuple) else (result,))


def gradients(outcome: Outcome, wanted: Sequence[int], strided: bool = False) -> list[np.ndarray]:
    """Cotangents of the inputs at `wanted`, under fixed cotangents of the outputs.

    Parameters
    ----------
    strided : hand the outputs' cotangents over in memory with gaps.
    """
    outputs = [t for t in outcome.outputs if t.requires_grad]
    if not outputs or not wanted:
        return [np.zeros(outcome.inputs[i].shape, outcome.inputs[i].dtype) for i in wanted]
    cotangents = [cotangent(t.shape, t.dtype, k) for k, t in enumerate(outputs)]
    if strided:
        cotangents = [dict(layouts(c)).get("strided", c) for c in cotangents]
    with np.errstate(all="ignore"):
        found = grad(
            outputs,
            [outcome.inputs[i] for i in wanted],
            [t.backend.asarray(c) for t, c in zip(outputs, cotangents, strict=True)],
            retain_graph=True,
            allow_unused=True,
        )
    return [g.numpy() for g in found]


def cotangent(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    """Random numbers that float16 holds exactly."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.integers(-32, 33, shape) / 16.0, dtype)


def place(value: Any, backend: Backend) -> Any:
    """`value` with copies of its arrays on `backend`, inside tuples, lists and dicts too."""
    if isinstance(value, np.ndarray):
        return backend.asarray(value.copy())
    if isinstance(value, (tuple, list)):
        return type(value)(place(v, backend) for v in value)
    if isinstance(value, dict):
        return {k: place(v, backend) for k, v in value.items()}
    return value


def cast(x: Any, dtype: Any) -> Any:
    """Arrays of floats in `dtype`; anything else as it is."""
    return x.astype(dtype) if dtype is not None and is_real_array(x) else x


def fresh(x: Any) -> Any:
    """A copy of an array in the same order of elements; anything else as it is."""
    return x.copy(order="K") if isinstance(x, np.ndarray) else x


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    """The NumPy arrays inside nested containers."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from arrays_in(v)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from arrays_in(v)


def layouts(x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The values of `x` in other places of memory: names and arrays."""
    if x.ndim == 0:
        return
    if x.ndim > 1:
        yield "Fortran order", np.asfortranarray(x)
    wide = np.empty((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[...] = 77  # a kernel that overlooks the strides reads these
    wide[..., ::2] = x
    yield "strided", wide[..., ::2]
    yield "reversed", np.flip(np.flip(x).copy())


def replaced(sample: Sample, change: Callable[[Any], Any]) -> Sample:
    """The sample with each of its real arrays changed."""
    return sample._replace(
        inputs=tuple(np.asarray(change(x)) if is_real_array(x) else x for x in sample.inputs)
    )


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(_brief(v) for v in value)})"
    return repr(value)
