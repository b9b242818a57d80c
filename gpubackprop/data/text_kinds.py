"""How a recipe finds texts; see ``kinds`` for what a loader is."""

from __future__ import annotations

from pathlib import Path

from gpubackprop.data import text as texts
from gpubackprop.data.raw import Folder, Raw, located
from gpubackprop.errors import ConfigError, DataError

SHAKESPEARE = "input.txt"


def text(data_dir: Folder, *, path: str = "", context: int = 64, test_fraction: float = 0.1) -> Raw:
    """Return the windows of a text file in UTF-8, character by character."""
    return _windows(located("text", data_dir, path), context, test_fraction)


def tinyshakespeare(
    data_dir: Folder, *, context: int = 64, test_fraction: float = 0.1, download: bool = True
) -> Raw:
    """Return the windows of plays of Shakespeare, from a folder or the cache."""
    from gpubackprop.data.download import fetch

    if data_dir is not None:
        below = (Path(data_dir), Path(data_dir) / "tinyshakespeare")
        folder = next((f for f in below if (f / SHAKESPEARE).is_file()), None)
        if folder is None and not Path(data_dir).exists():
            raise DataError(f"cannot read {SHAKESPEARE} from {data_dir}: there is no such folder")
        if folder is None:
            raise DataError(
                f"{data_dir} holds no {SHAKESPEARE}, the text of tinyshakespeare; for another text "
                "set data.name = 'text' and data.path"
            )
    elif download:
        folder = fetch("tinyshakespeare")
    else:
        raise ConfigError(
            f"dataset 'tinyshakespeare' needs the folder (--data-dir) of {SHAKESPEARE}, or "
            "download=true"
        )
    return _windows(folder / SHAKESPEARE, context, test_fraction)


def _windows(file: Path, context: int, test_fraction: float) -> Raw:
    whole = texts.read_text(file)
    train, test = texts.divide(whole, test_fraction, context, file)
    # Of the whole text, as nanoGPT does: which characters there are is no secret of the held-out
    # part, and a character that only it has would have no number.
    vocabulary = texts.Vocabulary.of(whole)
    return Raw(
        texts.every_window(vocabulary.encode(train), context),
        texts.consecutive_windows(vocabulary.encode(test), context),
        len(vocabulary),
        vocabulary.characters,
        None,
        f"{len(whole):,} characters of {file}",
    )
