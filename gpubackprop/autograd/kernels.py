"""The tape as an interpreter of kernels: a rule that is handed these kernels computes on tensors
and is recorded itself.

A kernel for which an operation of the same name is registered becomes that operation. Every other
kernel is a composite, and its definition in the contract runs as it stands, on tensors. So a
backward rule that runs here yields a result that can be differentiated again, to any order, with no
rule written twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpubackprop.autograd import tape
from gpubackprop.autograd.operation import REGISTRY
from gpubackprop.autograd.tensor import Tensor
from gpubackprop.backends import Backend, DType, Shape, get_backend
from gpubackprop.errors import GradientError


class TapeKernels(Backend):
    """Kernels on tensors. One instance serves one rule at a time per thread; the device is that of
    the tensors."""

    name = "tape"

    def __getattribute__(self, kernel: str) -> Any:
        if kernel not in TapeKernels.__dict__:
            op = REGISTRY.get(kernel)
            if op is not None and op.is_kernel:
                return _as_kernel(op)
        return super().__getattribute__(kernel)

    def __getattr__(self, kernel: str) -> Any:
        raise GradientError(
            f"{kernel} has no derivative rule, so a derivative that goes through it cannot be "
            "differentiated again"
        )

    def detach(self, x: Tensor) -> Tensor:
        return x.detach()

    def einsum(self, subscripts: str, *operands: Tensor) -> Tensor:
        return tape.apply(REGISTRY["einsum"], *operands, subscripts=subscripts)

    def _here(self) -> Backend:
        return getattr(tape.STATE, "rule_backend", None) or get_backend("cpu")

    def zeros(self, shape: Shape, dtype: DType) -> Tensor:
        return self._constant("zeros", shape, dtype)

    def ones(self, shape: Shape, dtype: DType) -> Tensor:
        return self._constant("ones", shape, dtype)

    def full(self, shape: Shape, value: Any, dtype: DType) -> Tensor:
        return self._constant("full", shape, value, dtype)

    def arange(self, start: float, stop: float, step: float, dtype: DType) -> Tensor:
        return self._constant("arange", start, stop, step, dtype)

    def random_bits(self, seed: int, stream: int, offset: int, n: int) -> Tensor:
        return self._constant("random_bits", seed, stream, offset, n)

    def _constant(self, kernel: str, *args: Any) -> Tensor:
        backend = self._here()
        return Tensor(getattr(backend, kernel)(*args), backend)


def _as_kernel(op: tape.Operation) -> Any:
    """`op` with its kernel's calling convention: the operation's inputs may come by keyword, its
    parameters by position."""
    names = op.parameters

    def call(*args: Any, out: None = None, **params: Any) -> Any:
        if op.variadic:
            inputs: Sequence[Any] = args[0]
            rest = args[1:]
        else:
            inputs, rest = args[: len(op.inputs)], args[len(op.inputs) :]
            inputs = [*inputs, *[params.pop(n) for n in op.inputs[len(inputs) :] if n in params]]
        params.update(zip(names, rest, strict=False))
        return tape.apply(op, *inputs, **params)

    return call


tape.TAPE_KERNELS = TapeKernels()
