"""The package as a whole: what importing it costs and brings, what its source must not contain,
what its wheel holds."""

from __future__ import annotations

import ast
import json
import os
import re
import statistics
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import gpubackprop

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "gpubackprop"
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Libraries that `import gpubackprop` must leave alone; all but the first two are not installed with
# the core.
LAZY = (
    "safetensors",
    "tqdm",
    "cupy",
    "PIL",
    "ml_dtypes",
    "numba",
    "matplotlib",
    "pooch",
    "scipy",
    "sklearn",
    "torch",
)


def python(code: str, *flags: str) -> str:
    """What a fresh interpreter prints when it runs the code."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_adds_little_time_to_numpy():
    # Each interpreter loads NumPy and then measures the processor time of the package's own import:
    # a busy machine delays a process, but does not charge it for the waiting.
    code = """
import numpy, time
start = time.process_time()
import gpubackprop
print(time.process_time() - start)
"""
    python(code)  # compiles the bytecode
    assert statistics.median(float(python(code)) for _ in range(5)) < 0.15


def test_import_brings_no_optional_library():
    loaded = json.loads(
        python("import gpubackprop, json, sys; print(json.dumps(list(sys.modules)))")
    )
    heads = {name.partition(".")[0] for name in loaded}
    assert "numpy" in heads
    assert not heads & set(LAZY)


def test_command_starts_without_the_extras():
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {LAZY[2:]}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from gpubackprop.cli import main
for arguments in ["recipes"], ["devices"]:
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert not status, (arguments, status)
"""
    assert "digits-mlp" in python(code)


def test_version_has_one_source():
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    version = gpubackprop.__version__
    assert f"## [{version}]" in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")


def unsafe(source: str) -> list[str]:
    """Ways to run code that comes from data: pickle in any dress, eval, exec, yaml, shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                words = [alias.name.partition(".")[0] for alias in names]
            case ast.ImportFrom(module=str() as module):
                words = [module.partition(".")[0]]
            case ast.Call(func=ast.Name(id="eval" | "exec" | "compile" as word)):
                words = [word]
            case ast.keyword(arg="allow_pickle" | "shell" as word, value=ast.Constant(value=True)):
                words = [f"{word}=True"]
            case ast.keyword(arg="allow_pickle", value=value) if not isinstance(
                value, ast.Constant
            ):
                words = ["allow_pickle=?"]
            case _:
                continue
        unwanted = (
            "pickle",
            "cPickle",
            "cloudpickle",
            "dill",
            "joblib",
            "marshal",
            "shelve",
            "yaml",
        )
        found += [
            f"line {getattr(node, 'lineno', '?')}: {w}" for w in words if w in unwanted or "=" in w
        ]
        found += [f"line {node.lineno}: {w}()" for w in words if w in ("eval", "exec", "compile")]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_code_from_data(path):
    assert not unsafe(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_code_from_data_is_found(source):
    assert unsafe(source)


def test_plain_loading_is_no_code_from_data():
    assert not unsafe("np.load(f, allow_pickle=False)\nre.compile('x')\nmodel.eval()")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from this tree without a network."""
    pytest.importorskip("hatchling", reason="the test extra is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(folder / done.stdout.split()[-1])


def test_wheel_holds_every_file_of_the_package(wheel):
    wanted = {
        str(path.relative_to(PROJECT))
        for path in PACKAGE.rglob("*")
        if path.is_file()
        and not re.search(r"/(__pycache__|\..*)/", path.relative_to(PROJECT).as_posix())
    }
    assert {"gpubackprop/py.typed", "gpubackprop/data/files/digits.npz"} <= wanted
    assert {name for name in wheel.namelist() if name.startswith("gpubackprop/")} == wanted


def test_wheel_says_who_it_is(wheel):
    stem = f"gpubackprop-{gpubackprop.__version__}.dist-info"
    metadata = wheel.read(f"{stem}/METADATA").decode()
    assert f"\nVersion: {gpubackprop.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "gpubackprop = gpubackprop.cli:main" in wheel.read(f"{stem}/entry_points.txt").decode()
    assert "Apache License" in wheel.read(f"{stem}/licenses/LICENSE").decode()


def test_the_core_needs_three_libraries():
    names = [line.partition(">")[0] for line in PYPROJECT["project"]["dependencies"]]
    assert names == ["numpy", "safetensors", "tqdm"]
