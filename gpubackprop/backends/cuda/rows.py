"""Launching the kernels that reduce rows (``rows.cuh``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.backends.cuda import geometry
from gpubackprop.backends.cuda.arrays import DeviceArrays
from gpubackprop.backends.primitives import Array


class RowKernels(DeviceArrays):
    """What the overrides share whose kernels reduce the rows of (rows, cols) arrays."""

    def _launch_rows(
        self,
        kernel: str,
        template: tuple[str, ...],
        arrays: Sequence[Array | None],
        share: geometry.RowShare,
        size: tuple[int, int],
        *options: Any,
        kept: int = 1,
        stages: Sequence[int] = (1, 2),
    ) -> None:
        """Run a kernel, in stages where its rows are cut into pieces.

        Parameters
        ----------
        kernel, template : its name, and its template arguments before those of the share; the first
            is the C++ type of the elements.
        arrays : all arrays that it takes, in order.
        share : how threads share the rows.
        size : rows and columns.
        options : its numbers, in order.
        kept : numbers that the stages keep of each piece.
        stages : numbers of the stages.
        """
        part, rows = None, size[0]
        if share.pieces > 1:
            wide = np.float64 if template[0] == "double" else np.float32
            part = self.empty((kept * rows * share.pieces,), wide)
        full = (*template, share.team, share.held, share.packed)
        for stage in stages if share.pieces > 1 else (0,):
            numbers = (*size, *options, share.pieces, stage)
            self.kernels.launch(kernel, full, share.launch, *arrays, part, *numbers)
