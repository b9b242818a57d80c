"""Layer 3: differentiable operations. Importing this package registers all of them."""

from gpubackprop.ops import elementwise, products  # noqa: F401
