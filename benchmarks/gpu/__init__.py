"""Training steps and kernels on a GPU: this project beside PyTorch and JAX."""
