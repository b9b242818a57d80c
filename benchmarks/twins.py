"""PyTorch's twins of this project's networks, which ``gpubackprop bench`` has too.

They are loaded from their file, so that a process that times PyTorch does not hold this project in
memory as well.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).parents[1] / "gpubackprop" / "bench" / "peers" / "torch_networks.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_networks", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile looks the module of a function up by its name
    spec.loader.exec_module(module)
    return module


torch_twins = _load()
