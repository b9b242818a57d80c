"""The benchmark for a GPU: what it counts, what its processes say to each other, and that each of
its parts runs on a machine without one."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from benchmarks import interleave, resnet
from benchmarks.cpu import agreement, contenders, ours
from benchmarks.cpu.workloads import ALL, LARGER
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import kernels

# A block of GPT-2 small: 12 width^2 a token, 1024 * 1025 / 2 pairs twice, and a head of 256 tokens.
GPT = 16 * (1024 * 12 * 768**2 + 2 * (1024 * 1025 // 2) * 768 + 1024 * 768 * 256)
# ResNet-18 for 32 x 32: four stages of two blocks, each with two convolutions of 3 x 3.
STEM = 32 * 32 * 27 * 64
REST = (
    4 * 32 * 32 * 9 * 64 * 64
    + 16 * 16 * 9 * (64 * 128 + 3 * 128 * 128)
    + 8 * 8 * 9 * (128 * 256 + 3 * 256 * 256)
    + 4 * 4 * 9 * (256 * 512 + 3 * 512 * 512)
    + 16 * 16 * 64 * 128
    + 8 * 8 * 128 * 256
    + 4 * 4 * 256 * 512
    + 512 * 10
)


def test_operations_and_parameters_are_those_of_a_hand_count():
    assert ALL["G1"].flops == 6 * GPT
    assert ALL["G1"].parameters == 12 * 768**2 + 3 * 768 + 1024 * 768 + 256 * 768
    assert ALL["G2"].flops == 128 * (4 * STEM + 6 * REST)
    assert ALL["G2"].parameters == 11_173_962  # as PyTorch's version for CIFAR-10 is known to have


@pytest.mark.parametrize("name", ["G2", "G2-small", "G1-small"])
def test_networks_have_the_workloads_parameters(name):
    model = ours.network(name, 0.0)
    assert [p.shape for p in model.parameters()] == list(ALL[name].shapes.values())


def test_precisions_have_a_ceiling_and_a_tolerance():
    for w in ALL.values():
        assert command.PRODUCTS[w.precision] in kernels.NAMES
        assert w.precision in agreement.ROUNDED
    assert set(LARGER) - {"G1-small", "G2-small"} <= set(command.WORKLOADS)


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def checked(workload: str, folder, taken=None) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        if taken is not None:  # the step alone is another one, not what it is compared with
            patch.setattr(ours, "loss_of", taken)
        contenders.check("gb-eager", workload, str(folder), command.CONTENDERS)
    with np.load(folder / "gb-eager.npz") as arrays:
        return agreement.compare(workload, dict(arrays), "cross-entropy", False)


@pytest.mark.parametrize("workload", ["G1-small", "G2-small"])
def test_a_step_in_bfloat16_agrees_within_its_rounding(workload, without_torch, tmp_path):
    pytest.importorskip("ml_dtypes")
    found = checked(workload, tmp_path)
    assert found["differs"] == "" and agreement.GRADIENT < found["gradient_error"] < 0.3


def test_a_wrong_gradient_in_bfloat16_is_found(without_torch, tmp_path):
    pytest.importorskip("ml_dtypes")
    right = ours.loss_of

    def half_of_the_batch(name, cost, model, x, target):
        return right(name, cost, model, x[:2], target[:2])

    found = checked("G1-small", tmp_path, half_of_the_batch)
    assert "from this project's in float64" in found["differs"]


def test_without_a_gpu_it_says_why(capsys):
    assert command.main(["--device", "cuda:99"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("benchmarks.gpu: device 'cuda:99'")


def test_what_is_written_and_who_is_absent(capsys, tmp_path):
    file = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--only", "W1", "--contenders", "gb-eager", "--rounds", "1"]
    sizes = ["--seconds", "0.02", "--size", "64KiB", "--gemm", "64", "--json", str(file)]
    assert command.main([*arguments, *sizes]) == 0
    report = json.loads(file.read_text())
    rows = report["kernels"]["kernels"]
    assert list(rows) == list(kernels.NAMES[:4])
    assert rows["gemm-tf32"]["gb"] == {"absent": "cpu has no TF32 units"}
    rate = report["kernels"]["ceilings"]["copy"]
    assert rows["copy"]["gb"]["of_ceiling"] == pytest.approx(rows["copy"]["gb"]["rate"] / rate)
    found = report["workloads"]["W1"]
    limit = ALL["W1"].floor(report["kernels"]["ceilings"]["gemm-float32"], rate)
    assert found["limit_s"] == pytest.approx(limit)
    row = found["contenders"]["gb-eager"]
    assert row["limit_share"] == pytest.approx(limit * row["steps_per_s"])
    assert 0 < row["gradient_error"] < agreement.GRADIENT
    out = capsys.readouterr().out
    assert "gemm-tf32" in out and "gb-eager" in out


def test_a_worker_that_ends_is_named_and_the_others_go_on():
    script = (
        "import sys\nprint('READY{}', flush=True)\n"
        "for i, line in enumerate(sys.stdin):\n"
        "    if i == LAST: sys.exit('no more memory')\n"
        "    print('RATE 5', flush=True)\n"
    )
    workers, absent = {}, {}
    try:
        for name, last in (("short", "1"), ("long", "9")):
            code = script.replace("LAST", last)
            worker = workers[name] = interleave.Worker([sys.executable, "-c", code], None, 20.0)
            assert worker.hear("READY") == "{}"
            worker.pause()
        rates = interleave.take_turns(workers, 3, 0.1, absent)
    finally:
        for worker in workers.values():
            worker.stop()
    assert rates == {"long": [5.0, 5.0, 5.0]} and absent == {"short": "no more memory"}


def test_every_block_of_the_residual_network_is_planned():
    assert resnet.plan(ALL["G2"])[:4] == [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    assert len(resnet.plan(ALL["G2"])) == 8


@pytest.mark.peers
def test_the_residual_network_is_pytorchs(tmp_path):
    pytest.importorskip("torch")
    from benchmarks.cpu import pytorch
    from benchmarks.cpu.workloads import batches, initial

    name = "G2-small"
    arguments = (name, "cross-entropy", initial(name), batches(name)[0])
    pairs = zip(ours.reference(*arguments), pytorch.reference(*arguments), strict=True)
    for key, (mine, theirs) in zip(ALL[name].shapes, pairs, strict=True):
        apart = np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-12)
        assert apart < 1e-9, (key, apart)


@pytest.mark.gpu
@pytest.mark.parametrize("workload", ["W1", "W2", "W3-tf32", "W5", "G1-small", "G2-small"])
@pytest.mark.parametrize("contender", ["gb-eager", "gb-compiled"])
def test_steps_on_a_gpu_agree_with_float64(workload, contender, tmp_path):
    contenders.check(contender, workload, str(tmp_path), command.CONTENDERS, "cuda:0")
    with np.load(tmp_path / f"{contender}.npz") as arrays:
        found = agreement.compare(workload, dict(arrays), ALL[workload].cost, False)
    assert found["differs"] == ""
