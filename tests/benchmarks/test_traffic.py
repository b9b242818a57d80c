"""What a step of a residual network moves, by dtype."""

from __future__ import annotations

import pytest

from benchmarks import traffic

pytest.importorskip("ml_dtypes")


def test_mixed_precision_halves_what_float32_moves() -> None:
    wide, mixed = (traffic.counted(p, batch=1, width=8) for p in ("float32", "bf16-mixed"))
    assert {dtype for _, dtype in wide} == {"float32"}
    # The batch itself comes as float32, and the mean over the last pictures is one of float32.
    apart = sum(n for (_, dtype), n in mixed.items() if dtype != "bfloat16")
    assert 0 < apart < 0.02 * sum(mixed.values())
    assert 0.49 < sum(mixed.values()) / sum(wide.values()) < 0.52
    for word in ("read", "written"):
        assert mixed[word, "bfloat16"] < 0.51 * wide[word, "float32"]
