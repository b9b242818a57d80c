"""Words for a wrong name: what was given, the nearest allowed name, and all that is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, allowed: Iterable[str]) -> str:
    """Return the allowed name most like ``name``, or an empty string where none is similar.

    Parameters
    ----------
    name : object
        The name that was given; anything that is not a string is compared by its ``str``.
    allowed : iterable of str
        The names to choose from. Case and the choice of ``-`` or ``_`` do not matter.

    Returns
    -------
    str
        One of ``allowed``, or ``""``.

    Examples
    --------
    >>> nearest("minst", ["mnist", "digits"])
    'mnist'
    """
    plain = {_plain(candidate): candidate for candidate in allowed}
    found = difflib.get_close_matches(_plain(str(name)), plain, n=1, cutoff=0.6)
    return plain[found[0]] if found else ""


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """Return the sentence of an error about a name that is not allowed.

    Parameters
    ----------
    kind : str
        What the name stands for, for example ``"dataset"`` or ``"option of dataset 'csv'"``.
    name : object
        The name that was given.
    allowed : iterable of str
        The allowed names, listed in this order.

    Returns
    -------
    str
        ``unknown KIND 'x'; did you mean 'y'? allowed: a, b, c``. The question is left out where
        no allowed name is similar.

    Examples
    --------
    >>> unknown("dataset", "minst", ["digits", "mnist"])
    "unknown dataset 'minst'; did you mean 'mnist'? allowed: digits, mnist"
    """
    names = list(allowed)
    guess = nearest(name, names)
    question = f"did you mean {guess!r}? " if guess else ""
    listed = ", ".join(names) if names else "none"
    return f"unknown {kind} {name!r}; {question}allowed: {listed}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
