"""Checking that a command line which a document or an image names would be accepted here."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

from gpubackprop.cli import main

PROJECT = Path(__file__).resolve().parents[1]


@cache
def said_by(*arguments: str) -> str:
    """What the command prints for these arguments; it must end well."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            status = main(list(arguments))
        except SystemExit as end:
            status = end.code
    assert not status, f"gpubackprop {shlex.join(arguments)} ended with {status}"
    return printed.getvalue()


@cache
def make_targets() -> frozenset[str]:
    """The targets that a person may name."""
    text = (PROJECT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    return frozenset(phony.split()) - {"FORCE"}


def check(words: list[str]) -> None:
    """Fail where the command, its sub-command, an option or a recipe does not exist."""
    if words[0] == "make":
        named = [word for word in words[1:] if "=" not in word]
        assert set(named) <= make_targets(), words
        for word in words[1:]:
            if word.startswith("RECIPE="):
                check(["gpubackprop", "train", word.partition("=")[2]])
            if word.startswith("ARGS="):
                check(["gpubackprop", "train", *shlex.split(word.partition("=")[2])])
        return
    assert words[0] == "gpubackprop", words
    if len(words) == 1:
        return
    help_text = said_by(words[1], "--help")
    options = [word.partition("=")[0] for word in words[2:] if word.startswith("-")]
    for option in options:
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text), (option, words)
    if words[1] in ("train", "compare") and words[2:] and words[2].endswith(".toml"):
        assert (PROJECT / words[2]).is_file(), words
    elif words[1] in ("train", "compare") and words[2:] and not words[2].startswith("-"):
        assert re.search(rf"(?<![\w-]){re.escape(words[2])}(?![\w-])", said_by("recipes")), words
