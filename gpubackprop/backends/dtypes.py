"""Dtypes by the names that users give them."""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.primitives import DType
from gpubackprop.errors import DTypeError
from gpubackprop.suggest import unknown

NAMES = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)


def as_dtype(dtype: DType) -> np.dtype:
    """`dtype` as NumPy has it: a dtype, a type such as ``numpy.float32``, or a name.

    Raises
    ------
    DTypeError
        If it is none of them, with the nearest name.
    """
    if isinstance(dtype, np.dtype):
        return dtype
    try:
        return np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # NumPy also parses lists of fields
        words = unknown("dtype", dtype, NAMES)
        if isinstance(dtype, (int, np.integer)):
            words += "; the lengths of several axes are one argument, such as (4, 6)"
        raise DTypeError(words) from None
