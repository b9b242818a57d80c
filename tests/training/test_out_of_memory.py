"""No memory left: the error says what asked and what holds the rest, and the run's checkpoint
stays."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import nn, optim
from gpubackprop.autograd.shortage import holdings
from gpubackprop.backends import get_backend
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.cuda.memory import lacks_memory
from gpubackprop.backends.memory import host_memory, parse_bytes
from gpubackprop.cli import main
from gpubackprop.errors import ConfigError, DeviceError, OutOfMemoryError
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.training import checkpoint as checkpoints
from gpubackprop.training.checkpoint import CheckpointFolder
from tests.backends import test_cuda_backend as fakes
from tests.backends.support import shim


class Failing:
    """Makes a kernel fail for lack of memory at one of its calls."""

    def __init__(self, monkeypatch, kernel: str, at: int) -> None:
        self.calls, backend = 0, get_backend("cpu")
        whole = getattr(backend, kernel)

        def call(*args, **kwargs):
            self.calls += 1
            if self.calls == at:
                np.empty(1 << 62, np.uint8)
            return whole(*args, **kwargs)

        monkeypatch.setattr(backend, kernel, call, raising=False)


def network() -> tuple[nn.Module, optim.Optimizer]:
    gb.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 50), nn.Tanh(), nn.Linear(50, 3))
    return model, optim.Adam(model.parameters(), lr=0.1)


def loss_of(model: nn.Module, device: str = "cpu") -> gb.Tensor:
    x = gb.tensor(np.ones((8, 100), np.float32), device=device)
    return F.cross_entropy(model(x), gb.tensor(np.zeros(8, np.int64), device=device))


def test_forward_names_the_operation_and_the_bytes(monkeypatch):
    model, _ = network()
    Failing(monkeypatch, "linear", 2)
    with pytest.raises(OutOfMemoryError, match="^linear: cpu has no memory for .* more") as found:
        loss_of(model)
    error = found.value
    assert isinstance(error, MemoryError) and isinstance(error.__cause__, MemoryError)
    assert (error.operation, error.device, error.nbytes) == ("linear", "cpu", 1 << 62)
    assert "--accumulate" in str(error) and "gb.checkpoint" in str(error)


def test_making_and_moving_a_tensor_name_its_shape(monkeypatch):
    with pytest.raises(OutOfMemoryError, match=r"^tensor \[1048576, 1048576, 262144\]: cpu has no"):
        gb.zeros((1 << 20, 1 << 20, 1 << 18))
    elsewhere = NumPyBackend()
    x = gb.tensor(np.ones((3, 5), np.float32))

    def none_left(*args):
        raise MemoryError

    monkeypatch.setattr(elsewhere, "asarray", none_left, raising=False)
    with pytest.raises(OutOfMemoryError, match=r"^tensor \[3, 5\]: cpu has no memory for what"):
        x.to(elsewhere)


def test_backward_names_what_holds_the_memory(monkeypatch):
    model, optimizer = network()
    loss_of(model).backward()
    optimizer.step()
    optimizer.zero_grad()
    loss = loss_of(model)
    Failing(monkeypatch, "tanh_backward", 1)
    with pytest.raises(OutOfMemoryError, match="^tanh backward: ") as found:
        loss.backward()
    held, section = found.value.held, optimizer.arena.sections[0]
    values = 4 * section.size
    assert held["parameters"] >= values and held["gradients"] >= values
    assert held["optimizer state"] >= 2 * values
    assert held["activations kept by the tape"] >= 4 * 8 * 50
    assert f"optimizer state {held['optimizer state'] / 1024:.1f} KiB" in str(found.value)


def test_memory_that_two_hold_is_counted_once():
    backend = NumPyBackend()  # nobody else's
    model, optimizer = network()
    model.to(backend)
    optimizer.arena.to(backend)
    x = gb.tensor(np.ones((8, 100), np.float32), device=backend)
    y = model[0](x)  # keeps x and the weight, which the arena holds
    found = holdings(backend)
    assert found == {
        "parameters": 4 * optimizer.arena.sections[0].size,
        "gradients": 4 * optimizer.arena.sections[0].size,
        "activations kept by the tape": 4 * 8 * 100,
    }
    assert holdings(backend, used=1_000_000)["other arrays"] == 1_000_000 - sum(found.values())
    del y
    assert "activations kept by the tape" not in holdings(backend)


def test_a_compiled_step_takes_its_counts_back(monkeypatch):
    model, optimizer = network()

    def step(x):
        optimizer.zero_grad()
        loss = (model(x) * model(x)).sum()
        loss.backward()
        optimizer.step()
        return loss

    compiled = gb.compile(step, fast=False)
    x = gb.tensor(np.ones((8, 100), np.float32))
    for _ in range(5):
        compiled(x)
    (entry,) = compiled.entries
    before = [list(s) for s in optimizer._steps]

    def none_left():
        raise MemoryError

    entry.replay.steps.insert(2, none_left)
    with pytest.raises(OutOfMemoryError, match="^a compiled step: ") as found:
        compiled(x)
    assert found.value.held["arenas of compiled steps"] >= entry.replay.plan.nbytes
    assert optimizer._steps == before


def kept(folder) -> dict[str, bytes]:
    found = CheckpointFolder(folder).read()
    return {k: v.tobytes() for k, v in found.tensors.items()} | {"meta": repr(found.meta).encode()}


def test_in_the_middle_of_training_the_checkpoint_stays(make, outcome, monkeypatch, tmp_path):
    whole = make(compile=False)
    whole.fit(3)
    trainer = make(out=tmp_path, compile=False, checkpoint_steps=5)
    with monkeypatch.context() as patch:
        Failing(patch, "tanh_backward", 12)
        with pytest.raises(OutOfMemoryError) as found:
            trainer.fit(3)
    words = str(found.value)
    assert words.startswith("step 12 (epoch 2, batch 4): tanh backward: cpu has no memory")
    assert f"the checkpoint in {tmp_path} is intact" in words
    assert CheckpointFolder(tmp_path).read().meta["progress"]["step"] == 10
    again = make(out=tmp_path, compile=False, checkpoint_steps=5)
    assert again.resume()
    again.fit(3)
    assert outcome(again) == outcome(whole)


@pytest.mark.parametrize("place", ["put together", "serialised", "written"])
def test_while_saving_the_checkpoint_before_it_stays(make, monkeypatch, tmp_path, place):
    trainer = make(out=tmp_path, compile=False)
    trainer.fit(1)
    before, names = kept(tmp_path), {p.name for p in tmp_path.iterdir()}

    def fail(*args, **kwargs):
        raise MemoryError

    with monkeypatch.context() as patch:
        if place == "put together":
            patch.setattr("gpubackprop.training.trainer.pack", fail)
        elif place == "serialised":
            patch.setattr("safetensors.numpy.save", fail)
        else:
            real, calls = checkpoints.write_atomic, []

            def write(path, data):
                calls.append(path)
                if len(calls) == 2:
                    raise MemoryError
                real(path, data)

            patch.setattr(checkpoints, "write_atomic", write)
        with pytest.raises(OutOfMemoryError, match="saving the checkpoint: cpu has no memory"):
            trainer.fit(2)
    assert kept(tmp_path) == before
    assert {p.name for p in tmp_path.iterdir()} == names  # nothing half-written is left


@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")
def test_a_limited_pool_of_a_gpu_says_so():
    backend = fakes.make()  # a GPU of its own, whose memory nobody else's tests use
    backend.limit_memory(300_000)
    assert backend.memory_state().limit == 300_000
    model, optimizer = network()
    model.to(backend)
    optimizer.arena.to(backend)
    big = gb.tensor(np.ones((500, 100), np.float32), device=backend)
    with pytest.raises(OutOfMemoryError) as found:
        model(big)
    error = found.value
    assert error.device == "cuda:0" and error.operation == "linear" and error.nbytes == 100_000
    used = backend.memory_state().used
    assert sum(error.held.values()) == used and error.held["other arrays"] >= 200_000
    assert "its pool is limited to 293.0 KiB" in str(error)
    assert "--gpu-memory-limit" in str(error) and "3.0 GiB of 8.0 GiB are free" in str(error)
    backend.limit_memory(None)
    assert backend.memory_state().limit is None
    model(big)


@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "g++ is there")
def test_events_time_calls():
    clock, done = fakes.make().clock(), []
    assert clock.source == "CUDA events"
    assert 0 < clock.seconds(lambda: done.append(1), 7) < 1 and len(done) == 7


@pytest.mark.parametrize(
    ("name", "status", "lacks"),
    [
        ("CUDARuntimeError", 2, True),
        ("CUDARuntimeError", 700, False),
        ("CUDADriverError", 2, True),
        ("CUBLASError", 3, True),
        ("CUBLASError", 2, False),
        ("ValueError", 2, False),
    ],
)
def test_what_the_libraries_say_when_memory_is_used_up(name, status, lacks):
    error = type(name, (RuntimeError,), {"status": status})()
    assert lacks_memory(error) is lacks
    assert lacks_memory(MemoryError())


def test_sizes():
    assert parse_bytes("8GiB") == 8 << 30 and parse_bytes(" 1.5 mb ") == 1_500_000
    assert parse_bytes("123") == 123
    for text in ("", "GiB", "8 light-years", "-1GiB", "0", "1e9", "nan"):
        with pytest.raises(ValueError, match="must be a size such as 8GiB"):
            parse_bytes(text)


def test_the_host_tells_its_memory():
    state = host_memory()
    if state.total is not None:
        assert state.total >= state.available > 0 and math.log2(state.total) > 20


def test_only_a_gpu_can_be_limited(capsys, tmp_path):
    with pytest.raises(DeviceError, match="only a GPU has a pool"):
        gb.limit_memory("1GiB", "cpu")
    for limit in (-1, 0, 0.5, True):
        with pytest.raises(ConfigError, match=f"limit must be a number of bytes .*, not {limit}"):
            gb.limit_memory(limit)
    with pytest.raises(ConfigError, match="limit_memory: limit must be a size"):
        gb.limit_memory("much")
    out = str(tmp_path / "run")
    arguments = ["train", "two-moons", "--out", out, "--device", "cpu"]
    assert main([*arguments, "--gpu-memory-limit", "1GiB"]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert main([*arguments, "--gpu-memory-limit", "much"]) == 2
    assert "must be a size such as 8GiB" in capsys.readouterr().err
