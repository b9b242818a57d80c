"""The benchmark behind ``gpubackprop bench``: recipes and single kernels on several devices, beside
other libraries, and against what the devices can do."""
