"""Fixtures of the tests of compiled steps."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[False, None], ids=["plain", "fast"])
def fast(request: pytest.FixtureRequest) -> bool | None:
    """How a step is compiled: without native kernels, or with them where they are there."""
    if request.param is None:
        pytest.importorskip("numba")
    return request.param
