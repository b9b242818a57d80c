"""What holds for every test: marks, the devices and data a machine has, and repeatable
surroundings.

Tests that need a GPU carry ``@pytest.mark.gpu``, those that read real data use the fixtures below,
and those that compare with PyTorch or scikit-learn carry ``@pytest.mark.peers`` and begin with
``pytest.importorskip``. Where the thing is absent they show as skipped, with the cause. ``--require
gpu`` (or ``peers``, ``data``, ``nvrtc``, ``cudnn``) turns that into an error: a run that is started
for their sake must not pass without them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from pathlib import Path

# Before NumPy is loaded: several test processes share the cores, and more threads than cores only
# wait for each other.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests name their devices; the developer's choice must not change what they test.
os.environ.pop("GPUBACKPROP_DEVICE", None)
# Tests of cuDNN ask for it by argument. It must not find its way behind a stand-in for CuPy.
os.environ["GPUBACKPROP_CUDNN"] = "never"
# What is joined is right or is not; the time of a stand-in says nothing.
os.environ["GPUBACKPROP_JOINED"] = "always"

import hypothesis  # noqa: E402
import pytest  # noqa: E402

PROJECT = Path(__file__).resolve().parents[1]
PEERS = ("torch", "sklearn", "jax")

# No deadline: the machine may be busy. In CI the examples are the same on every run, so that a
# failure is the change's.
hypothesis.settings.register_profile(
    "project",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        choices=["cudnn", "data", "gpu", "nvrtc", "peers"],
        help="end with an error, instead of skipped tests, where this is absent",
    )


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # a worker process: the first process has looked already
    absent = {
        "cudnn": cudnn_absent,
        "data": data_absent,
        "gpu": gpu_absent,
        "nvrtc": nvrtc_absent,
        "peers": peers_absent,
    }
    for name in config.getoption("--require"):
        if cause := absent[name]():
            raise pytest.UsageError(f"--require {name}: {cause}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (cause := gpu_absent()):
        pytest.skip(cause)
    if item.get_closest_marker("data") and (cause := data_absent()):
        pytest.skip(cause)


@cache
def gpu_absent() -> str:
    """Why no GPU can be used and what mends it, or nothing."""
    from gpubackprop.backends import detect

    problem = detect.gpu_problem()
    return f"no usable GPU: {problem.cause}; {problem.mend}" if problem else ""


def peers_absent() -> str:
    """Which library to compare with is not installed, or nothing."""
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)} (make peers installs them)" if missing else ""


def nvrtc_absent() -> str:
    """Why CUDA sources cannot be compiled here, or nothing."""
    try:
        nvrtc = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
        nvrtc.getVersion()
        pathfinder = importlib.import_module("cuda.pathfinder")
    except (ImportError, RuntimeError) as error:
        return f"no CUDA run-time compiler: {error} (make kernels installs it)"
    headers = pathfinder.find_nvidia_header_directory("cudart")
    return "" if headers else "no CUDA headers (make kernels installs them)"


def cudnn_absent() -> str:
    """Why cuDNN cannot check graphs here, or nothing. It needs no GPU for that."""
    try:
        importlib.import_module("cudnn").backend_version()
    except (ImportError, RuntimeError) as error:
        return f"no cuDNN: {error} (make cudnn installs it)"
    return ""


def data_absent() -> str:
    """Why there is no real data, or nothing."""
    root = _data_folder()
    return "" if root.is_dir() else f"no real data: {root} is not there (set GPUBACKPROP_DATA)"


def _data_folder() -> Path:
    return Path(os.environ.get("GPUBACKPROP_DATA") or PROJECT.parent / "shared" / "data")


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    """Modules draw their weights from the default generator, which the system would seed."""
    from gpubackprop.backends.random import manual_seed

    manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data: GPUBACKPROP_DATA, or ../shared/data beside the project."""
    if cause := data_absent():
        pytest.skip(cause)
    return _data_folder()


@pytest.fixture(scope="session")
def mnist_folder(data_root: Path) -> Path:
    """The folder with the four published MNIST files."""
    folder = data_root / "mnist"
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no real MNIST: {folder} has no train-images-idx3-ubyte.gz")
    return folder
