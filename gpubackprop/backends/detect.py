"""Finding out whether a CUDA GPU can be used, and if not, why and what mends it.

Each check needs the one before it: CuPy present once, importable, a driver, one that is new enough,
a device, the CUDA libraries, the CUDA headers. The first that fails is the answer. Nothing here
raises, and CuPy is imported only inside the functions.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any, Literal

Code = Literal[
    "no-cupy",
    "two-cupys",
    "import",
    "no-driver",
    "old-driver",
    "no-device",
    "old-device",
    "cuda-error",
    "no-libs",
    "no-headers",
    "no-cudnn",
    "two-cudnns",
    "cudnn-error",
]

# Names under which CuPy is distributed; all of them install the same package folder.
_WHEELS = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy-rocm-7-0", "cupy-rocm-7-1")
_OLDEST_CUPY = 14
# Oldest Linux driver and oldest compute capability of each CUDA major version (CUDA 12.0 and 13.0
# release notes).
_DRIVER = {12: 525, 13: 580}
_CAPABILITY = {12: (5, 0), 13: (7, 5)}
_LIBRARIES = ("nvrtc", "cublas", "cublasLt")
# cuDNN is optional: its front end, and the library for each CUDA major version.
_FRONT_END = "nvidia-cudnn-frontend"
_CUDNN = {12: "nvidia-cudnn-cu12", 13: "nvidia-cudnn-cu13"}
_OLDEST_CUDNN = 91000  # as the library counts: 9.10.0
_NO_DEVICE = 100  # cudaErrorNoDevice
_MENDS = {
    802: "start the fabric manager (systemctl start nvidia-fabricmanager), then try again",
    803: "reboot: the driver in the kernel and its library are of two versions",
    804: "remove the cuda-compat package, or update the driver",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Why no GPU can be used.

    Attributes
    ----------
    code : a fixed word for the kind of problem.
    cause : what is wrong, one sentence without a full stop.
    mend : what to do about it, a command where there is one.
    """

    code: Code
    cause: str
    mend: str

    def __str__(self) -> str:
        return f"{self.cause}; {self.mend}"


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A CUDA GPU.

    Attributes
    ----------
    index : N of ``cuda:N``.
    name : the product's name.
    memory : bytes of device memory.
    compute_capability : (major, minor).
    """

    index: int
    name: str
    memory: int
    compute_capability: tuple[int, int]

    def __str__(self) -> str:
        major, minor = self.compute_capability
        gib = self.memory / 2**30
        return f"cuda:{self.index} {self.name}, {gib:.1f} GiB, compute capability {major}.{minor}"


@functools.cache
def gpu_problem() -> Problem | None:
    """None when a CUDA GPU can be used, else the first thing that stands in the way.

    The answer is kept for the life of the process; ``gpu_problem.cache_clear()`` forgets it.
    """
    try:
        return _cupy_problem() or _driver_problem() or _library_problem()
    except Exception as error:  # a broken installation may raise anything; the caller needs words
        return Problem(
            "cuda-error",
            f"looking for a GPU failed with {type(error).__name__}: {_one_line(error)}",
            "reinstall CuPy and the CUDA libraries: " + _install(_extra()),
        )


def devices() -> list[DeviceInfo]:
    """The CUDA GPUs of this machine in the order of their numbers; empty where none can be used."""
    if gpu_problem() is not None:
        return []
    return _devices(_runtime())


@functools.cache
def cudnn_problem() -> Problem | None:
    """None when cuDNN can be used beside CuPy, else what stands in the way.

    The answer is kept as that of :func:`gpu_problem` is.
    """
    problem = gpu_problem()
    if problem is not None:
        return problem
    cuda = _runtime().runtimeGetVersion() // 1000
    extra = f"cudnn{cuda}"
    if importlib.util.find_spec("cudnn") is None:
        return Problem("no-cudnn", "cuDNN's front end is not installed", _install(extra))
    have = [name for name in _CUDNN.values() if _is_installed(name)]
    wanted = _CUDNN.get(cuda)
    if have and have != [wanted]:
        return Problem(
            "two-cudnns",
            f"CuPy is for CUDA {cuda}, and the installed cuDNN is {', '.join(have)}",
            f"pip uninstall -y {' '.join(have)} && {_install(extra)}",
        )
    try:
        version = importlib.import_module("cudnn").backend_version()
    except Exception as error:  # a front end without a library, or built for another ABI
        return Problem(
            "cudnn-error",
            f"cuDNN does not load ({type(error).__name__}: {_one_line(error)})",
            f"pip uninstall -y {' '.join([_FRONT_END, *have])} && {_install(extra)}",
        )
    if version < _OLDEST_CUDNN:
        return Problem(
            "no-cudnn",
            f"cuDNN {cudnn_version(version)} is too old; {cudnn_version(_OLDEST_CUDNN)} or newer "
            "is needed",
            f"pip install --upgrade 'gpubackprop[{extra}]'",
        )
    return None


def cudnn_version(number: int) -> str:
    """A version of cuDNN 9 as people write it."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def driver_version() -> int:
    """Newest CUDA version that the driver supports, as 1000 * major + 10 * minor; 0 without one.

    Asks the driver's own library, so it needs no CuPy.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    version = ctypes.c_int(0)
    try:
        library = ctypes.CDLL(name)
        status = library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return version.value if status == 0 else 0


def _cupy_problem() -> Problem | None:
    """Whether exactly one CuPy for CUDA is installed and can be imported."""
    have = _installed()
    if not have and importlib.util.find_spec("cupy") is None:
        if not driver_version():
            return Problem(
                "no-cupy",
                "CuPy is not installed, and no NVIDIA driver was found",
                f"on a machine with an NVIDIA GPU and its driver: {_install(_extra())}",
            )
        return Problem("no-cupy", "CuPy is not installed", _install(_extra()))
    if len(have) > 1:
        return Problem(
            "two-cupys",
            f"several CuPy packages overwrite each other: {', '.join(have)}",
            _replace(_extra()),
        )
    if have and have[0].startswith("cupy-rocm"):
        return Problem(
            "no-cupy",
            f"the installed CuPy ({have[0]}) is for AMD GPUs, not for CUDA",
            _replace(_extra()),
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cupy = importlib.import_module("cupy")
    except Exception as error:  # modules built for another ABI do not only raise ImportError
        return Problem(
            "import",
            f"CuPy failed to import with {type(error).__name__}: {_one_line(error)}",
            _replace(_extra()),
        )
    if int(cupy.__version__.partition(".")[0]) < _OLDEST_CUPY:
        return Problem(
            "import",
            f"CuPy {cupy.__version__} is too old; version {_OLDEST_CUPY} or newer is needed",
            _replace(_extra()),
        )
    return None


def _driver_problem() -> Problem | None:
    """Whether there is a driver new enough for this CuPy, with a device that this CuPy serves."""
    runtime = _runtime()
    driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion() // 1000
    if driver == 0:
        return Problem(
            "no-driver",
            "no NVIDIA driver was found (libcuda.so.1)",
            f"install the NVIDIA driver{_at_least(needed)}, or start the container with --gpus all",
        )
    if driver // 1000 < needed:
        update = f"update the NVIDIA driver{_at_least(needed)}"
        older = f"cuda{driver // 1000}"
        known = driver // 1000 in _DRIVER
        return Problem(
            "old-driver",
            f"the driver supports CUDA {_dotted(driver)}, the installed CuPy needs CUDA {needed}",
            f"{update}, or: {_replace(older)}" if known else update,
        )
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if error.status == _NO_DEVICE:
            return _no_device()
        return Problem(
            "cuda-error",
            f"CUDA does not start: {_one_line(error)}",
            _MENDS.get(error.status, "see what nvidia-smi says; a reboot often helps"),
        )
    if count == 0:
        return _no_device()
    oldest = _CAPABILITY.get(needed, (0, 0))
    found = _devices(runtime)
    if all(d.compute_capability < oldest for d in found):
        names = ", ".join(f"{d.name} ({_dots(d.compute_capability)})" for d in found)
        return Problem(
            "old-device",
            f"CUDA {needed} needs compute capability {_dots(oldest)}; found {names}",
            _replace("cuda12") if needed > 12 else "use a newer GPU",
        )
    return None


def _library_problem() -> Problem | None:
    """Whether the CUDA libraries and headers that kernels need can be found."""
    pathfinder = importlib.import_module("cuda.pathfinder")
    extra = f"cuda{_runtime().runtimeGetVersion() // 1000}"
    missing = []
    for library in _LIBRARIES:
        try:
            pathfinder.load_nvidia_dynamic_lib(library)
        except (pathfinder.DynamicLibNotFoundError, RuntimeError, OSError):
            missing.append(library)
    if missing:
        return Problem(
            "no-libs", f"CUDA libraries were not found: {', '.join(missing)}", _install(extra)
        )
    if pathfinder.find_nvidia_header_directory("cudart") is None:
        return Problem(
            "no-headers",
            "the CUDA headers that run-time compilation needs were not found",
            _install(extra),
        )
    return None


def _runtime() -> Any:
    # Not `cupy.cuda.runtime`: importing that name breaks CuPy's own look-up of the runtime's
    # version.
    return importlib.import_module("cupy_backends.cuda.api.runtime")


def _devices(runtime: Any) -> list[DeviceInfo]:
    found = []
    for index in range(runtime.getDeviceCount()):
        p = runtime.getDeviceProperties(index)
        name = p["name"].decode(errors="replace")
        found.append(DeviceInfo(index, name, int(p["totalGlobalMem"]), (p["major"], p["minor"])))
    return found


def _no_device() -> Problem:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return Problem(
            "no-device",
            f"no CUDA device is visible with CUDA_VISIBLE_DEVICES={visible!r}",
            "unset CUDA_VISIBLE_DEVICES",
        )
    return Problem(
        "no-device",
        "the NVIDIA driver finds no GPU",
        "see what nvidia-smi -L lists; start a container with --gpus all",
    )


def _installed() -> list[str]:
    """The CuPy packages that are installed."""
    return [name for name in _WHEELS if _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _extra() -> str:
    """The extra for this machine's driver; the newest where there is none to ask."""
    major = driver_version() // 1000
    return f"cuda{max((m for m in _DRIVER if m <= major), default=max(_DRIVER))}"


def _install(extra: str) -> str:
    return f"pip install 'gpubackprop[{extra}]'"


def _replace(extra: str) -> str:
    return f"pip uninstall -y {' '.join(_installed()) or 'cupy'} && {_install(extra)}"


def _at_least(major: int) -> str:
    return f" (Linux: {_DRIVER[major]} or newer)" if major in _DRIVER else ""


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _dots(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"
