"""The NumPy backend: the kernel contract on the arrays of the host."""

from gpubackprop.backends.cpu.backend import NumPyBackend as NumPyBackend
