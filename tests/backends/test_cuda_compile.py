"""Every kernel, for every element type, compiled by NVRTC for every supported architecture: no GPU
and no driver needed.

Needs the wheels cupy-cuda13x (for its binding of NVRTC), nvidia-cuda-nvrtc and nvidia-cuda-runtime
(for the headers).
"""

from __future__ import annotations

import importlib
import re

import pytest

from gpubackprop.backends.cuda import sources

# sm_75 is the oldest that NVRTC 13 compiles for, sm_120 the newest GPU of today.
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


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


def compile_file(file: str, element: str, architecture: int) -> dict[str, str]:
    """Compile as CuPy does; return the binary's name of every instantiation."""
    expressions = sources.instantiations(file, element)
    program = NVRTC.createProgram(sources.source(file, element), f"{file}.cu", (), ())
    try:
        for expression in expressions:
            NVRTC.addNameExpression(program, expression)
        # All but our own are what CuPy adds.
        options = (
            *sources.OPTIONS,
            f"-arch=sm_{architecture}",
            "-ftz=true",
            "--device-as-default-execution-space",
            f"-I{HEADERS}",
        )
        try:
            NVRTC.compileProgram(program, options)
        except NVRTC.NVRTCError:
            pytest.fail(
                f"{file}.cu for {element}, sm_{architecture}:\n{NVRTC.getProgramLog(program)}"
            )
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
def test_compiles_for_floats(file, architecture):
    compile_file(file, "float", architecture)
    if architecture in (ARCHITECTURES[0], ARCHITECTURES[-1]):
        compile_file(file, "double", architecture)


@needs_nvrtc
@pytest.mark.parametrize("element", ["__half", "__nv_bfloat16"])
@pytest.mark.parametrize("file", [f for f in sources.FILES if f != "optim"])
def test_compiles_for_half_precision(file, element):
    for architecture in (75, 90):
        compile_file(file, element, architecture)


# The list of kernels, which needs no compiler.


def test_every_kernel_of_every_file_is_known():
    for file in sources.FILES:
        text = sources.source(file)
        declared = set(re.findall(r"__global__\s+void\s+(\w+)\s*\(", text))
        known = {s.name for s in sources.signatures().values() if s.file == file}
        assert known == declared and known


def test_files_on_disk_are_the_files_that_are_compiled():
    folder = sources._FOLDER
    assert {p.stem for p in folder.glob("*.cu")} == set(sources.FILES)
    assert {p.name for p in folder.glob("*.cuh")} == {"common.cuh", "chain.cuh"}


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
