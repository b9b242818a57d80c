"""Memory that is offered to a kernel for its results, so that they are written once, where they
shall lie.

A kernel asks for memory as it always does, by the function of its backend that makes empty arrays,
and that function looks here first. Nothing depends on what a kernel does with what it is given: a
result that ends elsewhere is copied.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gpubackprop.backends.primitives import Array


class _Offer(threading.local):
    arrays: tuple[Array, ...] = ()


_OFFER = _Offer()


@contextmanager
def offered(arrays: Sequence[Array]) -> Iterator[None]:
    """Within the block, this thread is offered these arrays, each once."""
    before, _OFFER.arrays = _OFFER.arrays, tuple(arrays)
    try:
        yield
    finally:
        _OFFER.arrays = before


def taken(fits: Callable[[Array], bool]) -> Array | None:
    """The first array on offer that fits, which is then another's no more; None without one."""
    for i, x in enumerate(_OFFER.arrays):
        if fits(x):
            _OFFER.arrays = (*_OFFER.arrays[:i], *_OFFER.arrays[i + 1 :])
            return x
    return None


def offer_again(arrays: Sequence[Array]) -> None:
    """Put on offer, before all others, what was taken and not used."""
    _OFFER.arrays = (*arrays, *_OFFER.arrays)


def settled(K: Any, outs: Sequence[Array], found: Any) -> None:
    """Copy the results of a kernel of backend `K` that do not lie in `outs` there.

    Parameters
    ----------
    outs : one for each result that is not None.
    found : what the kernel returned.
    """
    several = found if isinstance(found, (tuple, list)) else (found,)
    pairs = list(zip(outs, [v for v in several if v is not None], strict=True))
    late = [(out, value) for out, value in pairs if not _lies_at(K, out, value)]
    # Memory that was offered for one result may hold another one, or what is a view of it.
    late = [
        (out, K.copy(v) if K.owns(v) and any(_meet(K, v, o) for o in outs) else v)
        for out, v in late
    ]
    for out, value in late:
        K.copyto(out, value)


def _lies_at(K: Any, out: Array, value: Any) -> bool:
    """Whether a result lies where it should: it may be another view of the same elements."""
    return value is out or (
        K.owns(value)
        and (value.shape, value.dtype) == (out.shape, out.dtype)
        and K.layout(value) == K.layout(out)
    )


def _meet(K: Any, x: Array, y: Array) -> bool:
    (a, b), (c, d) = K.extent(x), K.extent(y)
    return bool(a < d and c < b)
