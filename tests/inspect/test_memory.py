"""The memory of a training step, by operation."""

from __future__ import annotations

import json
import sys
import tracemalloc

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn
from gpubackprop.autograd import STATE, Tensor
from gpubackprop.backends.cuda import CUDABackend
from gpubackprop.inspect import memory
from gpubackprop.inspect.memory import words
from tests.backends.support import fake_cupy, shim

MIB = 1 << 20


def mlp(width: int = 256, depth: int = 3) -> nn.Sequential:
    return nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)])


def rows(report) -> dict[tuple[str, str], object]:
    return {(row.op, row.direction): row for row in report.rows}


def test_a_step_on_the_cpu():
    model = mlp()
    x = gb.tensor(np.ones((1024, 256), np.float32))  # 1 MiB, and so is every layer's result
    for p in model.parameters():
        p.grad = gb.tensor(np.zeros(p.shape, np.float32))
    report = memory(lambda: model(x).sum().backward())
    found = rows(report)
    assert report.device == "cpu" and "tracemalloc" in report.source
    assert found["linear", "forward"].count == found["linear", "backward"].count == 3
    assert found["tanh", "forward"].count == 3 and found["-", "the rest"].count == 1
    # Each tanh keeps its result for the backward pass; there is another array beside it for a time.
    assert 3.9 * MIB < report.peak < 7 * MIB
    assert abs(report.kept) < 0.1 * MIB
    assert sum(row.kept for row in report.rows) == pytest.approx(report.kept, abs=0.1 * MIB)
    assert all(row.peak <= report.peak for row in report.rows)
    assert report.peak_at in {f"{row.op} {row.direction}" for row in report.rows}


def test_what_an_operation_keeps_and_takes_for_a_while():
    x = gb.tensor(np.ones((512, 256)))  # 1 MiB

    def work():
        first = gb.exp(x)
        return first, gb.concatenate([first, first])

    report = memory(work)
    found = rows(report)
    assert found["exp", "forward"].kept == pytest.approx(MIB, rel=0.01)
    assert found["concatenate", "forward"].kept == pytest.approx(2 * MIB, rel=0.01)
    assert report.kept == pytest.approx(3 * MIB, rel=0.01)
    assert report.result[1].shape == (1024, 256)
    report = memory(lambda: gb.exp(x).sum())
    assert report.kept < 0.01 * MIB < MIB < 1.02 * report.peak
    assert rows(report)["exp", "forward"].peak == pytest.approx(MIB, rel=0.01)


def test_a_checkpoint_shows_its_second_run():
    model = mlp()
    x = gb.tensor(np.ones((1024, 256), np.float32))
    model(x).sum().backward()
    plain = memory(lambda: model(x).sum().backward())
    report = memory(lambda: gb.checkpoint(model, x).sum().backward())
    found = rows(report)
    assert ("linear", "again") not in rows(plain)
    assert found["linear", "again"].count == found["linear", "forward"].count == 3
    assert found["checkpoint", "backward"].count == 1


def test_the_report_can_be_read_and_stored():
    x = gb.tensor(np.ones((512, 256)), requires_grad=True)
    report = memory(lambda: gb.exp(x).sum().backward())
    text = str(report)
    assert text.splitlines()[0].startswith("cpu: peak ")
    assert "exp        backward       1" in text
    stored = json.loads(json.dumps(report.as_dict()))
    assert stored["peak"] == report.peak and stored["rows"][0]["op"]
    assert gb.inspect.memory is memory


def test_arguments_are_passed_and_errors_leave_nothing_behind():
    assert memory(lambda a, b: (a, b), 1, b=2).result == (1, 2)
    observer = object()
    STATE.observer = observer
    try:
        with pytest.raises(KeyError):
            memory({}.__getitem__, "missing")
        assert STATE.observer is observer
    finally:
        STATE.observer = None
    assert not tracemalloc.is_tracing()


def test_tracing_that_ran_before_goes_on():
    tracemalloc.start()
    try:
        memory(lambda: np.ones(1000))
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (1023, "1023 B"), (-1536, "-1.5 KiB"), (5 << 40, "5120.0 GiB")]
)
def test_words(n, text):
    assert words(n) == text


# On the fake of CuPy.
@pytest.fixture
def cuda(monkeypatch):
    if shim.missing():
        pytest.skip(shim.missing())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", fake_cupy.FakeCuPy(2))
        return CUDABackend(1)


def test_a_step_on_the_pool(cuda):
    x = Tensor(cuda.asarray(np.ones((512, 256))), cuda, True)  # 1 MiB
    cuda.zeros((7,), np.float32)
    y = None

    def work():
        nonlocal y
        y = gb.exp(x)
        gb.exp(y)
        y.sum().backward()

    report = memory(work, device=cuda)
    found = rows(report)
    assert report.device == "cuda:1" and report.source == "CuPy's memory pool"
    assert found["exp", "forward"].count == 2
    assert report.kept == 2 * MIB  # y and x's gradient
    assert report.peak >= 3 * MIB
    assert report.peak % 512 == 0
    assert not cuda.xp.pool.hooks


def test_the_other_devices_of_a_machine_are_not_counted(cuda):
    with cuda.memory_meter() as meter:
        with cuda.xp.cuda.Device(0):
            first = cuda.xp.zeros((1024,), np.float32)
        assert meter.read() == (0, 0)
        with cuda.xp.cuda.Device(1):
            second = cuda.xp.zeros((100,), np.float32)
            third = cuda.xp.zeros((1,), np.float32)
        del third
        assert meter.read() == (512, 1024)
        assert meter.read() == (512, 512)
        del first, second
        assert meter.read() == (0, 512)


# The command.
def test_the_command(capsys, tmp_path, monkeypatch):
    from gpubackprop.cli import main

    monkeypatch.chdir(tmp_path)
    settings = ["memory", "digits-mlp", "--device", "cpu", "--set", "optimizer.name='adam'"]
    assert main([*settings, "--batch-size", "256", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batch"] == 256 and found["optimizer_state"] == 2 * found["weights"] > 0
    assert {"linear"} <= {row["op"] for row in found["rows"]}
    assert main([*settings, "--batch-size", "256", "--accumulate", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["peak"] < found["peak"] / 2
    assert main(settings) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].startswith("held throughout: weights ") and "linear" in out
    assert list(tmp_path.iterdir()) == []


def test_the_hook_is_one_of_cupys():
    cupy = pytest.importorskip("cupy")
    from gpubackprop.backends.cuda.memory import PoolMemory

    meter = PoolMemory(cupy, 0)
    with meter._hook:
        event = {"device_id": 0, "mem_size": 512, "mem_ptr": 1, "pmem_id": 2}
        meter._hook.malloc_postprocess(**event, size=10)
        assert meter.read() == (512, 512)
        meter._hook.free_postprocess(**event)
        assert meter.read() == (0, 512)
