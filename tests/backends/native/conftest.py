"""What the tests of native kernels share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def three_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads as a test asks for, also on a machine with fewer cores; and for small work
    too, in the modules that a test file lists in ``SMALL_TOO``."""
    package = "gpubackprop.backends.cpu.native"
    monkeypatch.setattr(f"{package}.engine.threads", lambda: 3)
    for module in getattr(request.module, "SMALL_TOO", ()):
        monkeypatch.setattr(f"{package}.{module}.SERIAL", 0)
