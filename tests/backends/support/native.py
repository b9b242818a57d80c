"""Running one native kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubackprop.backends.cpu.native.engine import Program
from gpubackprop.backends.cpu.native.lowering import Site, load

TABLE = load()


def executed(
    kernel: str, outs: Sequence[np.ndarray], parts: int, *args: Any, **options: Any
) -> Sequence[np.ndarray]:
    """`outs`, to which as many threads have written a kernel's results."""
    instructions = TABLE[kernel].lower(Site(parts), tuple(outs), *args, **options)
    assert instructions is not None, f"{kernel} is not served"
    Program(instructions, parts).run()
    return outs
