"""Functions on tensors under NumPy's names: ``gb.exp``, ``gb.sum``, ``gb.einsum``, ...

Each takes tensors, Python numbers, nested sequences and arrays. Where no argument is a tensor, one
is made as by :func:`gpubackprop.tensor`.
"""

from gpubackprop.ops.functions import (
    creation,
    elementwise,
    indexing,
    products,
    random,
    reductions,
    shapes,
)
from gpubackprop.ops.functions.creation import *  # noqa: F403
from gpubackprop.ops.functions.elementwise import *  # noqa: F403
from gpubackprop.ops.functions.indexing import *  # noqa: F403
from gpubackprop.ops.functions.products import *  # noqa: F403
from gpubackprop.ops.functions.random import *  # noqa: F403
from gpubackprop.ops.functions.reductions import *  # noqa: F403
from gpubackprop.ops.functions.shapes import *  # noqa: F403

__all__: list[str] = []
__all__ += creation.__all__
__all__ += elementwise.__all__
__all__ += indexing.__all__
__all__ += products.__all__
__all__ += random.__all__
__all__ += reductions.__all__
__all__ += shapes.__all__
