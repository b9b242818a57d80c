"""Functions that make tensors out of a shape and a value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpubackprop.autograd import Tensor, tensor
from gpubackprop.autograd.shortage import named
from gpubackprop.backends import Backend, DType, Shape, as_dtype, get_backend
from gpubackprop.errors import ConfigError, DTypeError, ShapeError
from gpubackprop.ops.functions.operands import Operand, as_tensor

__all__ = [
    "arange",
    "eye",
    "from_numpy",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "zeros",
    "zeros_like",
]

Device = str | Backend | None


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor on the CPU that shares the memory of a NumPy array, and has its dtype.

    Parameters
    ----------
    array : the array.

    Returns
    -------
    Tensor
        A leaf of the array's shape.
    """
    if not isinstance(array, np.ndarray):
        raise DTypeError(f"from_numpy: {type(array).__name__} is no numpy.ndarray; use gb.tensor")
    return tensor(array, device="cpu")


def zeros(
    shape: int | Sequence[int],
    dtype: DType = np.float32,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of zeros.

    Parameters
    ----------
    shape : lengths of the axes; a number for one axis.
    dtype : NumPy dtype.
    device : where to put it; by default the device named by ``GPUBACKPROP_DEVICE``, else the CPU.
    requires_grad : whether derivatives by it are wanted.

    Returns
    -------
    Tensor
        Of shape `shape`.
    """
    return full(shape, 0, dtype, device, requires_grad)


def ones(
    shape: int | Sequence[int],
    dtype: DType = np.float32,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of ones.

    Parameters
    ----------
    shape : lengths of the axes; a number for one axis.
    dtype : NumPy dtype.
    device : where to put it; by default the device named by ``GPUBACKPROP_DEVICE``, else the CPU.
    requires_grad : whether derivatives by it are wanted.

    Returns
    -------
    Tensor
        Of shape `shape`.
    """
    return full(shape, 1, dtype, device, requires_grad)


def full(
    shape: int | Sequence[int],
    fill_value: float | bool,
    dtype: DType = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of one value.

    Parameters
    ----------
    shape : lengths of the axes; a number for one axis.
    fill_value : the value.
    dtype : NumPy dtype; by default float32, int64 or bool after the value's type.
    device : where to put it; by default the device named by ``GPUBACKPROP_DEVICE``, else the CPU.
    requires_grad : whether derivatives by it are wanted.

    Returns
    -------
    Tensor
        Of shape `shape`.
    """
    backend = get_backend(device)
    if dtype is None:
        dtype = {bool: np.bool_, int: np.int64}.get(type(fill_value), np.float32)
    lengths = _lengths(shape)
    with named(f"tensor {list(lengths)}", backend):
        array = backend.full(lengths, fill_value, as_dtype(dtype))
    return _made(array, backend, requires_grad)


def zeros_like(
    x: Operand, dtype: DType = None, device: Device = None, requires_grad: bool = False
) -> Tensor:
    """Zeros with the shape, and by default the dtype and device, of `x`.

    Parameters
    ----------
    x : tensor or array-like.
    dtype : NumPy dtype; by default that of `x`.
    device : where to put it; by default where `x` is.
    requires_grad : whether derivatives by it are wanted.

    Returns
    -------
    Tensor
        Of the shape of `x`.
    """
    return full_like(x, 0, dtype, device, requires_grad)


def ones_like(
    x: Operand, dtype: DType = None, device: Device = None, requires_grad: bool = False
) -> Tensor:
    """Ones with the shape, and by default the dtype and device, of `x`.

    Parameters
    ----------
    x : tensor or array-like.
    dtype : NumPy dtype; by default that of `x`.
    device : where to put it; by default where `x` is.
    requires_grad : whether derivatives by it are wanted.

    Returns
    -------
    Tensor
        Of the shape of `x`.
    """
    return full_like(x, 1, dtype, device, requires_grad)


def full_like(
    x: Operand,
    fill_value: float | bool,
    dtype: DType = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """One value with the shape, and by default the dtype and device, of `x`.

    Parameters
    ----------
    x : tensor or array-like.
    fill_value : the value.
    dtype : NumPy dtype; by default that of `x`.
    device : where to put it; by default where `x` is.
    requires_grad : whether derivatives by it are wanted.

    Returns
    -------
    Tensor
        Of the shape of `x`.
    """
    x = as_tensor(x)
    dtype = x.dtype if dtype is None else dtype
    return full(x.shape, fill_value, dtype, x.backend if device is None else device, requires_grad)


def arange(
    start: float,
    stop: float | None = None,
    step: float = 1,
    dtype: DType = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """Evenly spaced numbers ``start, start + step, ...`` before `stop`.

    Parameters
    ----------
    start : the first number; with a single argument this is `stop`, and the first number is 0.
    stop : the end, which is not reached.
    step : the distance.
    dtype : NumPy dtype; by default int64 for integers, else float32.
    device : where to put it; by default the device named by ``GPUBACKPROP_DEVICE``, else the CPU.
    requires_grad : whether derivatives by it are wanted.

    Returns
    -------
    Tensor
        1-d.

    Raises
    ------
    ConfigError
        If `step` is 0.
    """
    if stop is None:
        start, stop = 0, start
    if step == 0:
        raise ConfigError("arange: step must not be 0")
    if dtype is None:
        whole = all(isinstance(v, (int, np.integer)) for v in (start, stop, step))
        dtype = np.int64 if whole else np.float32
    backend = get_backend(device)
    return _made(backend.arange(start, stop, step, as_dtype(dtype)), backend, requires_grad)


def linspace(
    start: float,
    stop: float,
    num: int = 50,
    dtype: DType = np.float32,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """`num` evenly spaced numbers from `start` to `stop`, both included.

    Parameters
    ----------
    start, stop : the first and the last number.
    num : how many.
    dtype : NumPy dtype.
    device : where to put it; by default the device named by ``GPUBACKPROP_DEVICE``, else the CPU.
    requires_grad : whether derivatives by it are wanted.

    Returns
    -------
    Tensor
        Of shape ``(num,)``.
    """
    if num < 0:
        raise ShapeError(f"linspace: num must not be negative, not {num}")
    backend = get_backend(device)
    array = backend.asarray(np.linspace(start, stop, num, dtype=as_dtype(dtype)))
    return _made(array, backend, requires_grad)


def eye(
    n: int,
    m: int | None = None,
    dtype: DType = np.float32,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """A matrix with ones on the diagonal and zeros elsewhere.

    Parameters
    ----------
    n : number of rows.
    m : number of columns; by default `n`.
    dtype : NumPy dtype.
    device : where to put it; by default the device named by ``GPUBACKPROP_DEVICE``, else the CPU.
    requires_grad : whether derivatives by it are wanted.

    Returns
    -------
    Tensor
        Of shape (n, m).
    """
    rows, columns = _lengths((n, n if m is None else m))
    backend = get_backend(device)
    numbers = backend.reshape(backend.arange(0, rows, 1, np.dtype(np.int64)), (rows, 1))
    hit = backend.equal(numbers, backend.arange(0, columns, 1, np.dtype(np.int64)))
    return _made(backend.astype(hit, as_dtype(dtype)), backend, requires_grad)


def _lengths(shape: int | Sequence[int]) -> Shape:
    lengths = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    if any(n < 0 for n in lengths):
        raise ShapeError(f"shape {lengths} has a negative length")
    return tuple(int(n) for n in lengths)


def _made(array: object, backend: Backend, requires_grad: bool) -> Tensor:
    made = Tensor(array, backend)
    return made.requires_grad_() if requires_grad else made
