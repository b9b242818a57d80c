"""PyTorch's counterparts of the operations on attention: called with an operation's inputs and
parameters, on PyTorch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TORCH: dict[str, Callable[..., Any]] = {}
