"""``gpubackprop bench``: what it counts, measures, names and writes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import gpubackprop as gb
from gpubackprop import recipes
from gpubackprop.backends import get_backend
from gpubackprop.backends.cpu.backend import NumPyBackend
from gpubackprop.backends.timing import HostClock
from gpubackprop.bench import agreement, determinism, kernels, networks, show
from gpubackprop.bench.kernels import CASES, Sizes
from gpubackprop.bench.measure import AbsentError, Candidate, interleaved
from gpubackprop.bench.replayed import native, replayed
from gpubackprop.cli import main
from gpubackprop.data import one_hot
from gpubackprop.optim import clip_grad_norm_
from gpubackprop.recipes.build import build_loss
from gpubackprop.recipes.updates import make_optimizer
from tests.backends import test_cuda_backend as fakes
from tests.backends.support import shim

TINY = Sizes(1 << 16, 64, 4, 1)
QUICK = ["--rounds", "1", "--seconds", "0.001", "--size", "64KiB"]


@pytest.fixture
def small(monkeypatch):
    """The products are small whatever the machine can do."""
    from gpubackprop.bench import run

    monkeypatch.setattr(run, "quick_sizes", lambda backend: TINY)


# Bytes and multiply-adds by hand. 64 KiB: 8,192 elements at 8 bytes, 5,461 at 12 (rows of 1,024: 5
# of them), 2,340 at 28. A 3 x 3 kernel from 64 to 64 channels at 32 x 32 places of 4 images.
# Attention: of 1,024 queries number i sees i keys, 64 features, 12 heads.
HAND = {
    "copy": (65536, 0),
    "update": (65520, 0),
    "layer-norm": (65536, 0),
    "layer-norm-backward": (12 * 5 * 1024, 0),
    "softmax-cross-entropy": (65536, 0),
    "gelu-backward": (65532, 0),
    "gemm-bf16": (0, 2 * 64**3),
    "conv-weight": (0, 2 * 4 * 32 * 32 * 64 * 64 * 9),
    "attention": (0, 2 * 2 * 12 * (1024 * 1025 // 2) * 64),
    "attention-backward": (0, 5 * 2 * 12 * (1024 * 1025 // 2) * 64),
}


@pytest.mark.parametrize("name", HAND)
def test_bytes_and_operations_are_those_of_a_hand_count(name):
    assert CASES[name].worth(TINY) == HAND[name]


def test_every_ceiling_is_a_kernel_that_is_its_own():
    for case in CASES.values():
        assert CASES[case.ceiling].ceiling == case.ceiling


def test_sizes_follow_the_rates():
    sizes = Sizes.fitting(3e12, 5e13)
    assert (sizes.nbytes, sizes.gemm) == (1 << 30, 8192)
    assert Sizes.fitting(1e10, 1e11).nbytes == 1 << 26
    assert sizes.with_bytes(5).gemm == 8192 and sizes.with_bytes(5).nbytes == 5


def places():
    yield "cpu", get_backend("cpu")
    if not shim.missing():
        yield "fake", fakes.BACKEND


@pytest.mark.parametrize(("where", "backend"), list(places()))
@pytest.mark.parametrize("name", [n for n in CASES if "attention" not in n])
def test_kernels_run(where, backend, name):
    if where == "fake" and name in ("gemm-bf16", "conv-input"):
        pytest.skip("the shim has no bfloat16, and is slow at convolutions")
    try:
        work = CASES[name].work(backend, TINY)
    except AbsentError as error:
        assert name == "gemm-tf32" and "has no TF32 units" in str(error)
        return
    before = backend.precision
    work.call()
    assert backend.precision == before


def needs_native():
    pytest.importorskip("numba", reason="native kernels need the extra 'fast'")
    if not native(get_backend("cpu")):
        pytest.skip("this NumPy does not bring the BLAS that native kernels call")


@pytest.mark.parametrize("name", ["update", "gelu", "gemm-float32", "attention-backward"])
def test_a_kernel_of_a_step_runs_natively_and_does_its_work(name):
    needs_native()
    backend = get_backend("cpu")
    run = replayed(CASES[name].work(backend, Sizes(1 << 14, 32, 1, 1)).call, backend)
    assert "1 run natively in 1 program(s)" in run.explain()


def test_a_replayed_kernel_writes_its_whole_result():
    needs_native()
    backend = get_backend("cpu")
    x, y = np.linspace(-1, 1, 64, dtype=np.float32), np.zeros(64, np.float32)
    run = replayed(lambda: backend.copyto(y, backend.gelu(x)), backend)
    y[:] = 0
    run()
    assert np.abs(y - backend.gelu(x)).max() < 1e-6 and (y != 0).sum() >= 63


def test_on_a_device_whose_steps_run_natively_both_ways_are_timed(small, capsys):
    needs_native()
    assert main(["bench", "--devices", "cpu", "--only", "gelu", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "cpu: this project, in a compiled step, with native kernels\n" in out
    assert len(re.findall(r"^gelu +cpu  +\d", out, re.M)) == 1
    assert len(re.findall(r"^gelu +cpu NumPy +\d", out, re.M)) == 1
    assert len(re.findall(r"^gemm-tf32 +absent: cpu has no TF32 units$", out, re.M)) == 1


def test_a_contender_has_one_colour_in_both_pictures(monkeypatch, tmp_path):
    axes = pytest.importorskip("matplotlib.axes")
    drawn = []
    right = axes.Axes.bar

    def bar(self, *args, label, color, **kwargs):
        drawn.append((label, color))
        return right(self, *args, label=label, color=color, **kwargs)

    monkeypatch.setattr(axes.Axes, "bar", bar)
    row = {"seconds": 2.0, "lowest": 1.0, "highest": 3.0}
    kernel = {**row, "of_ceiling": 0.5}
    report = {
        "machine": {"processor": "one", "cores": 2, "gpus": []},
        "recipes": {"a": {"contenders": {"cpu": row, "torch cpu": row}}},
        "kernels": {"b": {n: kernel for n in ("cpu", "cpu NumPy", "torch cpu")}, "c": {}},
    }
    show.chart(report, tmp_path / "bench.png")
    assert len(drawn) == 5 and len(set(drawn)) == 3 and len({c for _, c in drawn}) == 3


def test_an_unsteady_figure_is_named():
    rows = {"cpu": {"lowest": 1.0, "highest": 1.9}, "torch cpu": {"lowest": 1.0, "highest": 2.1}}
    report = {"recipes": {"a": {"contenders": rows}}, "kernels": {"b": rows, "c": {"cpu": {}}}}
    assert list(show._unsteady(report)) == ["b (torch cpu)", "a (torch cpu)"]


def test_rates_have_units_that_can_be_read():
    assert show._rate("gemm-float32", 9.85e10) == "98.5 GFLOP/s"
    assert show._rate("gemm-float32", 5.1e13) == "51 TFLOP/s"
    assert show._rate("gelu", 2.5e12) == "2500.0 GB/s"


def test_an_attention_runs():
    for name in ("attention", "attention-backward"):
        CASES[name].work(get_backend("cpu"), TINY).call()


def test_products_without_units_are_left_out(monkeypatch):
    monkeypatch.setattr(kernels, "SLOWEST", 0.0)
    with pytest.raises(AbsentError, match="cpu has no bfloat16 units: a product would take"):
        CASES["gemm-bf16"].work(get_backend("cpu"), Sizes(1 << 16, 128, 4, 1))


def test_contenders_take_turns_and_one_that_fails_is_named():
    order: list[str] = []

    class Counter(HostClock):
        def __init__(self, name):
            self.name = name

        def seconds(self, call, calls=1):
            order.append(self.name)
            call()
            return {"a": 1.0, "b": 3.0}[self.name] * calls

    def fail():
        if order.count("b") > 3:
            raise ValueError("no\nmore")

    timings, absent = interleaved(
        {"a": Candidate(lambda: None, Counter("a")), "b": Candidate(fail, Counter("b"))}, 3, 0.5
    )
    assert order[4:6] == ["a", "b"] and order[4:].count("a") == 3
    assert timings["a"].seconds == timings["a"].lowest == 1.0 and timings["a"].rounds == 3
    assert set(timings) == {"a"} and absent == {"b": "ValueError: no more"}


def test_the_report_is_written_and_drawn(small, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["bench", "--devices", "cpu", "--only", "gelu,two-moons", *QUICK]
    assert main([*arguments, "--json", str(file), "--chart", str(picture)]) == 0
    out = capsys.readouterr().out
    report = json.loads(file.read_text())
    assert list(report["kernels"]) == ["copy", "gemm-float32", "gemm-tf32", "gemm-bf16", "gelu"]
    row, ceiling = report["kernels"]["gelu"]["cpu"], report["ceilings"]["cpu"]["copy"]
    assert row["bytes_per_s"] == pytest.approx(65536 / row["seconds"])
    assert row["of_ceiling"] == pytest.approx(row["bytes_per_s"] / ceiling)
    assert report["kernels"]["copy"]["cpu"]["of_ceiling"] <= 1
    assert report["kernels"]["gemm-tf32"]["cpu"] == {"absent": "cpu has no TF32 units"}
    moons = report["recipes"]["two-moons"]
    assert moons["contenders"]["cpu"]["samples_per_s"] == pytest.approx(
        moons["samples"] / moons["contenders"]["cpu"]["seconds"]
    )
    assert 0 < moons["contenders"]["cpu"]["gradient_error"] < 1e-5
    assert re.search(r"^two-moons +cpu +[\d.]+ +1\.00 ", out, re.M)
    memory = moons["contenders"]["cpu"]["memory"]
    assert memory["peak"] > memory["held"]["parameters"] > 0
    assert {"gradients", "optimizer state"} <= set(memory["held"])
    assert "absent: cpu has no TF32 units" in out and "GB/s" in out and "two-moons" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_device_or_library_that_cannot_be_used_is_one_line(small, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "jax", None)
    file = tmp_path / "bench.json"
    arguments = ["--vs", "jax", "--only", "gelu", "--json", str(file), *QUICK]
    assert main(["bench", "--devices", "cpu,cuda:99", *arguments]) == 0
    lines = [x for x in capsys.readouterr().err.splitlines() if "is left out" in x]
    assert len(lines) == 2 and lines[0].startswith("cuda:99 is left out: device 'cuda:99'")
    assert lines[1].startswith("jax cpu is left out: not installed")
    assert set(json.loads(file.read_text())["absent"]) == {"cuda:99", "jax cpu"}


def test_without_any_device_it_is_an_error(capsys):
    assert main(["bench", "--devices", "cuda:99"]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("gpubackprop: error: device 'cuda:99'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "gulu"], "did you mean 'gelu'"),
        (["--vs", "tensorflow"], "unknown library"),
        (["--devices", "tpu"], "unknown device"),
        (["--rounds", "0"], "--rounds"),
        (["--seconds", "nan"], "a number of seconds"),
        (["--size", "big"], "must be a size"),
        (["--json", "/nowhere/at/all.json"], "does not exist"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, arguments, words):
    assert main(["bench", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err


def test_what_cannot_be_written_or_limited_is_said_before_anything_is_measured(
    capsys, tmp_path, monkeypatch
):
    measured = []
    monkeypatch.setattr("gpubackprop.cli.bench.report", lambda *_: measured.append(1))
    given = ["bench", "--devices", "cpu", "--only", "copy"]
    assert main([*given, "--gpu-memory-limit", "1GiB"]) == 1
    assert "the memory of cpu cannot be limited" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*given, "--chart", str(tmp_path / "x.png")]) == 2
    assert "pip install 'gpubackprop[plot]'" in capsys.readouterr().err
    assert not measured


def test_every_recipe_has_made_up_data():
    for name in recipes.names():
        made = networks.make(name)
        data = networks.split(made)
        assert len(data.train) == networks.BATCHES * made.samples
        assert data.train[0][0].shape == made.shape


def test_a_recipe_on_other_data_is_left_out(tmp_path):
    text = recipes.text("digits-mlp").replace('name = "digits"\n', 'name = "npz"\npath = "x.npz"\n')
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(AbsentError, match="no numbers can be made up in place of the data 'npz'"):
        networks.make(str(path))


def test_two_runs_of_a_recipe_give_the_same_bits(monkeypatch):
    backend = get_backend("cpu")
    assert determinism.recipe("digits-mlp", backend) == {"steps": 4, "same_bits": True}
    drift = iter(range(100))
    real = determinism.costs
    monkeypatch.setattr(determinism, "costs", lambda *a, **k: [*real(*a, **k), 1e-9 * next(drift)])
    assert determinism.recipe("digits-mlp", backend)["same_bits"] is False


class Hasty(NumPyBackend):
    """Native numerics add up in another order at each call."""

    def undetermined(self):
        return frozenset({"scatter_take"})

    def with_numerics(self, numerics):
        return Hasty(numerics)

    def scatter_take(self, dy, indices, axis, size):
        if self.numerics == "native":
            order = np.random.default_rng().permutation(len(dy))
            dy, indices = dy[order], indices[order]
        return super().scatter_take(dy, indices, axis, size)


def test_what_repeatable_bits_cost(monkeypatch):
    monkeypatch.setattr(determinism, "ROWS", 50)
    found = determinism.kernels(Hasty(), 2, 0.001)
    scatter = found["scatter_take"]
    assert scatter["same_bits"] == {"deterministic": True, "native": False}
    seconds = scatter["seconds"]
    assert scatter["cost"] == pytest.approx(seconds["deterministic"] / seconds["native"])
    assert found["conv_weight"] == {"absent": "cpu has one way only, which is repeatable"}
    report = {"determinism": {"cpu": {"kernels": found, "recipes": {}}}}
    assert show.repeatable(report)
    scatter["same_bits"]["deterministic"] = False
    assert not show.repeatable(report)
    assert "NOT the same bits" in show._determinism(report)


@pytest.mark.peers
@pytest.mark.parametrize("name", CASES)
def test_pytorch_has_every_kernel(name):
    pytest.importorskip("torch", reason="PyTorch is not installed; make peers installs it")
    from gpubackprop.bench.peers import load, with_torch

    assert list(with_torch.CASES) == list(CASES)
    peer = load("torch", "cpu")
    if name == "gemm-tf32":
        with pytest.raises(AbsentError, match="no TF32"):
            peer.work(name, TINY)
        return
    assert peer.clock.seconds(peer.work(name, TINY), 2) > 0


@pytest.mark.peers
@pytest.mark.parametrize("name", CASES)
def test_jax_has_every_kernel(name):
    pytest.importorskip("jax", reason="JAX is not installed; make peers installs it")
    from gpubackprop.bench.peers import load, with_jax

    assert list(with_jax.CASES) == list(CASES)
    peer = load("jax", "cpu")
    if name == "gemm-tf32":
        with pytest.raises(AbsentError, match="no TF32"):
            peer.work(name, TINY)
        return
    assert peer.clock.seconds(peer.work(name, TINY), 2) > 0


DEEP = ("cifar-resnet", "pictures")
"""XLA takes a while to compile these."""


def costs_of(made, steps):
    """Costs of the first steps, operation by operation, at the recipe's first rate."""
    recipe = made.recipe
    model = recipes.build_model(recipe, made.shape, made.classes)
    chosen, loss_of = recipe.optimizer, build_loss(recipe)
    optimizer = make_optimizer(chosen.name, chosen.options, model.named_parameters())
    found = []
    for x, target in made.batches[:steps]:
        if recipe.loss.name == "quadratic":
            target = one_hot(target, made.classes, x.dtype)
        optimizer.zero_grad()
        loss = loss_of(model(gb.tensor(x)), gb.tensor(target))
        loss.backward()
        if recipe.train.clip_norm is not None:
            clip_grad_norm_(optimizer, recipe.train.clip_norm)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.peers
@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in DEEP)) for n in recipes.names()],
)
def test_twins_have_the_recipes_gradients_and_updates(name, library):
    pytest.importorskip(library, reason=f"{library} is not installed; make peers installs it")
    from gpubackprop.bench.peers import load

    wanted = agreement.reference(networks.first(networks.make(name), 4))
    twin = load(library, "cpu").twin(wanted.made, wanted.weights)
    assert agreement.check(wanted, twin.gradients) < 1e-3
    mine = costs_of(wanted.made, 3)  # the second tells the first update, the third its means
    assert [twin.step() for _ in mine] == pytest.approx(mine, rel=2e-3)
    assert len({round(c, 6) for c in mine}) == 3


@pytest.mark.peers
@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("name", ["two-moons", "digits-cnn", "mnist-nielsen"])
def test_twins_train(name, library):
    pytest.importorskip(library, reason=f"{library} is not installed; make peers installs it")
    from gpubackprop.bench.peers import load

    made = networks.make(name)
    run = load(library, "cpu").twin(made, agreement.reference(made).weights).step
    costs = [run() for _ in range(40)]
    assert np.mean(costs[-4:]) < np.mean(costs[:4])


@pytest.mark.peers
def test_weights_of_another_network_are_refused():
    pytest.importorskip("jax", reason="JAX is not installed; make peers installs it")
    from gpubackprop.bench.peers import load

    made = networks.make("two-moons")
    weights = agreement.reference(made).weights
    with pytest.raises(AbsentError, match="JAX's twin leaves 1 of the parameters out"):
        load("jax", "cpu").twin(made, [*weights, weights[0]])
    with pytest.raises(AbsentError, match="more parameters than the recipe's network"):
        load("jax", "cpu").twin(made, weights[:-1])


def test_another_gradient_is_named_and_not_timed():
    wanted = agreement.reference(networks.make("digits-mlp"))
    right = agreement.ours(wanted.made, get_backend("cpu"))
    assert agreement.check(wanted, lambda: right) < 1e-5
    wrong = [*right[:-1], right[-1] * 1.1]
    with pytest.raises(AbsentError, match="not timed: its gradient by 4.bias is 0.1 of its length"):
        agreement.check(wanted, lambda: wrong)
    with pytest.raises(AbsentError, match="is nan of its length"):
        agreement.check(wanted, lambda: [*right[:-1], right[-1] * np.nan])
    with pytest.raises(AbsentError, match=r"by 4.bias is \(3,\), not \(10,\)"):
        agreement.check(wanted, lambda: [*right[:-1], right[-1][:3]])


@pytest.mark.gpu
@pytest.mark.parametrize("name", recipes.names())
def test_two_runs_on_a_gpu_give_the_same_bits(name):
    found = determinism.recipe(name, get_backend("cuda"))
    assert found["same_bits"], found


@pytest.mark.gpu
def test_repeatable_kernels_on_a_gpu():
    found = determinism.kernels(get_backend("cuda"), 2, 0.01)
    assert found["scatter_take"]["same_bits"]["deterministic"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_kernels_run_on_a_gpu(name):
    backend = get_backend("cuda")
    work = CASES[name].work(backend, TINY)
    assert backend.clock().seconds(work.call, 2) > 0
