"""Train neural networks by backpropagation on NumPy and CuPy."""

__version__ = "0.1.0"

from gpubackprop import ops as ops
from gpubackprop.autograd import Tensor, enable_grad, grad, no_grad, tensor

__all__ = ["Tensor", "enable_grad", "grad", "no_grad", "tensor"]
