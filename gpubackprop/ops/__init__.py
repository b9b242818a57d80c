"""Layer 3: differentiable operations. Importing this package registers all of them."""

from gpubackprop.ops import (  # noqa: F401
    activations,
    attention,
    convolution,
    cross_entropy,
    elementwise,
    indexing,
    joining,
    layer_norms,
    losses,
    norms,
    pooling,
    products,
    random,
    recurrent,
    reductions,
    selection,
    shape,
    windows,
)
