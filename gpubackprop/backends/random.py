"""The generator that hands out random numbers, and the one in use where none is named.

A :class:`Generator` is a place in a Philox sequence: three integers. The draws themselves are pure
functions of those three and live in ``draws.py``; they are exported here too, so that
``random.normal(shape, seed=1)`` needs no object.

The ambient generator
---------------------
Users of PyTorch expect ``manual_seed(0)`` to settle the initial weights of the modules made after
it, so there is a default generator. It serves the construction of modules and nothing else: data
order, dropout and every kernel are given their (seed, stream, offset) by name, so no draw in a
training step depends on what ran before it.

The default belongs to the process, as in PyTorch, and is drawn from the operating system's entropy
until ``manual_seed`` is called. :func:`using` puts another one in its place for the length of a
block; that replacement is a context variable, so threads and asynchronous tasks do not see each
other's.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import numpy as np

from gpubackprop.backends import draws, live
from gpubackprop.backends.draws import (
    as_float_dtype,
    as_shape,
    bernoulli,
    integers,
    is_wide,
    normal,
    permutation,
    truncated_normal,
    uniform,
)
from gpubackprop.backends.philox import (
    SPLIT_DOMAIN,
    WORDS_PER_BLOCK,
    check_seed,
    philox4x32,
    random_bits,
)
from gpubackprop.backends.primitives import DType, Shape
from gpubackprop.errors import ConfigError, GradientError

__all__ = [
    "Draw",
    "Generator",
    "bernoulli",
    "default_generator",
    "integers",
    "manual_seed",
    "normal",
    "permutation",
    "random_bits",
    "recorded_draws",
    "replayed_draws",
    "truncated_normal",
    "uniform",
    "using",
]

_WORD = 0xFFFFFFFF
_OFFSET = 0xFFFFFFFFFFFFFFFF

Place = tuple[int, int, int]
Draw = tuple[int, Place]
"""A draw that was made: how many words, and where they begin."""


class _Watch(threading.local):
    """Stands between a thread and its draws where they are recorded or repeated."""

    draw: Callable[[Generator, int], Place] | None = None


_WATCH = _Watch()


class Generator:
    """A place in a random sequence that moves on with every draw.

    Its whole state is three integers, so a checkpoint stores it as they are and a resumed run draws
    what an uninterrupted one would have drawn. Methods are those of this module without ``seed``,
    ``stream`` and ``offset``.

    Parameters
    ----------
    seed : 0 <= seed < 2**64.
    stream : 0 <= stream < 2**32.
    offset : blocks of four words already used.

    Examples
    --------
    >>> g = Generator(7)
    >>> again = Generator.from_state(g.state())
    >>> bool((g.normal(3) == again.normal(3)).all())
    True
    """

    __slots__ = ("_lock", "_offset", "_seed", "_stream")

    def __init__(self, seed: int, stream: int = 0, offset: int = 0) -> None:
        self._seed = check_seed(seed)
        if not 0 <= stream <= _WORD:
            raise ConfigError(f"stream {stream} is out of range; allowed: 0 <= stream < 2**32")
        if not 0 <= offset <= _OFFSET:
            raise ConfigError(f"offset {offset} is out of range; allowed: 0 <= offset < 2**64")
        self._stream, self._offset = int(stream), int(offset)
        self._lock = threading.Lock()

    def state(self) -> tuple[int, int, int]:
        """(seed, stream, offset)."""
        return self._seed, self._stream, self._offset

    def restore(self, state: Place) -> None:
        """Go to the place where :meth:`state` was asked for, of this or another generator."""
        fresh = Generator(*state)
        with self._lock:
            self._seed, self._stream, self._offset = fresh.state()

    @classmethod
    def from_state(cls, state: tuple[int, int, int]) -> Generator:
        """The generator whose :meth:`state` this is; a list, as JSON gives it, will do."""
        seed, stream, offset = state
        return cls(seed, stream, offset)

    def __reduce__(self) -> tuple[type[Generator], tuple[int, int, int]]:
        # The lock can be neither copied nor pickled; the state is all there is to keep.
        return Generator, self.state()

    def __repr__(self) -> str:
        return f"Generator(seed={self._seed}, stream={self._stream}, offset={self._offset})"

    def take(self, n_words: int) -> Place:
        """Set aside the next `n_words` words, in whole blocks, and return where they begin.

        Returns
        -------
        seed, stream, offset : for a kernel that makes its own bits (``random_bits``, ``dropout``).
            No later draw of this generator uses the same words. Two threads never get the same
            block.
        """
        if n_words < 0:
            raise ConfigError(f"cannot take {n_words} random words")
        watch = _WATCH.draw
        return self._next(n_words) if watch is None else watch(self, n_words)

    def _next(self, n_words: int) -> Place:
        if live.STATE.recorder is None:
            return self._advance(n_words)
        blocks = -(-int(n_words) // WORDS_PER_BLOCK)

        def undo() -> None:
            with self._lock:
                self._offset = (self._offset - blocks) & _OFFSET

        return live.call(functools.partial(self._advance, n_words), undo)  # type: ignore[return-value]

    def _advance(self, n_words: int) -> Place:
        blocks = -(-int(n_words) // WORDS_PER_BLOCK)
        with self._lock:
            start = self._offset
            self._offset = (start + blocks) & _OFFSET
        return self._seed, self._stream, start

    def split(self) -> Generator:
        """A new generator whose numbers have nothing to do with this one's.

        Notes
        -----
        The child's seed and stream are three words of one Philox block of the parent's key, at the
        parent's offset, in a counter domain that no draw uses; the parent then moves on by one
        block, so the next child differs. A child is thereby one of 2**96 sequences: among a million
        generators the chance that two share one is below 10**-17.
        """
        seed, stream, offset = self.take(1)
        counter = (offset & _WORD, offset >> 32, stream, SPLIT_DOMAIN)
        low, high, child, _ = philox4x32(counter, (seed & _WORD, seed >> 32))
        return Generator(low | high << 32, child)

    def _place(self, n_words: int) -> dict[str, int]:
        return dict(zip(("seed", "stream", "offset"), self.take(n_words), strict=True))

    def uniform(
        self,
        shape: int | Shape,
        *,
        low: float = 0.0,
        high: float = 1.0,
        dtype: DType = np.float32,
    ) -> np.ndarray:
        """See :func:`~gpubackprop.backends.draws.uniform`."""
        words = math.prod(as_shape(shape)) * (2 if is_wide(as_float_dtype(dtype)) else 1)
        return draws.uniform(shape, low=low, high=high, dtype=dtype, **self._place(words))

    def normal(
        self,
        shape: int | Shape,
        *,
        mean: float = 0.0,
        std: float = 1.0,
        dtype: DType = np.float32,
    ) -> np.ndarray:
        """See :func:`~gpubackprop.backends.draws.normal`."""
        pairs = -(-math.prod(as_shape(shape)) // 2)
        words = pairs * (4 if is_wide(as_float_dtype(dtype)) else 2)
        return draws.normal(shape, mean=mean, std=std, dtype=dtype, **self._place(words))

    def truncated_normal(
        self,
        shape: int | Shape,
        *,
        mean: float = 0.0,
        std: float = 1.0,
        low: float = -2.0,
        high: float = 2.0,
        dtype: DType = np.float32,
    ) -> np.ndarray:
        """See :func:`~gpubackprop.backends.draws.truncated_normal`."""
        place = self._place(2 * math.prod(as_shape(shape)))
        return draws.truncated_normal(
            shape, mean=mean, std=std, low=low, high=high, dtype=dtype, **place
        )

    def bernoulli(self, shape: int | Shape, p: float) -> np.ndarray:
        """See :func:`~gpubackprop.backends.draws.bernoulli`."""
        return draws.bernoulli(shape, p, **self._place(math.prod(as_shape(shape))))

    def integers(
        self, low: int, high: int, shape: int | Shape, *, dtype: DType = np.int64
    ) -> np.ndarray:
        """See :func:`~gpubackprop.backends.draws.integers`."""
        place = self._place(2 * math.prod(as_shape(shape)))
        return draws.integers(low, high, shape, dtype=dtype, **place)

    def permutation(self, n: int) -> np.ndarray:
        """See :func:`~gpubackprop.backends.draws.permutation`."""
        return draws.permutation(n, **self._place(2 * n))


_replacement: ContextVar[Generator | None] = ContextVar("gpubackprop_generator", default=None)
_process_lock = threading.Lock()
_process_generator: Generator | None = None


def manual_seed(seed: int) -> Generator:
    """Start the default generator anew from `seed` and return it.

    Inside :func:`using` it is the block's generator that is replaced, until the block ends.
    """
    global _process_generator
    generator = Generator(seed)
    if _replacement.get() is None:
        with _process_lock:
            _process_generator = generator
    else:
        _replacement.set(generator)
    return generator


def default_generator() -> Generator:
    """The generator that module construction draws from where it is given none."""
    global _process_generator
    current = _replacement.get()
    if current is not None:
        return current
    with _process_lock:
        if _process_generator is None:
            _process_generator = Generator(int.from_bytes(os.urandom(8), "little"))
        return _process_generator


@contextlib.contextmanager
def using(generator: Generator) -> Iterator[Generator]:
    """Make `generator` the default one for the length of a ``with`` block.

    Examples
    --------
    >>> with using(Generator(3)):
    ...     first = default_generator().integers(0, 10, 2)
    >>> bool((Generator(3).integers(0, 10, 2) == first).all())
    True
    """
    token = _replacement.set(generator)
    try:
        yield generator
    finally:
        _replacement.reset(token)


@contextlib.contextmanager
def recorded_draws(draws: list[Draw]) -> Iterator[None]:
    """Write down every draw that this thread makes within the block, whatever the generator."""
    outer = _WATCH.draw

    def draw(generator: Generator, n_words: int) -> Place:
        place = generator._next(n_words) if outer is None else outer(generator, n_words)
        draws.append((n_words, place))
        return place

    _WATCH.draw = draw
    try:
        yield
    finally:
        _WATCH.draw = outer


@contextlib.contextmanager
def replayed_draws(draws: list[Draw]) -> Iterator[Callable[[], int]]:
    """Give this thread the draws that were recorded, in their order; no generator moves.

    Yields
    ------
    A function that tells how many draws are left.

    Raises
    ------
    GradientError
        More draws are made, or of another size.
    """
    outer, made = _WATCH.draw, 0

    def draw(generator: Generator, n_words: int) -> Place:
        nonlocal made
        if made == len(draws) or draws[made][0] != n_words:
            was = f"{draws[made][0]} words" if made < len(draws) else "no further one"
            raise GradientError(
                f"random draw {made + 1} of a repeated run asks for {n_words} words where the first"
                f" run made {was}; it must do the same both times"
            )
        made += 1
        return draws[made - 1][1]

    _WATCH.draw = draw
    try:
        yield lambda: len(draws) - made
    finally:
        _WATCH.draw = outer
