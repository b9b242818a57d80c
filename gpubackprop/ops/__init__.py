"""Layer 3: differentiable operations. Importing this package registers all of them."""

from gpubackprop.ops import (  # noqa: F401
    activations,
    convolution,
    cross_entropy,
    elementwise,
    indexing,
    joining,
    losses,
    normalization,
    norms,
    products,
    random,
    recurrent,
    reductions,
    selection,
    shape,
    windows,
)
