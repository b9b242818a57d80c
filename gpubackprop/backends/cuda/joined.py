"""Products that do what comes after them before their result is anywhere in memory, by the
epilogues of cuBLASLt.

Bytes moved for each element of a hidden layer's result of `s` bytes, without the product's own
operands and before any cache helps:

============================================  ==================================  ================
step                                          kernels by themselves               joined
============================================  ==================================  ================
z = x W^T + b, y = relu(z)                    write z, read z, write y: 3 s       y: s (+ 1/8)
z = x W^T + b, y = gelu_tanh(z)               write z, read z, write y: 3 s       z, y: 2 s
dy = dz' W', dz = relu'(y) dy, db = sum(dz)   write dy, read dy, y, write dz:     dz: s (+ 1/8)
                                              4 s
dz = gelu_tanh'(z) dy, db = sum(dz)           write dy, read dy, z, write dz:     read z, write
                                              4 s                                 dz: 2 s
dW = dy^T x, db = sum(dy)                     read dy once more: s                0
============================================  ==================================  ================

and one launch fewer each. NVIDIA says neither what relu makes of NaN, nor its slope at 0, nor how
exactly gelu is computed, and for which dtypes there is an algorithm depends on library and GPU. So
a kernel here does it only where it has been tried with the same shapes, gave what its definition
gives, and was not slower than the kernels by themselves (``joined_times.py``): the library serves
some epilogues by a slower product, or by a kernel of its own behind it. Compiled steps ask by
``joins`` before they use it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from gpubackprop.backends.cuda import joined_times
from gpubackprop.backends.cuda.choices import Choice, Choices, Mode, of_device
from gpubackprop.backends.cuda.graphs import capturing
from gpubackprop.backends.cuda.lt import CublasLt, LtError
from gpubackprop.backends.cuda.products import CudaProducts
from gpubackprop.backends.joined import JoinedKernels, mask_shape
from gpubackprop.backends.offers import offered
from gpubackprop.backends.primitives import Array, DType, Shape

NEAR = {"float32": 2.0**-18, "float16": 2.0**-8, "bfloat16": 2.0**-5}
"""How far a kernel may be from its definition, for numbers about 1. In TF32 all that is tried is
exact, but for gelu."""

CAPTURING = range(900, 910)
"""cudaErrorStreamCapture..., of the runtime and of the driver: what a capture forbids."""

_VALUES = (math.nan, 0.0, -0.0, 1.5, -1.5, 0.25, -0.25, 3.0)
"""What activations are tried with."""


class JoinedProducts(CudaProducts):
    """Overrides of the kernels that join a product with others.

    Attributes
    ----------
    joining : ``"auto"`` takes the faster way of each call, ``"always"`` the joined one wherever it
        is right, ``"never"`` none.
    """

    index: int
    joining: Mode
    _gpu: Any

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._trials: dict[Any, bool] = {}
        self._trial_table: Choices | None = None
        # Addresses of the masks that the library wrote last: others hold nothing.
        self._masks: set[int] = set()

    def linear_activation(
        self, x: Array, weight: Array, bias: Array | None, activation: str, keep: bool = False
    ) -> tuple[Array, Array | None]:
        args = (x, weight, bias, activation, keep)
        found = self._joined("linear_activation", *args)
        if found is None and keep and activation == "relu":
            y, _ = super().linear_activation(x, weight, bias, activation)
            return y, self._mask(y)
        return super().linear_activation(*args) if found is None else found

    def matmul_activation_backward(
        self,
        x1: Array,
        x2: Array,
        value: Array,
        kept: Array | None,
        activation: str,
        summed: bool = False,
    ) -> tuple[Array, Array | None]:
        args = (x1, x2, value, kept, activation, summed)
        found = self._joined("matmul_activation_backward", *args)
        return super().matmul_activation_backward(*args) if found is None else found

    def matmul_row_sums(self, x1: Array, x2: Array) -> tuple[Array, Array]:
        found = self._joined("matmul_row_sums", x1, x2)
        return super().matmul_row_sums(x1, x2) if found is None else found

    def _joined(self, kernel: str, *args: Any) -> Any:
        """A kernel's results by one call of the library; None where that does not serve."""
        if self._library_problem is not None or not self.joins(kernel, *args):
            return None
        return getattr(self, f"_{kernel}")(*args)

    # One call of the library, or None.
    def _linear_activation(
        self, x: Array, weight: Array, bias: Array | None, activation: str, keep: bool
    ) -> tuple[Array, Array | None] | None:
        if not (self._is_array(x) and x.dtype == weight.dtype and x.ndim):
            return None
        y, kept = self.empty((*x.shape[:-1], weight.shape[0]), x.dtype), None
        relu = activation == "relu"
        if keep:
            kept = self._mask(y) if relu else self.empty(y.shape, y.dtype)
        function = f"{activation}_kept" if keep else activation
        if self._product(x, weight.T, y, bias, function, auxiliary=kept) is None:
            return None
        if kept is not None and relu:
            self._masks.add(int(kept.data.ptr))
        return y, kept

    def _mask(self, y: Array) -> Array:
        """Memory for the mask of a relu, which holds nothing yet."""
        mask = self.empty(mask_shape(y.shape), np.uint8)
        self._masks.discard(int(mask.data.ptr))
        return mask

    def _matmul_activation_backward(
        self,
        x1: Array,
        x2: Array,
        value: Array,
        kept: Array | None,
        activation: str,
        summed: bool,
    ) -> tuple[Array, Array | None] | None:
        if not (self._is_array(x1) and x1.dtype == x2.dtype == value.dtype and x2.ndim == 2):
            return None
        given: Array | None = value
        if activation == "relu":
            given = kept if kept is not None and int(kept.data.ptr) in self._masks else None
        if given is None:
            return None
        dz = self.empty((*x1.shape[:-1], x2.shape[1]), x1.dtype)
        total = self.empty(dz.shape[-1:], dz.dtype) if summed else None
        function = f"{activation}_backward"
        made = self._product(x1, x2, dz, total, function, auxiliary=given)
        return None if made is None else (dz, total)

    def _matmul_row_sums(self, x1: Array, x2: Array) -> tuple[Array, Array] | None:
        if not (self._is_array(x1) and x1.dtype == x2.dtype and x1.ndim == x2.ndim == 2):
            return None
        y = self.empty((x1.shape[0], x2.shape[1]), x1.dtype)
        sums = self.empty(x1.shape[:1], x1.dtype)
        made = self._product(x1, x2, y, sums, "row_sums")
        return None if made is None else (y, sums)

    # Trials.
    def joins(self, kernel: str, *args: Any) -> bool:
        described = tuple(
            (a.shape, a.dtype.name, _order(a)) if hasattr(a, "shape") else a for a in args
        )
        key = (kernel, self.precision, described)
        found = self._trials.get(key)
        if found is None:
            if self.joining == "never":
                return False
            with self._gpu, offered(()):  # what is offered is for results
                if capturing(self.xp):
                    return False  # nothing is tried within a graph
                found, settled = self._trial(kernel, args, _words(self, *key))
                self.xp.get_default_memory_pool().free_all_blocks()  # of what was tried
            if settled:
                self._trials[key] = found
        return found

    def _trial(self, kernel: str, args: tuple[Any, ...], call: str) -> tuple[bool, bool]:
        """Whether a kernel is one call of the library that gives what its definition gives, and is
        not slower; and whether that is so from now on, or for the moment."""
        if args[0].dtype.name not in NEAR or any(0 in getattr(a, "shape", ()) for a in args):
            return False, True
        lt, passing = self._product_library(), self._passing
        if lt is None:
            return False, False
        try:
            table = self._trial_choices(lt) if self.joining == "auto" else None
            known = None if table is None else table.known(call)
            if known is not None and known.use != joined_times.JOINED:
                return False, True
            given = TRIALS[kernel](self, *args)
            found = getattr(self, f"_{kernel}")(*given)
            if found is None or not self._trial_right(kernel, given, found):
                settled = self._passing == passing
                if settled and table is not None:
                    why = "other numbers than its parts" if found else "not one call of cuBLASLt"
                    table.keep(call, Choice(joined_times.PARTS, {}, why))
                return False, settled
            if table is not None and known is None:
                outs = [y for y in found if y is not None]
                known = joined_times.measured(self, table, call, kernel, given, outs)
                if known is None:
                    return False, False
            return known is None or known.use == joined_times.JOINED, True
        except Exception as error:  # what is only faster must not end a training
            if not self.lacks_memory(error):
                words = " ".join(str(error).split())
                warnings.warn(
                    f"{kernel} on {self.device} could not be tried, and its parts are called by "
                    f"themselves: {type(error).__name__}: {words}",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return False, not self._trial_passing(error)

    def _trial_passing(self, error: Exception) -> bool:
        """Whether an error is about the moment: there is no room, a thread captures a graph, or
        the library failed."""
        captures = getattr(error, "status", None) in CAPTURING
        return captures or isinstance(error, LtError) or self.lacks_memory(error)

    def _trial_choices(self, lt: CublasLt) -> Choices:
        """The table of this device, with this version of the library."""
        if self._trial_table is None:
            self._trial_table = of_device(self.xp, self.index, {"cublaslt": lt.version()})
        return self._trial_table

    def _trial_right(self, kernel: str, given: tuple[Any, ...], found: Any) -> bool:
        """Whether results are those of the definition."""
        expected = getattr(JoinedKernels, kernel)(self, *given)
        pairs = list(zip(found, expected, strict=True))
        if kernel == "linear_activation" and given[3:] == ("relu", True):
            # Nobody knows the order of the bits: they are read by a derivative.
            pairs[1] = self._trial_mask(*found)
        return all(self._trial_alike(a, b) for a, b in pairs if b is not None)

    def _trial_mask(self, y: Array, mask: Array) -> tuple[Array | None, Array]:
        """A cotangent of ones through a relu by its mask, and by its result."""
        x1 = self._trial_filled((*y.shape[:-1], 16), 0.25, y.dtype)
        x2 = self._trial_filled((16, y.shape[-1]), 0.25, y.dtype)
        found = self._matmul_activation_backward(x1, x2, y, mask, "relu", False)
        expected = self.relu_backward(self._trial_filled(y.shape, 1.0, y.dtype), y)
        return None if found is None else found[0], expected

    def _trial_alike(self, found: Array | None, expected: Array) -> bool:
        """Whether the numbers are near each other, with NaN where there shall be one."""
        if found is None:
            return False
        near = NEAR[expected.dtype.name]
        found, expected = self.astype(found, np.float32), self.astype(expected, np.float32)
        apart = self.absolute(self.subtract(found, expected))
        allowed = self.multiply(self.maximum(self.absolute(expected), 1.0), near)
        both = self.logical_and(self.isnan(found), self.isnan(expected))
        same = self.logical_or(self.equal(found, expected), both)
        good = self.logical_or(self.less_equal(apart, allowed), same)
        return bool(self.to_numpy(self.all(good)))

    def _trial_filled(self, shape: Shape, value: float, dtype: DType) -> Array:
        """An array of one value. CuPy has few kernels for bfloat16: it is made of float32."""
        return self.astype(self.full(shape, value, np.float32), dtype)

    def _trial_full(self, x: Any, value: float) -> Array:
        """A new array of one value, whose axes lie in memory in the order of those of `x`."""
        order = _order(x)
        made = self._trial_filled(tuple(x.shape[i] for i in order), value, x.dtype)
        return self.transpose(made, tuple(int(i) for i in np.argsort(order)))

    def _trial_column(self, x: Any, values: bool = True) -> Array:
        """A matrix of zeros, and in its first column what activations are tried with, or ones."""
        made = self._trial_full(x, 0.0)
        column = np.resize(_VALUES if values else (1.0,), x.shape[0]).astype(x.dtype)
        self.copyto(self.getitem(made, (slice(None), 0)), self.asarray(column))
        return made


def _order(x: Any) -> tuple[int, ...]:
    """The axes of an array from the outermost in memory to the innermost."""
    strides = getattr(x, "strides", None) or range(len(x.shape), 0, -1)
    steps = [(n == 1, s) for n, s in zip(x.shape, strides, strict=True)]
    if any(one for one, _ in steps):
        return tuple(range(len(steps)))
    return tuple(sorted(range(len(steps)), key=lambda i: -abs(steps[i][1])))


def _words(
    K: JoinedProducts, kernel: str, precision: str, described: tuple[tuple[Any, ...] | Any, ...]
) -> str:
    """A call as tables of choices have it."""
    words = [kernel]
    for a in described:
        if isinstance(a, tuple):
            shape, dtype, order = a
            turned = "" if order == tuple(range(len(shape))) else f"/{','.join(map(str, order))}"
            words.append(f"{dtype} {'x'.join(map(str, shape))}{turned}")
        elif isinstance(a, bool):
            words += [{"linear_activation": "kept"}.get(kernel, "summed")] if a else []
        else:
            words.append("-" if a is None else str(a))
    words += ["tf32"] if precision == "tf32" and described[0][1] == "float32" else []
    return " ".join([*words, K.numerics])


def _try_forwards(
    K: JoinedProducts, x: Any, weight: Any, bias: Any, activation: str, keep: bool = False
) -> tuple[Any, ...]:
    """A product that gives :data:`_VALUES` along its last axis."""
    shift = None if bias is None else K.zeros(bias.shape, bias.dtype)
    return K._trial_full(x, 1.0), K._trial_column(weight), shift, activation, keep


def _try_backwards(
    K: JoinedProducts, x1: Any, x2: Any, value: Any, kept: Any, activation: str, summed: bool
) -> tuple[Any, ...]:
    """A product of ones, and what an activation has kept of :data:`_VALUES`."""
    n = value.shape[-1]
    x = K._trial_filled((*value.shape[:-1], 16), 1.0, value.dtype)
    weight = K._trial_column(K.empty((n, 16), value.dtype))
    forth = (x, weight, None, activation, True)
    y, found = K._linear_activation(*forth) or JoinedKernels.linear_activation(K, *forth)
    turned = K._trial_column(K.transpose(K._trial_full(x2, 0.0)), values=False)
    relu = activation == "relu"
    given = (y, found) if relu else (found, None)
    return K._trial_full(x1, 1.0), K.transpose(turned), *given, activation, summed


def _try_sums(K: JoinedProducts, x1: Any, x2: Any) -> tuple[Any, ...]:
    return K._trial_column(x1), K._trial_full(x2, 1.0)


TRIALS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "linear_activation": _try_forwards,
    "matmul_activation_backward": _try_backwards,
    "matmul_row_sums": _try_sums,
}
"""Arguments for the trial of each kernel, out of what is known of its own."""
