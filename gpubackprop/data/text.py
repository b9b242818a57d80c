"""Texts as sequences of characters, for networks that guess the next one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop.data.reading import open_file
from gpubackprop.errors import ConfigError, DataError

Array = np.ndarray[Any, Any]

MAX_BYTES = 1 << 30
"""The most bytes that a text may have: as characters and class numbers it takes 13 times that."""

IGNORED = -100
"""A target that costs nothing and is not counted: the ``ignore_index`` of the cost."""


class Vocabulary:
    """The characters that a network knows, each with its number.

    Parameters
    ----------
    characters : sequence of str
        Distinct single characters; the number of a character is its place.

    Raises
    ------
    ConfigError
        An entry is no single character, or occurs twice.

    Examples
    --------
    >>> vocabulary = Vocabulary.of("hello")
    >>> vocabulary.characters
    ('e', 'h', 'l', 'o')
    >>> vocabulary.encode("hole").tolist()
    [1, 3, 2, 0]
    """

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = tuple(characters)
        if any(not isinstance(c, str) or len(c) != 1 for c in self.characters):
            raise ConfigError("a vocabulary consists of single characters")
        self._codes = np.array([ord(c) for c in self.characters], dtype=np.uint32)
        self._order = np.argsort(self._codes, kind="stable")
        self._sorted = self._codes[self._order]
        if np.any(self._sorted[1:] == self._sorted[:-1]):
            raise ConfigError("a vocabulary has each character once")

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Return the characters of a text in the order of their code points."""
        return cls([chr(code) for code in np.unique(_codes(text))])

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Array:
        """Return the numbers of a text's characters, int64, shape (len(text),).

        Raises
        ------
        DataError
            The text has a character that is not in the vocabulary; the error names it.
        """
        codes = _codes(text)
        if not len(self):
            raise DataError("the vocabulary is empty")
        places = np.minimum(np.searchsorted(self._sorted, codes), len(self) - 1)
        unknown = self._sorted[places] != codes
        if unknown.any():
            strange = list(dict.fromkeys(chr(code) for code in codes[unknown][:1000]))
            more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
            raise DataError(
                f"the text has characters that the network does not know: "
                f"{', '.join(map(repr, strange[:5]))}{more}; it knows "
                f"{shown(self.characters)}"
            )
        return self._order[places].astype(np.int64)

    def decode(self, numbers: Array) -> str:
        """Return the text of some numbers, each 0 to ``len(self) - 1``."""
        return "".join(self.characters[int(number)] for number in numbers)


def shown(characters: Sequence[str], most: int = 80) -> str:
    """Return characters for an error: never long."""
    text = repr("".join(characters[:most]))
    return text if len(characters) <= most else f"{text} and {len(characters) - most} more"


def read_text(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> str:
    """Read a text file in UTF-8; a byte-order mark is passed over, line ends stay as they are.

    Parameters
    ----------
    path : str or path-like
        The file.
    max_bytes : int, optional
        The most bytes that it may have, 1 GiB by default.

    Returns
    -------
    str
        The text.

    Raises
    ------
    DataError
        The file is missing, empty or too large, or is not UTF-8; the error names the line.
    """
    with open_file(path, "text file") as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(f"text file {path} has more than {max_bytes:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"text file {path}: line {line} is not valid UTF-8; save the text in that encoding"
        ) from None


def every_window(numbers: Array, context: int) -> tuple[Array, Array]:
    """Return every window of a text, and the same windows one character on.

    Parameters
    ----------
    numbers : numpy.ndarray
        int64, shape (n,), n > ``context``.
    context : int
        Characters in a window.

    Returns
    -------
    inputs, targets : numpy.ndarray
        Shape (n - context, context) each, read-only views: they take no memory.
    """
    windows = np.lib.stride_tricks.sliding_window_view
    return windows(numbers[:-1], context), windows(numbers[1:], context)


def consecutive_windows(numbers: Array, context: int) -> tuple[Array, Array]:
    """Return windows that follow each other and together guess every character but the first.

    Parameters
    ----------
    numbers, context
        As for ``every_window``.

    Returns
    -------
    inputs, targets : numpy.ndarray
        Shape (ceil((n - 1) / context), context) each. Where the length is no multiple of
        ``context``, the last window begins earlier, and the targets that the one before it has
        guessed already are ``IGNORED``: each character counts once.
    """
    count = len(numbers) - 1
    starts = np.arange(0, count, context)
    counted = starts.copy()
    starts[-1] = count - context
    places = starts[:, None] + np.arange(context)
    targets = numbers[places + 1]
    targets[places < counted[:, None]] = IGNORED
    return numbers[places], targets


def divide(text: str, fraction: float, context: int, source: Path | str) -> tuple[str, str]:
    """Cut a text in two: the last ``fraction`` of its characters is held out.

    Raises
    ------
    ConfigError
        ``fraction`` is not between 0 and 1, or ``context`` is not at least 1.
    DataError
        A part is shorter than a window and the character after it.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"test_fraction must be between 0 and 1, got {fraction!r}")
    if context < 1:
        raise ConfigError(f"context must be at least 1, got {context!r}")
    cut = int(len(text) * (1 - fraction))
    for part, what in ((text[:cut], "training"), (text[cut:], "held-out")):
        if len(part) <= context:
            raise DataError(
                f"{source}: its {len(text):,} characters leave {len(part):,} for the {what} part, "
                f"too few for a window of {context:,} and the character after it; take a longer "
                "text or a smaller context"
            )
    return text[:cut], text[cut:]


def _codes(text: str) -> Array:
    # A lone surrogate, as a command line may hold it, passes: it is then an unknown character.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
