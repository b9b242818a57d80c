"""Arrays in C order, by a copy where they are not."""

from __future__ import annotations

import numpy as np

from gpubackprop.backends.cpu.native.copies import copy_instruction
from gpubackprop.backends.cpu.native.engine import Instruction
from gpubackprop.backends.cpu.native.lowering import Site


def in_order(
    site: Site, x: np.ndarray, dtype: type = np.float32
) -> tuple[list[Instruction], np.ndarray | None]:
    """An array of a dtype in C order, and what copies it there first; None for another dtype."""
    if x.dtype != dtype:
        return [], None
    if x.flags.c_contiguous:
        return [], x
    copy = site.scratch(x.shape, dtype)
    made = copy_instruction(copy, x)
    return ([], None) if made is None else ([made], copy)


def out_in_order(
    site: Site, out: np.ndarray, dtype: type = np.float32
) -> tuple[np.ndarray | None, list[Instruction]]:
    """An array of a dtype in C order to write a result to, and what copies it to where it shall be
    afterwards; None for another dtype."""
    if out.dtype != dtype:
        return None, []
    if out.flags.c_contiguous:
        return out, []
    copy = site.scratch(out.shape, dtype)
    made = copy_instruction(out, copy)
    return (None, []) if made is None else (copy, [made])
