"""The errors that a user can meet, each also an instance of the built-in error that it refines."""

from __future__ import annotations


class GpubackpropError(Exception):
    """Base of every error that the library raises on purpose."""


class ShapeError(GpubackpropError, ValueError):
    """Shapes do not fit the operation."""


class DTypeError(GpubackpropError, TypeError):
    """A dtype (or the type of an argument) does not fit the operation."""


class DeviceError(GpubackpropError, RuntimeError):
    """A device cannot be used, or arrays of two devices meet in one operation."""


class DataError(GpubackpropError, ValueError):
    """A data file is missing, damaged, truncated or of another format."""


class ConfigError(GpubackpropError, ValueError):
    """A recipe, an option or an argument has a wrong key or value."""


class CheckpointError(GpubackpropError, ValueError):
    """A checkpoint is missing, damaged or does not fit the model."""


class GradientError(GpubackpropError, RuntimeError):
    """A derivative was asked for that the graph cannot give."""


class NonFiniteError(GpubackpropError, ArithmeticError):
    """A NaN or an infinity appeared where training needs finite numbers."""


class CompileError(GpubackpropError, RuntimeError):
    """A function does something that a compiled step cannot repeat; the error says how to write it
    instead."""
