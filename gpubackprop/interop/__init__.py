"""Layer 7: other libraries' files and arrays."""

from gpubackprop.interop.safetensors import load_safetensors, read_safetensors, save_safetensors

__all__ = ["load_safetensors", "read_safetensors", "save_safetensors"]
