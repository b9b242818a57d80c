"""Every kernel, for every element type, compiled by NVRTC for every supported architecture: no GPU
and no driver needed.

Needs the wheels cupy-cuda13x (for its binding of NVRTC), nvidia-cuda-nvrtc and nvidia-cuda-runtime
(for the headers).
"""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest

from gpubackprop.backends.chains.chain import Operand, Step, traced
from gpubackprop.backends.chains.layouts import FLAT
from gpubackprop.backends.cuda import chain_source, chains, sources
from gpubackprop.backends.cuda.chain_source import ChainSource, Number, Written
from gpubackprop.backends.live import marked
from tests.backends.support.chain_cases import ONE, TWO, numbers_and_kinds

# sm_75 is the oldest that NVRTC 13 compiles for, sm_120 the newest GPU of today.
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
WHOLE = (75, 90)


def _nvrtc():
    """CuPy's binding and the folder of the CUDA headers, or the reason why there is none."""
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
        nvrtc = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
    except ImportError as error:
        return None, None, f"CuPy is not installed ({error})"
    try:
        nvrtc.getVersion()
    except (
        Exception
    ) as error:  # the binding loads the library at its first call, and fails in its own ways
        return None, None, f"NVRTC is not installed ({type(error).__name__})"
    headers = pathfinder.find_nvidia_header_directory("cudart")
    if headers is None:
        return None, None, "the CUDA headers are not installed"
    return nvrtc, headers, ""


NVRTC, HEADERS, REASON = _nvrtc()
needs_nvrtc = pytest.mark.skipif(NVRTC is None, reason=REASON or "NVRTC is there")


def signature_of(expression: str) -> sources.Signature:
    """The kernel that an expression names."""
    return sources.signatures()[expression.partition("<")[0]]


def chosen(expressions: tuple[str, ...], *endings: str) -> tuple[str, ...]:
    """Those of the kernels that share rows in one of these ways, and all others."""
    return tuple(
        e for e in expressions if "HELD" not in signature_of(e).parameters or e.endswith(endings)
    )


def options_for(architecture: str) -> tuple[str, ...]:
    """What CuPy compiles with; all but our own are what it adds."""
    return (
        *sources.OPTIONS,
        f"-arch={architecture}",
        "-ftz=true",
        "--device-as-default-execution-space",
        f"-I{HEADERS}",
    )


def compile_file(file: str, element: str, architecture: int) -> dict[str, str]:
    """Compile a file as CuPy does; return the binary's name of every instantiation."""
    expressions = sources.instantiations(file, element)
    # One way to share rows for each architecture: the code is the same. All of them for the newest.
    if architecture != ARCHITECTURES[-1] or element in ("double", "__half"):
        expressions = chosen(
            expressions, ", 8, 1>" if architecture == ARCHITECTURES[0] else ", 0, 0>"
        )
    # Heads of one width likewise, but for the two architectures between which the code differs.
    if file == "attention" and architecture not in WHOLE:
        expressions = tuple(e for e in expressions if ", 64, " in e)
    what = f"{file}.cu for {element}"
    return compile_code(sources.source(file, element), expressions, architecture, what)


def compile_code(
    code: str, expressions: tuple[str, ...], architecture: int, what: str
) -> dict[str, str]:
    """Compile kernels as CuPy does; return the binary's name of each."""
    program = NVRTC.createProgram(code, "kernels.cu", (), ())
    try:
        for expression in expressions:
            NVRTC.addNameExpression(program, expression)
        try:
            NVRTC.compileProgram(program, options_for(f"sm_{architecture}"))
        except NVRTC.NVRTCError:
            pytest.fail(f"{what}, sm_{architecture}:\n{NVRTC.getProgramLog(program)}")
        log = NVRTC.getProgramLog(program)
        assert "warning" not in log, log
        binary = NVRTC.getCUBIN(program)
        assert binary[:4] == b"\x7fELF"
        names = {e: NVRTC.getLoweredName(program, e) for e in expressions}
    finally:
        NVRTC.destroyProgram(program)
    for expression, name in names.items():
        name = name if isinstance(name, bytes) else name.encode()
        assert name in binary, f"{expression} is not in the binary"
    return names


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("file", sources.FILES)
def test_every_kernel_compiles(file, architecture):
    for element in sources.FLOATS.values():
        compile_file(file, element, architecture)


@needs_nvrtc
@pytest.mark.parametrize("file", sources.FILES)
def test_memory_is_known_to_be_global_or_shared(file):
    """An address of which the compiler does not know whose it is costs more to use, and an array
    of a thread's own that is not in registers lies in memory."""
    expressions = chosen(sources.instantiations(file, "float"), ", 0, 0>", ", 8, 1>")
    program = NVRTC.createProgram(sources.source(file), "kernels.cu", (), ())
    for expression in expressions:
        NVRTC.addNameExpression(program, expression)
    NVRTC.compileProgram(program, options_for("compute_80"))
    text = NVRTC.getPTX(program)
    text = text.decode() if isinstance(text, bytes) else text
    moves = re.findall(r"\b(?:ld|st)\.(\w+)", text)
    assert {"param", "global"} <= set(moves) <= {"param", "global", "shared", "const"}
    NVRTC.destroyProgram(program)


# Kernels that are written at run time: every operation in every dtype, every way to add up.
X, Y, N, B = (Operand("input", k) for k in range(4))


def written(dtype: np.dtype, hows: tuple[str, ...], live: bool = False) -> ChainSource:
    """A chain with some results reduced, of every elementwise operation where none is."""
    steps = [Step("gelu_backward", (X, Y)), Step("where", (B, X, 0.0)), Step("less", (N, 3))]
    if not hows:
        steps += [Step(kernel, (X,)) for kernel in ONE] + [Step(kernel, (X, Y)) for kernel in TWO]
        places = {0: X, 1: N, 2: B, 3: Y}
        for kernel, *args in numbers_and_kinds(dtype):
            given = (places[a.place] if isinstance(a, Operand) else a for a in args)
            steps.append(Step(kernel, tuple(given)))
    rate = Step("multiply", (X, marked(0.5, 0) if live else 0.5))
    steps += [rate, Step("add", (N, marked(3, 1) if live else 3))]
    dtypes = [dtype, dtype, np.dtype(np.int64), np.dtype(bool)]
    nodes, constants = traced(steps, dtypes, chains.floats())
    outputs = [Written(node, FLAT, "sum", node.dtype) for node in nodes]
    for how in hows:
        outputs += [Written(nodes[0], how, op, dtype) for op in ("sum", "max")]
    if "all" in hows:
        outputs.append(Written(nodes[-1], "all", "sum", np.dtype(np.int64)))
    scheme = next((how for how in ("columns", "rows") if how in hows), FLAT)
    kinds = ("flat", "columns", "rows", "scalar") if scheme != FLAT else (FLAT,) * 4
    numbers = tuple(Number(d, isinstance(v, float), hasattr(v, "live")) for v, d in constants)
    inputs = tuple(zip(kinds, dtypes, strict=True))
    return ChainSource(scheme, inputs, tuple(outputs), numbers, 2, scheme == FLAT)


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("name", sources.FLOATS)
def test_chains_compile(name, architecture):
    dtype = next((d for d in chains.floats() if d.name == name), None)
    if dtype is None:
        pytest.skip("ml_dtypes is not installed")
    ends = architecture in (ARCHITECTURES[0], ARCHITECTURES[-1])
    every = [("all",), ("rows", "all"), ("columns", "all")]
    for hows in [(), *every] if ends else every:  # all operations once for the oldest and newest
        source = written(dtype, hows, live=hows == ())
        widths = {"rows": (32, 256), "columns": (1, 8, 32)}.get(source.scheme, ())
        expressions = tuple(f"chain<{w}>" for w in widths) or ("chain",)
        if chain_source.finished(source):
            expressions += ("finish",)
        code, what = chain_source.code_of(source), f"a chain of {name} with {hows or 'no sums'}"
        compile_code(code, expressions, architecture, what)


@needs_nvrtc
def test_columns_of_every_type_fit_in_shared_memory():
    half, wide = np.dtype(np.float16), np.dtype(np.float64)
    steps = [Step("multiply", (X, X)), Step("multiply", (X, Y))]
    nodes, constants = traced(steps, [half, wide], chains.floats())
    outputs = [
        Written(node, "columns", op, dtype)
        for node, dtype in zip(nodes, (half, wide), strict=True)
        for op in ("sum", "max")
    ]
    outputs.append(Written(nodes[0], "all", "sum", half))
    numbers = tuple(Number(d, isinstance(v, float), False) for v, d in constants)
    inputs = (("flat", half), ("rows", wide))
    source = ChainSource("columns", inputs, tuple(outputs), numbers, 8, False)
    compile_code(chain_source.code_of(source), ("chain<8>", "finish"), 80, "sums of every type")


def test_chains_have_no_atomics_and_wide_indices():
    for hows in ((), ("all",), ("rows", "all"), ("columns", "all")):
        text = chain_source.text_of(written(np.dtype(np.float32), hows))
        assert "atomic" not in text
        for kernel in sources.declared(text).values():
            assert {t for t in kernel.arguments if not t.endswith("*")} <= {"i64", "int", "double"}
            assert kernel.arguments.count("int") == (kernel.name == "chain")  # a yes or no
        for loop in re.findall(r"for \((.*?)\)", text):
            assert loop.startswith("i64") or loop.startswith("int k = 0; k < L"), loop


# The list of kernels, which needs no compiler.


def test_every_kernel_of_every_file_is_known():
    for file in sources.FILES:
        text = sources.source(file)
        declared = set(
            re.findall(r"__global__\s+void\s+(?:__launch_bounds__\(.*?\)\s+)?(\w+)\s*\(", text)
        )
        known = {s.name for s in sources.signatures().values() if s.file == file}
        assert known == declared and known


def test_files_on_disk_are_the_files_that_are_compiled():
    folder = sources._FOLDER
    assert {p.stem for p in folder.glob("*.cu")} == set(sources.FILES)
    assert {p.name for p in folder.glob("*.cuh")} == {
        "common.cuh",
        "rows.cuh",
        "uneven.cuh",
        "tiles.cuh",
        "chain.cuh",
    }


def test_functions_of_the_activations_are_all_listed():
    text = sources.source("activations")
    for body in re.findall(r"struct (\w+) \{(.*?)\n\};", text, flags=re.DOTALL):
        name, members = body
        if name in ("Plus", "Larger"):
            continue
        expressions = sources.instantiations("activations", "float")
        assert ("W value(" in members) == (f"activation<float, {name}>" in expressions)
        assert ("W slope(" in members) == (f"activation_backward<float, {name}>" in expressions)


def test_no_atomics_and_no_includes():
    for file in sources.FILES:
        text = sources.source(file)
        assert "atomic" not in re.sub(r"//.*", "", text)
        assert set(re.findall(r"#include <(.*?)>", text)) == {"cuda_fp16.h", "cuda_bf16.h"}


@pytest.mark.parametrize("element", sources.FLOATS.values())
def test_instantiations_are_distinct_and_typed(element):
    everything = [e for f in sources.FILES for e in sources.instantiations(f, element)]
    assert len(everything) == len(set(everything)) > 40
    for expression in everything:
        typed = "T" in sources.signatures()[expression.partition("<")[0]].parameters
        assert bool(re.search(rf"<{element}\b", expression)) == typed
