"""Mixed precision: which operation runs in what.

Within ``with gb.precision("bf16-mixed"):`` the tape rounds the operands of products to bfloat16,
and keeps in float32 what adds up many numbers or grows without bound. ``RUNS_IN`` is the whole
policy. The lists are those of PyTorch's autocast (``torch.amp``, "Autocast Op Reference") but for
what their comments say. Roundings are operations of the tape (``astype``), so their derivatives are
that operation's: a cotangent is rounded to half precision where its value was, and reaches a
float32 parameter as float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, ContextDecorator
from typing import Any, NamedTuple

import numpy as np

from gpubackprop.autograd import tape
from gpubackprop.autograd.tape import STATE, Operation, apply
from gpubackprop.backends import Backend
from gpubackprop.backends import precision as products
from gpubackprop.backends.precision import check, half_dtype

FLOATS = "fV"
"""Kinds of dtypes that have derivatives; bfloat16's is that of an extension."""


class Mode(NamedTuple):
    """How an operation runs.

    Attributes
    ----------
    operands : ``"half"``: float32 operands are rounded to the half type; ``"float32"``: those of
        the half type are widened; ``"input"``: `x` and `w_ih` are rounded, the others widened;
        ``"common"``: widened only where both kinds meet; ``"given"``: they stay what they are.
    result : ``"alike"``: rounded to the half type where all operands, as the operation gets them,
        are of it (an array library may widen a product, or a bfloat16 beside a Python number);
        ``"first"``: the first result is, where the first operand was; ``"given"``: it stays what it
        is.
    """

    operands: str
    result: str


PRODUCT = Mode("half", "alike")
"""Half operands, sums in float32, and one rounding at the end."""
FLOAT = Mode("float32", "given")
STEPS = Mode("input", "given")
"""The product of the input, for all steps at once, of half operands; states, and what changes them
step by step, in float32."""
WITHIN = Mode("given", "first")
"""float32 inside, between half tensors: the kernels do it, and take float32 parameters."""
COMMON = Mode("common", "alike")
GIVEN = Mode("given", "alike")
OWN = Mode("given", "given")
"""The operation sees to it: a cast, and the cost of half logits, which is float32 as everything
within is; the largest array of many a network is then read and written in half precision only."""

ROWS: dict[Mode, str] = {
    PRODUCT: "linear matmul einsum conv conv_transpose conv_weight attention",
    # What grows beyond a half type's range or ends with its digits. `square` beside `power`; `var`
    # and `mean` beside `sum`.
    FLOAT: (
        "power square exp expm1 log log1p reciprocal sinh cosh tan arcsin arccos softplus "
        "sum mean var logsumexp prod cumsum softmax log_softmax "
        "mse_loss l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits"
    ),
    # A recurrent network's state is a sum over its steps: bfloat16 would lose what is added once it
    # is below 1/256 of the state.
    STEPS: "rnn lstm gru",
    # Statistics, scale and shift in float32; what is normalised keeps its width: pictures that of
    # half precision, a transformer's residual sum that of float32.
    WITHIN: "batch_norm scale_shift layer_norm rms_norm group_norm",
    COMMON: (
        "add subtract multiply divide maximum minimum arctan2 where concatenate rotary "
        "equal not_equal less less_equal greater greater_equal logical_and logical_or"
    ),
    GIVEN: (
        "negative absolute sign sqrt sin cos arctan arcsinh arccosh arctanh tanh erf "
        "floor ceil rint clip isfinite isnan logical_not "
        "relu leaky_relu elu sigmoid gelu gelu_tanh silu dropout "
        "reshape transpose broadcast_to sum_to pad flip copy split "
        "getitem scatter_getitem take scatter_take take_along_axis scatter_along_axis "
        "windows scatter_windows max_pool avg_pool avg_pool_backward "
        "max min any all argmax argmin"
    ),
    OWN: "astype softmax_cross_entropy",
}

RUNS_IN: dict[str, Mode] = {name: mode for mode, names in ROWS.items() for name in names.split()}
"""How each operation runs in mixed precision, by name; one that is not here runs as ``COMMON``."""


class Policy:
    """Runs the operations of a thread by the table.

    Parameters
    ----------
    name : the precision, such as ``"bf16-mixed"``.
    half : the dtype of half precision.
    """

    def __init__(self, name: str, half: np.dtype) -> None:
        self.name, self.half = name, half

    def run(self, op: Operation, inputs: Sequence[Any], params: dict[str, Any]) -> Any:
        """``apply(op, *inputs, **params)`` with operands and results as the table has them."""
        state = STATE
        state.policy = None  # the casts, and the operation itself, run as they are
        try:
            mode = RUNS_IN.get(op.name, COMMON)
            if mode is OWN:
                return apply(op, *inputs, **params)
            if not all([x is None or isinstance(x, (tape.TENSOR, *tape.NUMBERS)) for x in inputs]):
                inputs = tape.as_tensors(op, inputs)
            kinds = [_kind(x) for x in inputs]
            floats = {kind for kind in kinds if kind is not None}
            operands = self._operands(mode, op.inputs, inputs, kinds, floats)
            result = apply(op, *operands, **params)
            if mode.result == "first" and kinds[0] == self.half:
                return self._rounded(result, only_first=True)
            if mode.result == "alike" and {_kind(x) for x in operands} - {None} == {self.half}:
                return self._rounded(result)
            return result
        finally:
            state.policy = self

    def _operands(
        self,
        mode: Mode,
        names: Sequence[str],
        inputs: Sequence[Any],
        kinds: Sequence[np.dtype | None],
        floats: set[np.dtype],
    ) -> Sequence[Any]:
        if mode.operands == "given" or (mode.operands == "common" and len(floats) < 2):
            return inputs
        if mode.operands in ("half", "input") and _is_double(floats):
            return inputs  # double precision was asked for
        if mode.operands == "half":
            return [self._narrow(x, kind) for x, kind in zip(inputs, kinds, strict=True)]
        if mode.operands == "input":
            return [
                self._narrow(x, kind) if name in _OF_THE_INPUT else _wide(x, kind)
                for name, x, kind in zip(names, inputs, kinds, strict=True)
            ]
        return [_wide(x, kind) for x, kind in zip(inputs, kinds, strict=True)]

    def _narrow(self, x: Any, kind: np.dtype | None) -> Any:
        return x if kind is None or kind == self.half else x.rounded(self.half)

    def _rounded(self, result: Any, only_first: bool = False) -> Any:
        """A result, or several, in the half type."""
        if type(result) is tuple:
            rest = result[1:] if only_first else map(self._rounded, result[1:])
            return (self._rounded(result[0]), *rest)
        kind = _kind(result)
        return result if kind is None or kind == self.half else result.astype(self.half)


class _Note:
    """Says at the first operation whether its device has the precision, and is done."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, op: Operation, inputs: Sequence[Any], params: dict[str, Any]) -> Any:
        """``apply(op, *inputs, **params)``."""
        STATE.policy = None
        for x in inputs:
            if isinstance(x, tape.TENSOR):
                words = shortfall(self.name, x.backend)
                if words is not None:
                    warnings.warn(words, UserWarning, stacklevel=3)
                break
        return apply(op, *inputs, **params)


_TOLD: set[str] = set()


def shortfall(name: str, backend: Backend) -> str | None:
    """That a precision means float32 on a device, in words; None where it does not, and where that
    has been said."""
    if name != "tf32" or backend.has_tf32 or backend.device in _TOLD:
        return None
    _TOLD.add(backend.device)
    return f"precision {name!r} means float32 on {backend.device}, which has no such products"


class _Precision(ContextDecorator, AbstractContextManager):
    """Sets the precision of a thread, within a ``with`` block or a decorated function."""

    def __init__(self, name: str) -> None:
        self.name = name
        half = half_dtype(name)
        self.policy = None if half is None else Policy(name, half)
        self._before: list[tuple[Any, str | None]] = []

    def _recreate_cm(self) -> _Precision:
        # Each call of a decorated function puts back its own thread's state.
        return _Precision(self.name)

    def __enter__(self) -> None:
        self._before.append((STATE.policy, products.STATE.products))
        fast = self.name == "tf32"
        STATE.policy = _Note(self.name) if fast else self.policy
        products.STATE.products = "tf32" if fast else "float32"

    def __exit__(self, *exc: object) -> None:
        STATE.policy, products.STATE.products = self._before.pop()


def precision(name: str) -> _Precision:
    """Compute in another precision within a ``with`` block, or in a decorated function.

    Parameters
    ----------
    name : ``"float32"``: every operation in the dtypes of its operands. ``"tf32"``: products of
        float32 arrays may round their operands to 10 bits, on GPUs that have such products.
        ``"bf16-mixed"``, ``"fp16-mixed"``: products take their operands in bfloat16 or float16 and
        add up in float32; losses, softmax, statistics and sums are computed in float32; parameters
        stay float32, and so do their gradients. ``gpubackprop.autograd.precision.RUNS_IN`` is the
        list.

    Raises
    ------
    ConfigError
        If the name is unknown, or bfloat16 is not installed.

    Notes
    -----
    Of a mixed precision, the backward pass may be in the block or behind it: its dtypes follow from
    those of the forward pass. ``"tf32"`` holds for the products that are made within the block, so
    the backward pass belongs there too. In float16, small gradients vanish: scale the loss
    (:class:`gpubackprop.optim.GradScaler`).

    Examples
    --------
    >>> import gpubackprop as gb
    >>> x = gb.tensor([[0.5, 0.25]])
    >>> with gb.precision("fp16-mixed"):
    ...     y = x @ x.T
    >>> y.dtype, gb.exp(y).dtype
    (dtype('float16'), dtype('float16'))
    """
    return _Precision(check(name, "precision"))


def current() -> str:
    """The precision that holds for this thread now."""
    policy = STATE.policy
    if isinstance(policy, Policy):
        return policy.name
    return products.STATE.products or "float32"


def _kind(x: Any) -> np.dtype | None:
    """The dtype of a tensor of floats; None for anything else."""
    if isinstance(x, tape.TENSOR) and x.array.dtype.kind in FLOATS:
        return x.array.dtype
    return None


_OF_THE_INPUT = ("x", "w_ih")
_WIDE = np.dtype("float32")


def _wide(x: Any, kind: np.dtype | None) -> Any:
    return x.astype(_WIDE) if kind is not None and kind.itemsize < _WIDE.itemsize else x


def _is_double(floats: set[np.dtype]) -> bool:
    return any(kind.itemsize > 4 for kind in floats)
