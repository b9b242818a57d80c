"""Train neural networks by backpropagation on NumPy and CuPy.

``import gpubackprop as gb`` gives tensors and the functions on them under NumPy's names
(``gb.exp``, ``gb.sum``, ``gb.einsum``). Networks and optimizers lie in ``gb.nn`` and ``gb.optim``;
they are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from numpy import bool_, float16, float32, float64, int32, int64, uint8

from gpubackprop import ops as ops
from gpubackprop.autograd import Tensor, enable_grad, grad, no_grad, tensor
from gpubackprop.ops import functions as _functions
from gpubackprop.ops.functions import *  # noqa: F403
from gpubackprop.version import __version__ as __version__

if TYPE_CHECKING:
    from gpubackprop import data as data
    from gpubackprop import inspect as inspect
    from gpubackprop import interop as interop
    from gpubackprop import nn as nn
    from gpubackprop import optim as optim
    from gpubackprop import training as training
    from gpubackprop.autograd import Operation as Operation
    from gpubackprop.autograd import Sample as Sample
    from gpubackprop.autograd import Spec as Spec
    from gpubackprop.autograd import apply as apply
    from gpubackprop.autograd.checkpoint import checkpoint as checkpoint
    from gpubackprop.autograd.precision import precision as precision
    from gpubackprop.backends.device import limit_memory as limit_memory
    from gpubackprop.backends.random import Generator as Generator
    from gpubackprop.backends.random import manual_seed as manual_seed
    from gpubackprop.compile.api import compile as compile


# Imported on first use, so that `import gpubackprop` stays quick.
_MODULES = ("compile", "data", "inspect", "interop", "nn", "optim", "testing", "training")
_NAMES = {
    "Generator": "backends.random",
    "Operation": "autograd",
    "Sample": "autograd",
    "Spec": "autograd",
    "apply": "autograd",
    "checkpoint": "autograd.checkpoint",
    "precision": "autograd.precision",
    "limit_memory": "backends.device",
    "manual_seed": "backends.random",
}

__all__ = ["Generator", "Operation", "Sample", "Spec", "Tensor", "apply", "checkpoint", "compile"]
__all__ += ["enable_grad", "grad", "limit_memory", "manual_seed", "no_grad", "precision", "tensor"]
__all__ += ["bool_", "float16", "float32", "float64", "int32", "int64", "uint8"]
__all__ += _functions.__all__


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"gpubackprop.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"gpubackprop.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'gpubackprop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_NAMES})
