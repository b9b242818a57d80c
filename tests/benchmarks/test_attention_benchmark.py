"""The benchmark of attention runs, and says which contender is absent."""

from __future__ import annotations

from benchmarks import attention
from tests.benchmarks.test_benchmarks import rates


def test_attention(capsys):
    assert attention.main(["--only", "gpt", "--rounds", "1", "--seconds", "0.02"]) == 0
    out = capsys.readouterr().out
    assert rates(out)["gb-numpy"] > 1
    for name in attention.CONTENDERS:
        assert name in rates(out) or f"{name:<26}absent: " in out
