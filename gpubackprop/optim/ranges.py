"""What the options of optimizers allow."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np


class Range:
    """Allowed values of an option: numbers from `low` on and below `high`.

    Parameters
    ----------
    low, high : bounds.
    count : how many such numbers the option has; more than one stand in a tuple.
    """

    def __init__(self, low: float, high: float = math.inf, count: int = 1) -> None:
        self.low, self.high, self.count = low, high, count

    def holds(self, value: Any) -> bool:
        """Whether `value` is allowed."""
        parts = (value,) if self.count == 1 else value
        if not isinstance(parts, (tuple, list)) or len(parts) != self.count:
            return False
        return all(
            isinstance(v, (int, float, np.floating, np.integer))
            and not isinstance(v, bool)
            and self.low <= v < self.high
            for v in parts
        )

    def __str__(self) -> str:
        each = "a number" if self.count == 1 else f"{self.count} numbers"
        if self.high != math.inf:
            return f"{each} in [{self.low:g}, {self.high:g})"
        return f"{each}, finite and not negative" if self.low == 0 else f"{each}, finite"


NON_NEGATIVE = Range(0.0)
FINITE = Range(-sys.float_info.max)
FRACTIONS = Range(0.0, 1.0, count=2)
