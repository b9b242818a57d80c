"""Every way in which a GPU can be unusable, acted out without one.

Broken CuPy installations are folders on PYTHONPATH; broken drivers are ``support/stub_libcuda.c``,
built as libcuda.so.1. Each case runs in a process of its own, because a driver is loaded once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpubackprop.backends import detect

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).parent / "support" / "stub_libcuda.c"
REPORT = """
import json
from gpubackprop.backends import detect
problem = detect.gpu_problem()
found = len(detect.devices())
print(json.dumps([problem.code, problem.cause, problem.mend, found] if problem else None))
"""

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the stand-in driver is for Linux")
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
needs_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None, reason="CuPy is not installed"
)


def ask(*folders: Path, **environment: str) -> tuple[str, str, str]:
    """What detect says in a fresh process with `folders` before everything else that is
    installed."""
    path = os.pathsep.join([*map(str, folders), str(ROOT)])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_", "STUB_"))}
    run = subprocess.run(
        [sys.executable, "-c", REPORT],
        env=kept | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer is not None, "a usable GPU was reported"
    code, cause, mend, count = answer
    assert count == 0
    assert "\n" not in cause + mend and cause and mend
    return code, cause, mend


def distribution(folder: Path, name: str, version: str = "14.2.0") -> None:
    """A wheel's metadata, as pip leaves it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def package(folder: Path, source: str) -> None:
    """A package `cupy` whose import runs `source`."""
    (folder / "cupy").mkdir(parents=True)
    (folder / "cupy" / "__init__.py").write_text(source)


@pytest.fixture(scope="session")
def stub(tmp_path_factory) -> str:
    """Folder with the stand-in driver."""
    folder = tmp_path_factory.mktemp("driver")
    command = ["gcc", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(STUB)]
    subprocess.run(command, check=True)
    return str(folder)


def test_importing_detect_imports_no_cupy(tmp_path):
    package(tmp_path, "raise SystemExit('cupy was imported')")
    subprocess.run(
        [sys.executable, "-c", "import gpubackprop.backends.detect"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        check=True,
    )


@pytest.mark.skipif(
    importlib.util.find_spec("cupy") is not None, reason="CuPy is installed; this case is without"
)
def test_without_cupy():
    code, cause, mend = ask()
    assert code == "no-cupy"
    assert "CuPy is not installed" in cause
    assert "pip install 'gpubackprop[cuda1" in mend


@needs_linux
@needs_gcc
@pytest.mark.skipif(
    importlib.util.find_spec("cupy") is not None, reason="CuPy is installed; this case is without"
)
@pytest.mark.parametrize(
    ("driver", "extra"), [("12040", "cuda12"), ("13000", "cuda13"), ("14010", "cuda13")]
)
def test_without_cupy_the_driver_picks_the_extra(stub, driver, extra):
    code, cause, mend = ask(LD_LIBRARY_PATH=stub, STUB_DRIVER=driver)
    assert (code, cause, mend) == (
        "no-cupy",
        "CuPy is not installed",
        f"pip install 'gpubackprop[{extra}]'",
    )


def test_two_cupys(tmp_path):
    distribution(tmp_path, "cupy-cuda12x")
    distribution(tmp_path, "cupy-cuda13x")
    code, cause, mend = ask(tmp_path)
    assert code == "two-cupys"
    assert "cupy-cuda12x, cupy-cuda13x" in cause
    assert mend.startswith(
        "pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install 'gpubackprop["
    )


@needs_cupy
def test_a_second_cupy_beside_the_installed_one(tmp_path):
    distribution(tmp_path, "cupy-cuda11x")
    code, cause, _ = ask(tmp_path)
    assert code == "two-cupys" and "cupy-cuda11x" in cause


@pytest.mark.skipif(
    importlib.util.find_spec("cupy") is not None, reason="CuPy is installed; this case is another"
)
class TestOneFakeCuPy:
    @pytest.mark.parametrize(
        ("source", "said"),
        [
            (
                "raise ImportError('libcudart.so.13: no such\\nfile')",
                "libcudart.so.13: no such file",
            ),
            ("raise RuntimeError('numpy.dtype size changed')", "RuntimeError: numpy.dtype size"),
            ("__version__ = '13.6.0'", "CuPy 13.6.0 is too old"),
        ],
    )
    def test_that_does_not_import(self, tmp_path, source, said):
        distribution(tmp_path, "cupy-cuda13x")
        package(tmp_path, source)
        code, cause, mend = ask(tmp_path)
        assert code == "import" and said in cause
        assert mend.startswith("pip uninstall -y cupy-cuda13x && pip install")

    def test_for_another_make(self, tmp_path):
        distribution(tmp_path, "cupy-rocm-7-0")
        package(tmp_path, "__version__ = '14.2.0'")
        code, cause, mend = ask(tmp_path)
        assert code == "no-cupy" and "AMD" in cause and "uninstall -y cupy-rocm-7-0" in mend

    def test_that_is_only_half_there(self, tmp_path):
        package(tmp_path, "__version__ = '14.2.0'")  # and no cupy_backends
        code, cause, _ = ask(tmp_path)
        assert code == "cuda-error" and "cupy_backends" in cause


@needs_linux
@needs_gcc
@needs_cupy
class TestDrivers:
    @pytest.mark.parametrize(
        ("setting", "code", "said", "mend"),
        [
            ({"STUB_DRIVER": "12040"}, "old-driver", "supports CUDA 12.4", "[cuda12]"),
            ({"STUB_DRIVER": "11080"}, "old-driver", "supports CUDA 11.8", "update the NVIDIA"),
            ({"STUB_INIT": "100"}, "no-device", "finds no GPU", "nvidia-smi -L"),
            (
                {"STUB_INIT": "100", "CUDA_VISIBLE_DEVICES": "-1"},
                "no-device",
                "CUDA_VISIBLE_DEVICES='-1'",
                "unset CUDA_VISIBLE_DEVICES",
            ),
            ({"STUB_INIT": "803"}, "cuda-error", "cudaErrorSystemDriverMismatch", "reboot"),
            ({"STUB_INIT": "804"}, "cuda-error", "forward compatibility", "cuda-compat"),
            ({"STUB_INIT": "999"}, "cuda-error", "cudaErrorUnknown", "nvidia-smi"),
        ],
        ids=lambda v: "-".join(v.values()) if isinstance(v, dict) else None,
    )
    def test_that_fail(self, stub, setting, code, said, mend):
        answer = ask(LD_LIBRARY_PATH=stub, **setting)
        assert answer[0] == code
        assert said in answer[1] and mend in answer[2]

    @pytest.mark.skipif(detect.driver_version() != 0, reason="this machine has a driver")
    def test_that_is_absent(self):
        code, cause, mend = ask()
        assert code == "no-driver" and "libcuda.so.1" in cause
        assert "--gpus all" in mend


# What comes after a device was found: played with a stand-in for CuPy's runtime.


class StandInError(RuntimeError):
    status = 46


@pytest.fixture
def runtime(monkeypatch):
    """CuPy's runtime as a machine with two GPUs would show it."""

    def properties(index: int) -> dict:
        names = (b"NVIDIA First", b"NVIDIA Second")
        return {
            "name": names[index],
            "totalGlobalMem": (8 + index) * 2**30,
            "major": 8,
            "minor": 6 + index,
        }

    fake = SimpleNamespace(
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
        getDeviceCount=lambda: 2,
        getDeviceProperties=properties,
        CUDARuntimeError=StandInError,
    )
    pathfinder = SimpleNamespace(
        load_nvidia_dynamic_lib=lambda name: name,
        find_nvidia_header_directory=lambda name: "/include",
        DynamicLibNotFoundError=StandInError,
    )
    monkeypatch.setattr(detect, "_cupy_problem", lambda: None)
    monkeypatch.setattr(detect, "_runtime", lambda: fake)
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    detect.gpu_problem.cache_clear()
    yield SimpleNamespace(cuda=fake, pathfinder=pathfinder)
    detect.gpu_problem.cache_clear()


def test_usable_devices_are_listed(runtime):
    assert detect.gpu_problem() is None
    first, second = detect.devices()
    assert first == detect.DeviceInfo(0, "NVIDIA First", 8 * 2**30, (8, 6))
    assert str(second) == "cuda:1 NVIDIA Second, 9.0 GiB, compute capability 8.7"


def test_devices_that_are_too_old(runtime):
    old = {"name": b"Tesla V100", "totalGlobalMem": 2**34, "major": 7, "minor": 0}
    runtime.cuda.getDeviceProperties = lambda index: old
    problem = detect.gpu_problem()
    assert problem.code == "old-device"
    assert "7.5" in problem.cause and "Tesla V100 (7.0)" in problem.cause
    assert "gpubackprop[cuda12]" in problem.mend
    assert detect.devices() == []


def test_missing_libraries_are_named(runtime):
    def load(name: str) -> None:
        if name != "nvrtc":
            raise StandInError(name)

    runtime.pathfinder.load_nvidia_dynamic_lib = load
    problem = detect.gpu_problem()
    assert problem.code == "no-libs"
    assert "cublas, cublasLt" in problem.cause and "nvrtc" not in problem.cause
    assert problem.mend == "pip install 'gpubackprop[cuda13]'"


def test_missing_headers(runtime):
    runtime.pathfinder.find_nvidia_header_directory = lambda name: None
    problem = detect.gpu_problem()
    assert problem.code == "no-headers" and "headers" in problem.cause
    assert str(problem) == f"{problem.cause}; {problem.mend}"


def test_no_device_without_an_error(runtime, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    runtime.cuda.getDeviceCount = lambda: 0
    assert detect.gpu_problem().code == "no-device"


def test_an_unknown_status_keeps_its_message(runtime):
    def fail() -> int:
        raise StandInError("devices are\nbusy or unavailable")

    runtime.cuda.getDeviceCount = fail
    problem = detect.gpu_problem()
    assert problem.code == "cuda-error" and "devices are busy or unavailable" in problem.cause


def test_anything_else_that_breaks_is_an_answer_too(runtime):
    runtime.cuda.driverGetVersion = lambda: 1 / 0
    problem = detect.gpu_problem()
    assert problem.code == "cuda-error" and "ZeroDivisionError" in problem.cause


def test_the_answer_is_kept(runtime):
    assert detect.gpu_problem() is None
    runtime.cuda.driverGetVersion = lambda: 0
    assert detect.gpu_problem() is None
    detect.gpu_problem.cache_clear()
    assert detect.gpu_problem().code == "no-driver"


# cuDNN, which is optional.


@pytest.fixture
def cudnn(runtime, monkeypatch):
    """cuDNN for CUDA 13 beside a GPU that can be used."""
    front = SimpleNamespace(
        backend_version=lambda: 92801, __spec__=importlib.util.spec_from_loader("cudnn", None)
    )
    monkeypatch.setitem(sys.modules, "cudnn", front)
    have = {"nvidia-cudnn-cu13"}
    monkeypatch.setattr(detect, "_is_installed", have.__contains__)
    detect.cudnn_problem.cache_clear()
    yield SimpleNamespace(front=front, have=have)
    detect.cudnn_problem.cache_clear()


def test_a_usable_cudnn(cudnn):
    assert detect.cudnn_problem() is None
    cudnn.front.backend_version = lambda: 1
    assert detect.cudnn_problem() is None, "the answer is kept"


def test_a_cudnn_that_the_system_brought(cudnn):
    cudnn.have.clear()
    assert detect.cudnn_problem() is None


def test_no_gpu_comes_before_no_cudnn(cudnn, runtime):
    runtime.cuda.driverGetVersion = lambda: 0
    detect.gpu_problem.cache_clear()
    assert detect.cudnn_problem().code == "no-driver"


def test_no_front_end(cudnn, monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", None)
    monkeypatch.setattr(detect.importlib.util, "find_spec", lambda name: None)
    problem = detect.cudnn_problem()
    assert problem.code == "no-cudnn" and "front end" in problem.cause
    assert problem.mend == "pip install 'gpubackprop[cudnn13]'"


@pytest.mark.parametrize(
    "have", [{"nvidia-cudnn-cu12"}, {"nvidia-cudnn-cu12", "nvidia-cudnn-cu13"}]
)
def test_a_cudnn_for_another_cuda(cudnn, have):
    cudnn.have.clear()
    cudnn.have.update(have)
    problem = detect.cudnn_problem()
    assert problem.code == "two-cudnns" and "for CUDA 13" in problem.cause
    assert problem.mend == (
        f"pip uninstall -y {' '.join(sorted(have))} && pip install 'gpubackprop[cudnn13]'"
    )


def test_a_front_end_without_its_library(cudnn):
    def fail() -> int:
        raise RuntimeError("Unable to find symbol\ncudnnGetVersion")

    cudnn.front.backend_version = fail
    problem = detect.cudnn_problem()
    assert problem.code == "cudnn-error"
    assert "RuntimeError: Unable to find symbol cudnnGetVersion" in problem.cause
    assert "uninstall -y nvidia-cudnn-frontend nvidia-cudnn-cu13 && pip install" in problem.mend


def test_a_cudnn_that_is_too_old(cudnn):
    cudnn.front.backend_version = lambda: 90501
    problem = detect.cudnn_problem()
    assert problem.code == "no-cudnn" and "cuDNN 9.5.1 is too old; 9.10.0" in problem.cause
    assert problem.mend == "pip install --upgrade 'gpubackprop[cudnn13]'"
