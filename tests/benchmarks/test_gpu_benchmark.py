"""The benchmark for a GPU: what it counts, what its processes say to each other, and that each of
its parts runs on a machine without one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import gpubackprop as gb
from benchmarks import interleave, resnet
from benchmarks.cpu import agreement, contenders, ours
from benchmarks.cpu.workloads import ALL, LARGER, AbsentError
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import kernels, memory, smoke
from gpubackprop import recipes
from gpubackprop.backends import get_backend

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


def test_a_contender_that_takes_too_long_is_named():
    sleeps = ["timeit", "-n1", "-r1", "import time; time.sleep(60)"]
    found, why = agreement.said(sleeps, "CHECK", None, 0.5, [])
    assert found == [] and why == "timed out: not done within 0.5 s"
    worker = interleave.Worker([sys.executable, "-m", *sleeps], None, 0.5)
    assert worker.hear("READY") == "" and worker.ended() == "timed out: not ready within 0.5 s"


def test_workloads_without_time_are_named(capsys, tmp_path):
    file = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--only", "W1,W2", "--contenders", "gb-eager", "--rounds", "1"]
    sizes = ["--seconds", "0.01", "--size", "64KiB", "--gemm", "32", "--limit", "5"]
    assert command.main([*arguments, *sizes, "--json", str(file)]) == 0
    found = json.loads(file.read_text())["workloads"]
    assert found == {n: {"absent": "no time was left"} for n in ("W1", "W2")}
    assert "W2: not started" in capsys.readouterr().out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone can do that")
def test_contenders_end_with_the_benchmark():
    script = (
        "import sys, time\n"
        "from benchmarks.interleave import Worker\n"
        "w = Worker([sys.executable, '-c', 'import time; time.sleep(60)'], None, 60.0)\n"
        "print(w.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while _runs(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_memory_of_a_recipe_is_measured_in_a_process_of_its_own():
    found = memory.run(["gb-eager"], "cpu", dict(os.environ), 60.0, ["two-moons"])
    row = found["two-moons"]["gb-eager"]
    # Parameters, gradients, Adam's two means: 1,218 numbers each; and not a network's more.
    assert 4 * 4 * 1218 < row["step"] <= 2 * row["peak"] < 2_000_000
    assert "to_torch" not in row and "gb-eager" in memory.table(found)


def test_memory_beside_pytorchs(monkeypatch):
    said = {"torch": 200, "gb-eager": 150, "gb-compiled": None}

    def answer(command, word, *rest):
        peak = said[command[2]]
        if peak is None:
            return [], "timed out: not done within 30 s"
        return [{"peak": peak * 10**6, "step": 100 * 10**6, "taken": None}], ""

    monkeypatch.setattr(agreement, "said", answer)
    names = [*said, "torch-compile"]
    found = memory.run(names, "cuda:0", {}, 30.0, ["digits-mlp"])["digits-mlp"]
    assert found["gb-eager"]["to_torch"] == 0.75 and found["torch"]["to_torch"] == 1.0
    assert found["gb-compiled"] == {"absent": "timed out: not done within 30 s"}
    assert set(found) == set(said)
    table = memory.table({"digits-mlp": found})
    assert re.search(r"gb-eager +150.00 +0.75 +100.00 +-$", table, re.M) and "timed out" in table


@pytest.mark.peers
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_other_libraries_are_asked_for_their_memory(name, capsys):
    pytest.importorskip(name)
    memory.serve(name, "two-moons@cpu")
    found = json.loads(capsys.readouterr().out.removeprefix("MEMORY"))
    assert set(found) == {"peak", "step", "taken", "source"}


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("workload", ["G1-small", "G2-small"])
def test_pytorch_compiles_the_larger_workloads(workload, tmp_path):
    pytest.importorskip("torch")
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler (g++), and there is none")
    contenders.check("torch-compile", workload, str(tmp_path), command.CONTENDERS)
    with np.load(tmp_path / "torch-compile.npz") as arrays:
        assert agreement.compare(workload, dict(arrays), "cross-entropy", False)["differs"] == ""


def test_the_first_minute_has_a_line_for_each_check(capsys):
    names = "device,product,cudnn,attention"
    assert smoke.main(["--device", "cpu", "--only", names]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [x.split()[:2] for x in lines[:4]] == [
        ["device", "well"],
        ["product", "well"],
        ["cudnn", "absent"],
        ["attention", "well"],
    ]
    assert lines[4] == "4 checks, 0 failed"


def test_a_check_that_fails_is_one_line_and_the_status(capsys, monkeypatch):
    monkeypatch.setattr(agreement, "said", lambda command, *rest: ([], f"{command[2]} broke"))
    assert smoke.main(["--device", "cpu", "--only", "device,step"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^step +FAILED +[\d.]+ s  step broke$", out, re.M)
    assert out.endswith("2 checks, 2 failed\n")


def test_a_wrong_value_is_found(capsys, monkeypatch):
    backend = type(gb.tensor([0.0]).backend)
    right = backend.attention_backward

    def wrong(self, *args, **kwargs):
        dq, dk, dv, *rest = right(self, *args, **kwargs)
        calls.append(1)
        return (dq * (2 if len(calls) == 1 else 1), dk, dv, *rest)

    calls: list[int] = []
    monkeypatch.setattr(backend, "attention_backward", wrong)
    monkeypatch.setattr(get_backend("cpu"), "attention_backward", wrong.__get__(get_backend("cpu")))
    assert smoke.main(["--one", "attention", "cpu"]) == 1
    err = capsys.readouterr().err
    assert err == "RuntimeError: dq is 1 of its largest number from the CPU's\n"


@pytest.mark.gpu
@pytest.mark.parametrize("name", smoke.CHECKS)
def test_checks_on_a_gpu(name):
    try:
        assert smoke.CHECKS[name]("cuda:0")
    except AbsentError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", recipes.names())
def test_a_recipe_needs_no_more_memory_than_with_pytorch(recipe):
    found = memory.run(["torch", "gb-compiled"], "cuda:0", dict(os.environ), 120.0, [recipe])
    if "absent" in found[recipe]["torch"]:
        pytest.skip(found[recipe]["torch"]["absent"])
    assert found[recipe]["gb-compiled"]["to_torch"] <= 1.0, found


@pytest.mark.gpu
@pytest.mark.parametrize("workload", ["W1", "W2", "W3-tf32", "W5", "G1-small", "G2-small"])
@pytest.mark.parametrize("contender", ["gb-eager", "gb-compiled"])
def test_steps_on_a_gpu_agree_with_float64(workload, contender, tmp_path):
    contenders.check(contender, workload, str(tmp_path), command.CONTENDERS, "cuda:0")
    with np.load(tmp_path / f"{contender}.npz") as arrays:
        found = agreement.compare(workload, dict(arrays), ALL[workload].cost, False)
    assert found["differs"] == ""
