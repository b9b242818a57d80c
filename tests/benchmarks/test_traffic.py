"""What a step of a residual network moves, and one of a transformer's block, by dtype."""

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


def test_a_blocks_norms_move_float32_only_for_the_residual_sum() -> None:
    """As a GPU's compiled step makes them. Of each number of the sum, forth: read and written in
    two additions, read by two norms. Back: the cotangent rounded for two products; the sum read
    again by two norms, what they write read by two additions, and these read and write. Beside
    those only what norms and attention keep of each token."""
    tokens, width, heads = 67, 16, 2
    size = tokens * width * 4
    found = traffic.counted_block("bf16-mixed", True, tokens, width, heads)
    kept = {"read": 2 * 2 + heads, "written": 2 * 2 + heads}
    assert found["read", "float32"] == (2 + 2 + 1 + 2 + 2 * 2) * size + kept["read"] * tokens * 4
    assert found["written", "float32"] == (2 + 2 + 2) * size + kept["written"] * tokens * 4
    wide = traffic.counted_block("float32", True, tokens, width, heads)
    assert {dtype for _, dtype in wide} == {"float32"}
    assert sum(found.values()) < 0.63 * sum(wide.values())
    apart = traffic.counted_block("bf16-mixed", False, tokens, width, heads)
    assert sum(apart.values()) > 1.25 * sum(found.values())
