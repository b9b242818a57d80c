"""The one place through which every kernel call of a thread can be made to pass.

A backend's kernels are attributes of it, so whoever wants to see each call (the recorder of a
compiled step) puts functions of its own in their places for a while. Without an interception a
call costs nothing more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpubackprop.backends.base import Backend, kernel_names

Kernel = Callable[..., Any]
Call = Callable[[str, Kernel, tuple[Any, ...], dict[str, Any]], Any]
"""``call(name, kernel, args, kwargs)``: runs the kernel and gives what the caller shall get."""

_one_at_a_time = threading.RLock()


@contextmanager
def intercepted(backend: Backend, call: Call) -> Iterator[None]:
    """Within the block, kernel calls that this thread makes on `backend` go through `call`.

    Calls that a kernel makes of others, and those of other threads, run as they are. One
    interception exists at a time; another thread that asks for one waits.
    """
    with _one_at_a_time:
        owner = threading.get_ident()
        within = False  # a kernel runs: what it calls is its own business

        def through(name: str, kernel: Kernel) -> Kernel:
            def called(*args: Any, **kwargs: Any) -> Any:
                nonlocal within
                if within or threading.get_ident() != owner:
                    return kernel(*args, **kwargs)
                within = True
                try:
                    return call(name, kernel, args, kwargs)
                finally:
                    within = False

            return called

        own = vars(backend)
        names = [name for name in kernel_names() if hasattr(backend, name)]
        before = {name: own[name] for name in names if name in own}
        try:
            for name in names:
                own[name] = through(name, getattr(backend, name))
            yield
        finally:
            for name in names:
                if name in before:
                    own[name] = before[name]
                else:
                    own.pop(name, None)
