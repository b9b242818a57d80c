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


class OutOfMemoryError(GpubackpropError, MemoryError):
    """A device has no room for what an operation asked for.

    Attributes
    ----------
    operation : what asked, for example ``"linear backward"``.
    device : where.
    nbytes : bytes asked for at once; None where the library does not tell.
    held : bytes in use by what holds them (``"parameters"``, ``"gradients"``,
        ``"optimizer state"``, ``"activations kept by the tape"``, ``"arenas of compiled steps"``,
        ``"other arrays"``), as far as they are known.
    free : bytes that the memory pool keeps free, in blocks that were too small; None without a
        pool.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str = "",
        device: str = "",
        nbytes: int | None = None,
        held: dict[str, int] | None = None,
        free: int | None = None,
    ) -> None:
        super().__init__(message)
        self.operation, self.device, self.nbytes = operation, device, nbytes
        self.held, self.free = held or {}, free


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
