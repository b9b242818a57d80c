"""``python -m tests.backends.support.ask_cudnn FILE SM``: what cuDNN says of operations on a GPU
that is not there.

cuDNN plans for a device that is described to it in JSON, as it does for programs that are compiled
ahead of time. It loads only with a driver beside it; ``stub_libcuda.c`` is one. The file holds a
pickled list of operations, SM is the compute capability such as 90. Printed, as JSON: for each
operation how many engines cuDNN proposes, or its words of refusal.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

from gpubackprop.backends.cuda import cudnn_graphs

# Multiprocessors and bytes of shared memory of a GPU of each capability.
GPUS = {80: (108, 167936), 90: (132, 233472), 100: (148, 233472)}


def described(capability: int) -> str:
    """A GPU in cuDNN's JSON."""
    processors, shared = GPUS[capability]
    return json.dumps(
        {
            "deviceName": f"sm_{capability}",
            "deviceVer": capability * 10,
            "driverVer": 13000,
            "cudaDeviceId": 0,
            "pciDeviceId": 0,
            "multiProcessorCount": processors,
            "smCountOrigin": 0,
            "warpSize": 32,
            "maxGridSize": [2147483647, 65535, 65535],
            "maxBlockSize": [1024, 1024, 64],
            "maxThreadsPerBlock": 1024,
            "maxThreadsPerSM": 2048,
            "maxCtasPerSM": 32,
            "regsPerBlock": 65536,
            "maxRegistersPerSM": 65536,
            "maxSharedMemoryPerBlock": 49152,
            "maxSharedMemoryPerBlockOptin": shared - 1024,
            "reservedSharedMemoryPerBlock": 1024,
            "oversizedSharedMemoryPerBlock": 0,
            "isTccDriver": 0,
            "supportCoopLaunch": 1,
            "totalGlobalMem": 80 * 2**30,
            "smClockRateKHz": 1700000,
            "memClockRateKHz": 2600000,
            "memoryBusWidth": 5120,
            "l2CacheSize": 50 * 2**20,
        }
    )


def engines(cudnn: Any, operation: cudnn_graphs.Operation, gpu: Any, capability: int) -> int | str:
    """How many engines cuDNN proposes, or why none."""
    settings = {"device_property": gpu, "sm_version": capability, "sm_count": GPUS[capability][0]}
    graph = cudnn_graphs.build(cudnn, operation, True, **settings)
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    except (RuntimeError, cudnn.cudnnGraphNotSupportedError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return int(graph.get_execution_plan_count())


def main() -> None:
    import cudnn

    path, capability = Path(sys.argv[1]), int(sys.argv[2])
    gpu = cudnn.create_device_properties(described(capability))
    operations = pickle.loads(path.read_bytes())
    print(json.dumps([engines(cudnn, o, gpu, capability) for o in operations]))


if __name__ == "__main__":
    main()
