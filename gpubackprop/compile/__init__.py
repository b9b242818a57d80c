"""Layer 5: the compiled step. One call of a function is recorded below autograd; its memory is
planned, its elementwise work fused, and every further call replays the plan.

``gb.compile(fn)`` is this package itself, called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See :func:`gpubackprop.compile.api.compile`."""
        from gpubackprop.compile import api

        return api.compile(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
