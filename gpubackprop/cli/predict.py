"""``gpubackprop predict``: what a trained network says about samples."""

from __future__ import annotations

import argparse
import csv
import io
import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gpubackprop import suggest
from gpubackprop.autograd import Tensor, no_grad
from gpubackprop.backends import get_backend
from gpubackprop.backends.device import choose
from gpubackprop.cli.parser import Parser, add_data_dir, add_device, add_json, note, whole_number
from gpubackprop.cli.runs import Run, fit_inputs, load_its_data, load_run
from gpubackprop.data import (
    DATASETS,
    ArrayDataset,
    DataLoader,
    Table,
    read_csv,
    read_idx,
    read_npz,
)
from gpubackprop.data.pictures import ENDINGS, Pictures, pictures_in
from gpubackprop.errors import ConfigError, DataError
from gpubackprop.nn import functional as F  # noqa: N812 - the field's abbreviation
from gpubackprop.recipes.costs import LOSSES
from gpubackprop.training import outputs_of
from gpubackprop.training.files import write_atomic

FORMATS = ("csv", "json", "npz")
NPZ_NAMES = ("x", "X", "x_test", "inputs", "images", "features")


def add_arguments(parser: Parser) -> None:
    """The options of the subcommand."""
    parser.add_argument("run", metavar="RUN", help="the folder that train wrote")
    parser.add_argument(
        "data",
        nargs="*",
        metavar="DATA",
        help="CSV, NPZ or IDX file of samples, pictures, or a folder of pictures (default: the "
        "held-out part of the recipe's data)",
    )
    parser.add_argument("--array", metavar="NAME", help="the array of samples in an NPZ file")
    parser.add_argument("--target", metavar="COLUMN", help="a column of a CSV file to leave out")
    parser.add_argument(
        "--out", metavar="FILE", help="write there; the ending .csv, .json or .npz is the format"
    )
    parser.add_argument("--format", choices=FORMATS, help="default: that of --out, else csv")
    add_device(parser)
    add_data_dir(parser)
    parser.add_argument("--batch-size", type=whole_number, metavar="N", help="samples at a time")
    add_json(parser, "the same as --format json")


def run(options: argparse.Namespace) -> int:
    """Predict, and write."""
    form = _format(options)
    backend = get_backend(choose(options.device).device)
    trained = load_run(options.run, backend)
    if DATASETS[trained.recipe.data.name].tokens:
        raise ConfigError(
            f"{options.run} holds a language model, which writes text: run gpubackprop generate"
        )
    inputs, files = _inputs(options, trained)
    if not len(inputs):
        raise ConfigError("there is no sample to predict")
    size = options.batch_size or trained.recipe.train.eval_batch_size
    outputs = outputs_of(trained.model, DataLoader(ArrayDataset(inputs), size).batches(0), backend)
    found = _predictions(trained, outputs)
    if files is not None:
        found["files"] = np.array(files)
    data = _WRITERS[form](trained, found)
    if options.out is None:
        sys.stdout.write(data.decode())
    else:
        write_atomic(Path(options.out), data)
        note(f"{len(inputs):,} predictions are in {options.out}")
    return 0


def _format(options: argparse.Namespace) -> str:
    ending = Path(options.out).suffix.lstrip(".").lower() if options.out else ""
    form = options.format or ("json" if options.json else ending or "csv")
    if form not in FORMATS:
        raise ConfigError(suggest.unknown("format of --out", form, FORMATS))
    if options.json and form != "json":
        raise ConfigError(f"--json and --format {form} do not go together")
    if form == "npz" and options.out is None:
        raise ConfigError("--format npz needs --out FILE")
    if options.out and not Path(options.out).resolve().parent.is_dir():
        raise ConfigError(f"--out {options.out}: its folder does not exist")
    return str(form)


def _inputs(
    options: argparse.Namespace, trained: Run
) -> tuple[np.ndarray[Any, Any], list[str] | None]:
    """The samples as the network takes them; and of pictures the name of each one's file."""
    if not options.data:
        return load_its_data(trained, options.data_dir).test.array("input"), None
    paths = [Path(given) for given in options.data]
    path = paths[0]
    if path.is_dir() or path.suffix.lower() in ENDINGS or len(paths) > 1:
        pictures = _pictures(paths, trained)
        files = [p.name if path.is_dir() else str(p) for p in pictures.paths]
        # A name may hold bytes that are no UTF-8, which no file of predictions could.
        names = [name.encode(errors="replace").decode() for name in files]
        return fit_inputs(trained, pictures[:], str(path)), names
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".npz"):
        arrays = read_npz(path)
        chosen = options.array or next((n for n in NPZ_NAMES if n in arrays), None)
        if chosen is None and len(arrays) == 1:
            (chosen,) = arrays
        if chosen is None or chosen not in arrays:
            words = "give --array" if chosen is None else suggest.unknown("array", chosen, arrays)
            raise ConfigError(f"{path}: {words}; it holds {', '.join(arrays)}")
        raw = arrays[chosen]
    elif name.endswith((".csv", ".tsv", ".txt")):
        kept = trained.recipe.data.options if trained.recipe.data.name == "csv" else {}
        how = {k: kept[k] for k in ("delimiter", "header", "encoding") if k in kept}
        if name.endswith(".tsv"):
            how.setdefault("delimiter", "\t")
        column = _column(options.target)
        table = read_csv(path, target=column, task=None, dtype=np.float64, **how)
        _check_columns(path, table, trained, kept.get("target", -1), column)
        raw = table.features
    elif "idx" in name or name.endswith("ubyte"):
        raw = read_idx(path)
    else:
        raise ConfigError(
            f"{path}: the ending tells the format; allowed: .csv, .tsv, .txt, .npz, IDX files such "
            "as t10k-images-idx3-ubyte, each but .npz also with .gz, and pictures such as .png"
        )
    return fit_inputs(trained, raw, str(path)), None


def _pictures(paths: list[Path], trained: Run) -> Pictures:
    """Pictures, or those of a folder in the order of their names, in the size of the network."""
    path = paths[0]
    if len(paths) > 1:
        other = next((p for p in paths if p.is_dir() or p.suffix.lower() not in ENDINGS), None)
        if other is not None:
            raise ConfigError(
                f"only of pictures several may be named, and {other} is none; predict one folder "
                "or file of samples at a time"
            )
    shape = trained.input_shape
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] not in (1, 3):
        raise ConfigError(
            f"{path}: the network takes inputs of shape {list(shape)}, which are no square pictures"
        )
    paths = paths if not path.is_dir() else pictures_in(path)
    if not paths:
        raise DataError(f"{path} holds no picture (a file that ends in {', '.join(ENDINGS)})")
    return Pictures(paths, shape[0], shape[2] == 1)


def _check_columns(path: Path, table: Table, trained: Run, target: Any, given: Any) -> None:
    """A table that is not laid out as that of the training gives numbers that mean nothing. The
    target is often still there when it is predicted from."""
    names, wanted = table.feature_names, trained.columns
    if given is None and trained.input_shape == (len(names) - 1,):
        column = target if isinstance(target, int) or target in names else -1
        raise ConfigError(
            f"{path} has {len(names)} columns, but the network in {trained.path} takes "
            f"{len(names) - 1} numbers; to leave the target out: "
            f"--target {shlex.quote(str(column))}"
        )
    if table.header and wanted is not None and len(names) == len(wanted) and names != wanted:
        mine, other = next((a, b) for a, b in zip(names, wanted, strict=True) if a != b)
        raise ConfigError(
            f"{path} has the column {mine!r} where the network in {trained.path} takes {other!r}; "
            f"it takes {', '.join(wanted)}, in this order"
        )


def _column(given: str | None) -> str | int | None:
    if given is None:
        return None
    return int(given) if given.removeprefix("-").isdigit() and given.isascii() else given


def _predictions(trained: Run, outputs: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Scores of each sample, and the class where there are classes."""
    kind = LOSSES[trained.recipe.loss.name].scores
    x = Tensor(outputs, get_backend("cpu"))
    with no_grad():
        if kind == "softmax":
            x = F.softmax(x, -1)
        elif kind == "sigmoid":
            x = F.sigmoid(x)
        elif kind == "exp":
            x = x.exp()
    found = {"outputs" if trained.classes is None else "scores": x.numpy()}
    if trained.classes is not None:
        found["class"] = outputs.argmax(axis=1)
    return found


def _csv(trained: Run, found: dict[str, np.ndarray[Any, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scores = found["outputs" if trained.classes is None else "scores"]
    columns: list[tuple[str, Iterable[Any]]] = [("sample", range(len(scores)))]
    if "files" in found:
        columns.append(("file", found["files"].tolist()))
    if trained.classes is None:
        heads = [f"output {k}" for k in range(scores.shape[1])]
    else:
        names = _names(trained)
        classes = found["class"].tolist()
        columns += [("class", classes), ("name", [names[k] for k in classes])]
        heads = [f"score {name}" for name in names]
    columns += zip(heads, scores.T.tolist(), strict=True)
    writer.writerow([head for head, _ in columns])
    writer.writerows(zip(*[values for _, values in columns], strict=True))
    return text.getvalue().encode()


def _json(trained: Run, found: dict[str, np.ndarray[Any, Any]]) -> bytes:
    if trained.classes is None:
        predictions: list[dict[str, Any]] = [{"outputs": row} for row in _plain(found["outputs"])]
    else:
        names = _names(trained)
        rows = zip(found["class"].tolist(), _plain(found["scores"]), strict=True)
        predictions = [{"class": k, "name": names[k], "scores": scores} for k, scores in rows]
    if "files" in found:
        files = found["files"].tolist()
        predictions = [{"file": f} | p for f, p in zip(files, predictions, strict=True)]
    values = {"run": str(trained.path), "recipe": trained.recipe.name, "predictions": predictions}
    return (json.dumps(values, allow_nan=False) + "\n").encode()


def _plain(array: np.ndarray[Any, Any]) -> list[list[float | None]]:
    """Nested lists for JSON, which has no NaN and no infinity."""
    finite = np.isfinite(array)
    return [
        [v if ok else None for v, ok in zip(row, sound, strict=True)]
        for row, sound in zip(array.tolist(), finite.tolist(), strict=True)
    ]


def _npz(trained: Run, found: dict[str, np.ndarray[Any, Any]]) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(found)
    if trained.classes is not None:
        arrays["names"] = np.array(_names(trained))
    save: Any = np.savez  # its stub takes an array for one of its own keywords
    save(buffer, **arrays)
    return buffer.getvalue()


def _names(trained: Run) -> tuple[str, ...]:
    assert trained.classes is not None
    return trained.class_names or tuple(str(k) for k in range(trained.classes))


_WRITERS = {"csv": _csv, "json": _json, "npz": _npz}
