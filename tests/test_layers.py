"""The shape of the package: who may import whom, who may know which device runs, how long a file
is.

Everything is read from the source with ``ast``, so an import inside a function counts as one at the
top does.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gpubackprop"

LAYERS = {
    "backends": 1,
    "autograd": 2,
    "ops": 3,
    "nn": 4,
    "optim": 4,
    "compile": 5,
    "data": 6,
    "training": 6,
    "inspect": 7,
    "bench": 7,
    "interop": 7,
    "recipes": 7,
    "cli": 7,
}
ANYWHERE = re.compile(
    r"errors|suggest|version|typing\w*"
)  # modules that import nothing of the package
FACES = {"", "testing", "__main__"}  # what a user imports; they sit on top of everything
TOP = 8

LONGEST, LONG = 450, 400

# What a rule may take from NumPy: names of types and of constants, no arithmetic.
TYPE_NAMES = re.compile(
    r"(u?int|float|complex)\d+|bool_?|dtype|ndarray|generic|integer|floating|inexact|number"
    r"|issubdtype|result_type|promote_types|finfo|iinfo|newaxis|pi|e|inf|nan"
)
# What the chain rule may take beside those: making an array out of a user's data, sizes of shapes.
CONSTRUCTION = re.compile(r"array|asarray|array2string|prod|random|shape|ndim")
# Other libraries at the same tasks, for the benchmark.
PEERS = "bench.peers"
# A measuring instrument: it compares what the chain rule gives with differences of values.
INSTRUMENTS = {"autograd.gradcheck"}


def module_name(path: Path) -> str:
    """Dotted name below the package; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".cu", ".cuh")]
MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> int:
    """The layer of a module, counted from the ground; 0 for what may be imported from anywhere."""
    head = module.partition(".")[0]
    if head in FACES:
        return TOP
    return 0 if ANYWHERE.fullmatch(head) else LAYERS[head]


def imports(module: str, source: str, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Every module of this package that the source imports, with the line."""

    def target(base: str, name: str) -> str:
        inner = f"{base}.{name}".strip(".")
        return inner if inner in known else base

    is_package = module in known and known[module].name == "__init__.py"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["gpubackprop", *module.split(".")] if module else ["gpubackprop"]
                up = parts[: len(parts) - node.level + is_package]
                base = ".".join([*up, *filter(None, [base])])
            if base.split(".")[0] != "gpubackprop":
                continue
            inside = base.removeprefix("gpubackprop").lstrip(".")
            yield from ((target(inside, alias.name), node.lineno) for alias in node.names)
            continue
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
        else:
            continue
        for name in names:
            if name == "gpubackprop" or str(name).startswith("gpubackprop."):
                yield name.removeprefix("gpubackprop").lstrip("."), node.lineno


def called(node: ast.Call) -> str:
    """The last part of the name of what is called."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def upward(module: str, source: str, known: dict[str, Path] = MODULES) -> list[str]:
    """Imports that do not go downward (or sideways, inside a layer)."""
    own = layer(module)
    found = []
    for target, line in imports(module, source, known):
        if layer(target) > own or (own == 0 and target):
            found.append(
                f"line {line}: layer {own} imports gpubackprop.{target} of layer {layer(target)}"
            )
    return found


LIBRARY = re.compile(r"cupy(x|_backends)?|torch|numba")
DEVICE_NAME = re.compile(r"(.*_)?(gpu|cuda|cupy)(_.*|s)?", re.IGNORECASE)


def device_knowledge(source: str) -> list[str]:
    """Places that name an array library of a GPU, or that choose by the kind of device."""
    found = []
    for node in ast.walk(ast.parse(source)):
        words: list[str] = []
        match node:
            case ast.Import():
                words = [alias.name.partition(".")[0] for alias in node.names]
            case ast.ImportFrom():
                words = [(node.module or "").partition(".")[0]]
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word):
                words = [word]
            case ast.Constant(value=str() as word):
                words = [word.partition(".")[0]]
        found += [f"line {node.lineno}: names {w}" for w in words if LIBRARY.fullmatch(w)]

        match node:
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                parts = list(ast.walk(test))
            case ast.Compare() | ast.match_case():
                parts = list(ast.walk(node if isinstance(node, ast.Compare) else node.pattern))
            case ast.Call() if called(node) in ("startswith", "match", "fullmatch"):
                parts = list(node.args)
            case _:
                continue
        for part in parts:
            word = getattr(part, "id", getattr(part, "attr", getattr(part, "value", None)))
            if isinstance(word, str) and DEVICE_NAME.fullmatch(word.partition(":")[0]):
                found.append(f"line {part.lineno}: chooses by the device ({word})")
    return sorted(set(found))


def numpy_in_rules(source: str) -> list[str]:
    """NumPy arithmetic inside a function that is handed the kernels K."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.Lambda) and "K" in [
            a.arg for a in node.args.args
        ]:
            body = node.body if isinstance(node.body, list) else [node.body]
            found += [line for part in body for line in numpy_uses(part, TYPE_NAMES)]
    return sorted(set(found))


def numpy_uses(tree: ast.AST, *allowed: re.Pattern[str]) -> list[str]:
    """Attributes of ``np`` or ``numpy`` under the tree that are not allowed."""
    return [
        f"line {node.lineno}: uses np.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("np", "numpy")
        and not any(pattern.fullmatch(node.attr) for pattern in allowed)
    ]


def source_of(module: str) -> str:
    return MODULES[module].read_text(encoding="utf-8")


def under(*packages: str) -> list[str]:
    return [m for m in MODULES if m.partition(".")[0] in packages]


def test_every_package_stands_in_the_table_of_layers():
    heads = {m.partition(".")[0] for m in MODULES} - FACES
    assert {h for h in heads if not ANYWHERE.fullmatch(h)} <= set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward(module):
    assert not upward(module, source_of(module))


def test_packages_of_one_layer_do_not_import_each_other_in_a_ring():
    edges = {
        (module.partition(".")[0], target.partition(".")[0])
        for module in MODULES
        if layer(module) != TOP
        for target, _ in imports(module, source_of(module), MODULES)
    }
    reach = {(a, b) for a, b in edges if a != b and b and layer(a) == layer(b)}
    while more := {(a, d) for a, b in reach for c, d in reach if b == c} - reach:
        reach |= more
    assert not [pair for pair in reach if pair[0] == pair[1]]


@pytest.mark.parametrize(
    "module",
    [m for m in MODULES if m not in under("backends", "interop") and not m.startswith(PEERS)],
)
def test_only_the_backends_know_which_device_runs(module):
    assert not device_knowledge(source_of(module))


@pytest.mark.parametrize("module", under("ops", "nn", "optim"))
def test_rules_speak_only_in_kernels(module):
    assert not numpy_in_rules(source_of(module))


@pytest.mark.parametrize("module", [m for m in under("autograd") if m not in INSTRUMENTS])
def test_the_chain_rule_has_no_arithmetic_of_its_own(module):
    assert not numpy_uses(ast.parse(source_of(module)), TYPE_NAMES, CONSTRUCTION)


def test_every_rule_calls_its_kernels_k():
    # So that the test above sees every rule.
    from gpubackprop.autograd import REGISTRY
    from gpubackprop.ops import define  # noqa: F401 - importing the package fills the registry

    assert REGISTRY
    for op in REGISTRY.values():
        for rule in filter(None, (op.forward, op.backward)):
            assert next(iter(inspect.signature(rule).parameters)) == "K", (op.name, rule)


@pytest.mark.parametrize("name", sorted(str(p.relative_to(PACKAGE)) for p in FILES))
def test_files_are_short(name):
    lines = len((PACKAGE / name).read_text(encoding="utf-8").splitlines())
    if lines > LONG:
        warnings.warn(f"{name} has {lines} lines, aim at {LONG}", stacklevel=1)
    assert lines <= LONGEST, f"{name} has {lines} lines; split it: a file does one job"


# That the checks find what they look for.
KNOWN = {m: PACKAGE / "x.py" for m in ("backends.base", "autograd.tape", "nn.arena", "errors")}
KNOWN |= {m: PACKAGE / m / "__init__.py" for m in ("", "backends", "autograd", "nn", "cli")}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("backends.base", "import gpubackprop.autograd"),
        ("backends.base", "from gpubackprop import autograd"),
        ("backends.base", "from gpubackprop.autograd.tape import Node"),
        ("backends.base", "def f():\n    from gpubackprop.nn import arena"),
        ("backends.base", "if TYPE_CHECKING:\n    from gpubackprop.nn import arena"),
        ("backends.base", "from ..nn import arena"),
        ("backends", "from ..nn import arena"),
        ("backends.base", "importlib.import_module('gpubackprop.cli')"),
        ("autograd.tape", "from gpubackprop import Tensor"),
        ("autograd.tape", "import gpubackprop as gb"),
        ("errors", "from gpubackprop.backends import base"),
    ],
)
def test_an_upward_import_is_found(module, source):
    assert len(upward(module, source, KNOWN)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "nn.arena",
            "from gpubackprop.autograd import tape\nfrom gpubackprop.backends import Backend",
        ),
        ("nn.arena", "from ..backends.base import Backend\nfrom . import arena\nimport numpy"),
        ("backends", "from .base import Backend"),
        (
            "autograd.tape",
            "from gpubackprop.errors import GradientError\nfrom gpubackprop import errors",
        ),
        ("", "from gpubackprop.cli import main"),
    ],
)
def test_a_downward_import_is_not_found(module, source):
    assert not upward(module, source, KNOWN)


@pytest.mark.parametrize(
    "source",
    [
        "import cupy",
        "import cupy.cuda as c",
        "from cupyx import jit",
        "importlib.import_module('cupy')",
        "def f(cupy): ...",
        "if device == 'cuda': ...",
        "if device.startswith('cuda'): ...",
        "if gpu: ...",
        "x = a if backend.is_gpu else b",
        "fast = device != 'cpu' and device == 'cuda:0'",
        "match device:\n    case 'gpu': ...",
    ],
)
def test_knowledge_of_a_device_is_found(source):
    assert device_knowledge(source)


@pytest.mark.parametrize(
    "source",
    [
        '"""CuPy computes it on a GPU when cuda is asked for."""',
        "x = tensor(1.0, device='cuda')",
        "if device != 'cpu': ...",
        "parser.add_argument('--device', help='auto, cpu, cuda or cuda:N')",
    ],
)
def test_naming_a_device_is_no_knowledge(source):
    assert not device_knowledge(source)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def forward(K, x):\n    return np.exp(x)", 1),
        ("f = elementwise('x', lambda K, dy: numpy.multiply(dy, 2))", 1),
        (
            "def backward(K, dy):\n    def inner(y):\n        return np.sum(y)\n    return inner",
            1,
        ),
        ("def forward(K, x):\n    return K.astype(x, np.float32)", 0),
        ("def samples(rng):\n    return np.exp(rng.standard_normal(3))", 0),
    ],
)
def test_arithmetic_in_a_rule_is_found(source, found):
    assert len(numpy_in_rules(source)) == found
