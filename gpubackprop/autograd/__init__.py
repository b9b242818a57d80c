"""Layer 2: the chain rule. Tensors, the tape that records them, and derivatives."""

from gpubackprop.autograd import kernels as _kernels  # noqa: F401 - completes the tape
from gpubackprop.autograd.gradcheck import GradientReport, gradcheck, gradgradcheck
from gpubackprop.autograd.operation import ALL_INPUTS, REGISTRY, Operation, Sample, Spec
from gpubackprop.autograd.recording import enable_grad, no_grad
from gpubackprop.autograd.tape import STATE, Node, Observer, apply
from gpubackprop.autograd.tensor import Tensor, grad, tensor

__all__ = [
    "ALL_INPUTS",
    "REGISTRY",
    "STATE",
    "GradientReport",
    "Node",
    "Observer",
    "Operation",
    "Sample",
    "Spec",
    "Tensor",
    "apply",
    "enable_grad",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "no_grad",
    "tensor",
]
