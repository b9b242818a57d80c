"""Every backend supplies every kernel of the contract, with the contract's arguments; and whatever
a rule calls can be called on the tape."""

from __future__ import annotations

import ast
import inspect
import itertools
from pathlib import Path

import numpy as np
import pytest

import gpubackprop
from gpubackprop.autograd import REGISTRY
from gpubackprop.autograd.kernels import TapeKernels
from gpubackprop.backends import kernel_names
from gpubackprop.backends.array_backend import ArrayBackend
from gpubackprop.backends.base import Backend as Contract
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda import CUDABackend
from gpubackprop.backends.primitives import Primitives
from gpubackprop.errors import GradientError
from gpubackprop.testing import StandInBackend

PACKAGE = Path(gpubackprop.__file__).parent
ELEMENTWISE = dict(Primitives.__annotations__)
PRIMITIVES = {*ELEMENTWISE, *(n for n, f in vars(Primitives).items() if inspect.isfunction(f))}
# Of these only arrays have a use: they bring data in and out, or write over an array.
ARRAYS_ONLY = {"asarray", "to_numpy", "empty", "copyto"}


CLASSES = [NumPyBackend, CUDABackend, StandInBackend]


def parameters(function) -> list[inspect.Parameter]:
    """Parameters after `self`, without their annotations."""
    found = list(inspect.signature(function).parameters.values())[1:]
    return [p.replace(annotation=inspect.Parameter.empty) for p in found]


def incompatible(kernel: str, override) -> str | None:
    """What a caller that goes by the contract would stumble over, or None."""
    promised, given = parameters(getattr(Contract, kernel)), parameters(override)
    if given[: len(promised)] != promised:
        return f"{kernel}{tuple(map(str, given))} instead of {tuple(map(str, promised))}"
    for extra in given[len(promised) :]:
        if extra.default is extra.empty and extra.kind not in (
            extra.VAR_POSITIONAL,
            extra.VAR_KEYWORD,
        ):
            return f"{kernel} demands {extra.name}, which the contract does not know"
    return None


@pytest.mark.parametrize("cls", CLASSES)
def test_signatures_are_those_of_the_contract(cls):
    wrong = []
    for kernel in kernel_names():
        if kernel in ELEMENTWISE:
            continue
        member = getattr(cls, kernel)
        if isinstance(inspect.getattr_static(cls, kernel), staticmethod):
            continue
        problem = incompatible(kernel, inspect.unwrap(member))
        if problem:
            wrong.append(problem)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_primitive_is_supplied(cls):
    inherited = [
        n for n in PRIMITIVES - set(ELEMENTWISE) if getattr(cls, n) is vars(Primitives).get(n)
    ]
    assert not inherited, f"{cls.__name__} leaves to the contract, which has no code: {inherited}"


@pytest.mark.parametrize("backend", [NumPyBackend(), StandInBackend()], ids=lambda b: b.name)
@pytest.mark.parametrize("kernel", sorted(ELEMENTWISE))
def test_elementwise_kernels_have_their_arity_and_out(backend, kernel):
    n = 1 if ELEMENTWISE[kernel] == "Unary" else 2
    value = 1.5 if kernel == "arccosh" else 0.5
    arguments = [backend.asarray(np.full((3,), value)) for _ in range(n)]
    function = getattr(backend, kernel)
    result = function(*arguments)
    assert result.shape == (3,)
    out = backend.empty((3,), result.dtype)
    assert function(*arguments, out=out) is out
    np.testing.assert_array_equal(backend.to_numpy(out), backend.to_numpy(result))
    with pytest.raises((TypeError, ValueError)):
        function(*arguments, *arguments, *arguments)


def test_a_signature_that_differs_is_found():
    class Wrong(ArrayBackend):
        def take(self, x, axis, indices): ...

        def relu(self, x, extra): ...

        def cumsum(self, x, axis, faster=True): ...

    assert "take" in incompatible("take", Wrong.take)
    assert "demands extra" in incompatible("relu", Wrong.relu)
    assert incompatible("cumsum", Wrong.cumsum) is None


def attributes_of(name: str, source: str) -> set[str]:
    """Every ``name.attribute`` in the source."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == name
    }


def on_tape(kernel: str) -> bool:
    registered = kernel in REGISTRY and REGISTRY[kernel].is_kernel
    return registered or kernel in vars(TapeKernels)


def test_the_tape_has_every_primitive():
    missing = {n for n in PRIMITIVES if not on_tape(n)}
    assert missing == ARRAYS_ONLY


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "ops").rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix()
)
def test_rules_call_kernels_only(path):
    used = attributes_of("K", path.read_text())
    methods = {n for n, f in inspect.getmembers(Contract, inspect.isfunction)}
    assert used <= {*kernel_names(), *methods}, "not in the contract"
    assert not used & ARRAYS_ONLY, "not on the tape, so that the rule has no second derivative"


DEFINITIONS = ("composites", "products", "convolution", "images", "norms", "recurrent", "attention")


def test_definitions_call_what_the_tape_has():
    sources = [(PACKAGE / "backends" / f"{name}.py").read_text() for name in DEFINITIONS]
    used = set().union(*[attributes_of("self", source) for source in sources])
    assert len(used & PRIMITIVES) > 20
    assert {n for n in used & PRIMITIVES if not on_tape(n)} == set()


@pytest.mark.parametrize("cls", CLASSES)
def test_no_two_parts_of_a_backend_share_a_private_name(cls):
    owners: dict[str, list[str]] = {}
    for part in cls.__mro__:
        for name, member in vars(part).items():
            if name.startswith("_") and not name.startswith("__") and callable(member):
                owners.setdefault(name, []).append(part.__name__)
    assert {n: parts for n, parts in owners.items() if len(parts) > 1} == {}


def test_a_kernel_that_is_not_there_says_so():
    with pytest.raises(GradientError, match="sinc has no derivative rule"):
        TapeKernels().sinc  # noqa: B018


def clashes(cls: type) -> list[str]:
    """Private names that two parts of a class give to different things, neither knowing of the
    other."""
    owners: dict[str, list[type]] = {}
    for part in cls.__mro__:
        for name in vars(part):
            if name.startswith("_") and not name.startswith("__"):
                owners.setdefault(name, []).append(part)
    return [
        f"{name} of {a.__name__} and {b.__name__}"
        for name, parts in owners.items()
        for a, b in itertools.pairwise(parts)
        if not issubclass(a, b)
    ]


@pytest.mark.parametrize("cls", CLASSES)
def test_parts_of_a_backend_do_not_take_each_others_helpers(cls):
    assert not clashes(cls)


def test_a_helper_that_two_parts_have_is_found():
    one, two = (type(name, (), {"_helper": lambda self: 1}) for name in ("One", "Two"))
    assert clashes(type("Both", (one, two), {})) == ["_helper of One and Two"]
    assert not clashes(type("Further", (one,), {"_helper": lambda self: 2}))
