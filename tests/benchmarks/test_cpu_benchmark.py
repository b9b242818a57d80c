"""The benchmark of six workloads on the CPU: what it counts, compares, names and writes."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest

from benchmarks import interleave
from benchmarks.cpu import __main__ as command
from benchmarks.cpu import agreement, contenders, ours, rates
from benchmarks.cpu.workloads import WORKLOADS, batches, initial

MACHINE = {"flops_per_s": 2e11, "gemm": {"numpy x1": 2e11}, "bytes_per_s": {4: 8e10, 64: 2e10}}


@pytest.fixture
def quick(monkeypatch):
    """The machine's rates are given instead of measured, and tinygrad's compiler is missing."""
    monkeypatch.setattr(rates, "measure", lambda: dict(MACHINE))
    monkeypatch.setenv("CC", "/nowhere/clang")


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


# A product of (m, k) and (k, n) is m k n multiply-adds, each two operations; backward has two such
# products for each, the first layer of a network on numbers only one.
HAND_COUNTS = {
    "W1": (958_800, 23_860, 286_320),
    "W2": (410_779_648, 669_706, 18_751_768),
    "W3": (
        4 * 256 * 1024 * 4096 + 6 * 256 * (4096 * 4096 + 4096 * 1000),
        4_198_400 + 16_781_312 + 4_097_000,
        28 * 25_076_712,
    ),
    # 26 x 26 windows of 9 numbers for 32 filters; 11 x 11 of 288 for 64; 1600 to 10.
    "W4": (4 * 128 * 194_688 + 6 * 128 * (2_230_272 + 16_000), 34_826, 975_128),
    # A block: 12 width^2 a token in its layers; 2080 of 64 x 64 pairs see each other, twice.
    "W5": (
        6 * 12 * (4 * (64 * 12 * 128**2 + 2 * 2080 * 128) + 64 * 128 * 65),
        65 * 128 + 64 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128,
        28 * 804_096,
    ),
    "W6": (6 * 32 * 64 * (512 * 256 + 128 * 65), 148_801, 28 * 148_801),
}


@pytest.mark.parametrize("name", HAND_COUNTS)
def test_operations_parameters_and_bytes_are_those_of_a_hand_count(name):
    w = WORKLOADS[name]
    assert (w.flops, w.parameters, w.update_bytes) == HAND_COUNTS[name]


def test_the_floor_is_arithmetic_and_then_the_update():
    w = WORKLOADS["W1"]
    assert w.floor(1e9, 1e6) == pytest.approx(958_800e-9 + 0.28632)


def test_bandwidth_is_that_of_the_largest_set_that_fits_the_network():
    assert rates.bandwidth_for(MACHINE, 23_860) == 8e10  # smaller than any: the smallest
    assert rates.bandwidth_for(MACHINE, 669_706) == 8e10  # 10 MiB
    assert rates.bandwidth_for(MACHINE, 25_076_712) == 2e10


def test_the_machine_is_measured():
    assert rates.bandwidth(1, 2, 0.01) > 1e8
    assert rates.best(lambda: None, 0.001) < 0.1


@pytest.mark.parametrize("name", ["W1", "W2", "W4", "W5", "W6"])
def test_networks_have_the_workloads_parameters(name):
    model = ours.network(name, 0.5)
    assert sum(p.size for p in model.parameters()) == WORKLOADS[name].parameters


def test_no_network_can_learn_the_batches_by_heart():
    (x, target), (same, other) = batches("W2")[:2]
    assert np.array_equal(x, same) and x is not same and not np.array_equal(target, other)


def kept(workload: str, folder) -> dict[str, np.ndarray]:
    contenders.check("gb-eager", workload, str(folder))
    with np.load(folder / "gb-eager.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("workload", ["W1", "W2", "W5"])
def test_a_right_step_agrees(workload, without_torch, tmp_path):
    found = agreement.compare(workload, kept(workload, tmp_path), WORKLOADS[workload].cost, False)
    assert found["differs"] == "" and found["reference"] == "this project"
    assert 0 < found["gradient_error"] < agreement.GRADIENT


@pytest.mark.parametrize("workload", ["W1", "W2", "W6"])
def test_a_wrong_gradient_is_found(workload, without_torch, tmp_path, monkeypatch):
    right = ours.loss_of
    monkeypatch.setattr(ours, "loss_of", lambda *a: right(*a) * 1.002)
    arrays = kept(workload, tmp_path)
    monkeypatch.setattr(ours, "loss_of", right)
    found = agreement.compare(workload, arrays, WORKLOADS[workload].cost, False)
    assert found["gradient_error"] == pytest.approx(0.002, rel=0.2)
    assert "from this project's in float64" in found["differs"]


def test_a_gradient_that_is_no_number_is_found(without_torch, tmp_path):
    arrays = kept("W2", tmp_path)
    arrays["after-first2"][7] = np.nan
    assert agreement.compare("W2", arrays, "cross-entropy", False)["at"] == "weight1"


def test_a_wrong_update_is_found(without_torch, tmp_path, monkeypatch):
    right = ours.optimizer_of

    def wrong(name, model):
        optimizer = right(name, model)
        optimizer.param_groups[0]["lr"] *= 1.01
        return optimizer

    monkeypatch.setattr(ours, "optimizer_of", wrong)
    found = agreement.compare("W2", kept("W2", tmp_path), "cross-entropy", False)
    assert found["differs"].startswith("the update is 0.01")


def test_what_is_written_and_who_is_absent(quick, capsys, tmp_path):
    file = tmp_path / "result.json"
    names = "gb-eager,tinygrad"
    arguments = ["--only", "W1", "--contenders", names, "--rounds", "2", "--seconds", "0.02"]
    assert command.main([*arguments, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    written = json.loads(file.read_text())
    assert set(written) == {"machine", "workloads", "absent", "limits"}
    assert list(written["workloads"]) == ["W1"] and list(written["workloads"]["W1"]) == ["gb-eager"]
    result = written["workloads"]["W1"]["gb-eager"]
    assert result["steps_per_s"] > 50 and result["first_step_s"] > 0
    # Nothing to compare the rate with, but the limit and the gradient are known.
    assert result["ratio_to_torch"] is None and result["spread"] is None
    limit = 958_800 / 2e11 + 286_320 / 8e10
    assert result["limit_share"] == pytest.approx(limit * result["steps_per_s"])
    assert written["limits"]["W1"]["seconds"] == pytest.approx(limit)
    assert 0 < result["gradient_error"] < agreement.GRADIENT
    if interleave.peak_memory():
        assert result["peak_mb"] >= result["import_mb"] > 10
    reason = written["absent"]["W1"]["tinygrad"]
    assert "clang" in reason or "No module named 'tinygrad'" in reason
    assert f"{'tinygrad':<18}absent: {reason}" in out


def test_a_contender_that_differs_is_named_and_not_timed(quick, capsys, tmp_path, monkeypatch):
    info = {"differs": "the gradient by weight0 is 0.5 from PyTorch's in float64"}
    monkeypatch.setattr(agreement, "run", lambda *a: ({"gb-eager": info}, {}))
    file = tmp_path / "result.json"
    assert command.main(["--only=W1", "--contenders=gb-eager", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written["workloads"]["W1"] == {}
    assert written["absent"]["W1"]["gb-eager"] == f"not timed: {info['differs']}"
    assert "not timed: the gradient by weight0" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--only", "W9"], ["--contenders", "torch,nobody"]])
def test_an_unknown_name_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert "is none of" in capsys.readouterr().err


def test_a_contender_that_does_not_get_ready_is_given_up():
    timed, absent = interleave.run(
        "benchmarks.cpu", "W1", ["gb-eager"], 1, 0.01, rates.environment(1), patience=0.05
    )
    assert timed == [] and "not ready within 0.05 s" in absent["gb-eager"]


def test_the_chart_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.cpu.chart import draw

    bar = {"ratio_to_torch": 2.0, "spread": [1.5, 2.5]}
    base = {"ratio_to_torch": 1.0, "spread": [1.0, 1.0]}
    workloads = {"W1": {"torch": base, "gb-eager": bar}, "W2": {"torch": base}}
    file = tmp_path / "chart.png"
    draw({"machine": {"processor": "a processor"}, "workloads": workloads}, str(file))
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.peers
@pytest.mark.parametrize(
    "name, cost",
    [("W1", "quadratic"), ("W1", "cross-entropy")]
    + [(name, "cross-entropy") for name in ("W2", "W4", "W5", "W6")],
)
def test_both_references_are_the_same_function(name, cost):
    pytest.importorskip("torch")
    from benchmarks.cpu import pytorch

    arguments = (name, cost, initial(name), batches(name)[0])
    for key, mine, theirs in zip(
        WORKLOADS[name].shapes,
        ours.reference(*arguments),
        pytorch.reference(*arguments),
        strict=True,
    ):
        apart = np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-12)
        assert apart < 1e-9, (key, apart)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["torch", "torch-best", "sklearn"])
def test_peers_take_the_workloads_step(name, tmp_path):
    if importlib.util.find_spec("sklearn" if name == "sklearn" else "torch") is None:
        pytest.skip(f"{name} is not installed")
    for workload in ("W1",) if name == "sklearn" else ("W1", "W4"):
        contenders.check(name, workload, str(tmp_path))
        cost = "cross-entropy" if name == "sklearn" else WORKLOADS[workload].cost
        with np.load(tmp_path / f"{name}.npz") as arrays:
            found = agreement.compare(workload, arrays, cost, name == "sklearn")
        assert found["differs"] == ""
