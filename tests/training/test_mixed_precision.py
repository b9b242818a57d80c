"""Training in mixed precision: as good as float32, and overflow is no accident."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gpubackprop import nn, optim, recipes
from gpubackprop.autograd.precision import current
from gpubackprop.backends.random import Generator, using
from gpubackprop.data import ArrayDataset, DataLoader
from gpubackprop.errors import CheckpointError, ConfigError, NonFiniteError
from gpubackprop.nn import functional as F  # noqa: N812
from gpubackprop.optim import GradScaler
from gpubackprop.training import Progress, Trainer
from gpubackprop.training.numerics import LEAST

pytest.importorskip("ml_dtypes")
MIXED = pytest.mark.parametrize("precision", ["bf16-mixed", "fp16-mixed"])
COMPILED = pytest.mark.parametrize("compile", [True, False], ids=["compiled", "eager"])


class Stop(Progress):
    """Ends the run after so many batches, as a signal does."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def batch(self, loss):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@MIXED
@COMPILED
def test_a_small_network_learns_as_in_float32(make, precision, compile):
    plain = make(compile=compile)
    mixed = make(compile=compile, precision=precision)
    expected, found = plain.fit(4).history, mixed.fit(4).history
    for a, b in zip(expected, found, strict=True):
        # 48 updates with dropout: the costs follow each other to two digits.
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=0.03)
        assert b["val_loss"] == pytest.approx(a["val_loss"], rel=0.05)
    assert all(p.dtype == p.grad.dtype == np.float32 for p in mixed.model.parameters())
    assert mixed.run.step == plain.run.step
    weights = zip(plain.model.parameters(), mixed.model.parameters(), strict=True)
    assert any((p.numpy() != q.numpy()).any() for p, q in weights)  # it was another computation
    assert current() == "float32"


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.filterwarnings("ignore:precision 'tf32' means float32")
def test_on_a_cpu_tf32_is_float32_bit_for_bit(make, outcome, precision):
    plain, other = make(), make(precision=precision)
    plain.fit(2)
    other.fit(2)
    assert outcome(plain) == outcome(other)
    assert "loss_scale" not in other.run.history[0]


def final(recipe, overrides, precision, data_dir=None, **options):
    made = recipes.load(recipe, [*overrides, f"train.precision={precision}"])
    job = recipes.build(made, data_dir=data_dir)
    return recipes.make_trainer(job, **options).fit(made.train.epochs).history[-1]


def assert_parity(recipe, overrides, rel, **options):
    plain = final(recipe, overrides, "float32", **options)
    for precision in ("bf16-mixed", "fp16-mixed"):
        mixed = final(recipe, overrides, precision, **options)
        for name in ("train_loss", "val_loss"):
            assert mixed[name] == pytest.approx(plain[name], rel=rel), (precision, name)
            assert mixed[name] != plain[name]


def test_parity_of_a_convolutional_recipe():
    """digits-cnn, 2 of its 10 epochs. Measured: within 1.0 % (bf16) and 0.1 % (fp16)."""
    assert_parity("digits-cnn", ["train.epochs=2"], rel=0.03)


@pytest.mark.data
def test_parity_of_a_gpt_recipe(data_root):
    """shakespeare-gpt, 25 updates of 4 windows. Measured: within 0.01 %."""
    short = ["train.epochs=1", "train.steps_per_epoch=25", "schedule.warmup_epochs=0.2"]
    small = ["train.batch_size=4", "train.validation=0.002"]
    folder = data_root / "tinyshakespeare" if (data_root / "input.txt").exists() else data_root
    assert_parity("shakespeare-gpt", short + small, rel=0.005, data_dir=folder, compile=False)


# Overflow.


@COMPILED
def test_a_scale_that_is_too_large_is_halved_and_training_goes_on(make, compile):
    made = make(
        precision="fp16-mixed", scaler=GradScaler("cpu", init_scale=2.0**20), compile=compile
    )
    seen, weights = [], []
    batches = iter(made.loader.batches(0))
    for _ in range(8):
        before = [p.numpy().copy() for p in made.model.parameters()]
        scale, skipped = made.numerics.scaler.get_scale(), made.numerics.scaler.skipped
        cost = made.update(next(batches))
        after = made.numerics.scaler
        seen.append((after.skipped - skipped, after.get_scale() / scale))
        changed = [
            (a != p.numpy()).any() for a, p in zip(before, made.model.parameters(), strict=True)
        ]
        weights.append(any(changed))
        assert math.isfinite(cost)
    assert seen[0] == (1, 0.5) and not weights[0]  # halved, and nothing moved
    assert seen[-1] == (0, 1.0) and weights[-1]  # and on it went
    assert [bool(s) for s, _ in seen] == [not w for w in weights]
    skipped = made.numerics.scaler.skipped
    assert made.run.step == 8
    assert {e["step"] for e in made.optimizer.state_dict()["state"].values()} == {8 - skipped}


def overflowing(every=2, precision="fp16-mixed", **options):
    """Two batches of 4 samples an epoch; every so many samples there is one with a number beyond
    65504, where float16 ends: the activations, and the loss, are then not finite."""
    x = np.ones((8, 2), np.float32)
    x[0::every, 0] = 1e6
    with using(Generator(3)):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    return Trainer(
        model,
        F.mse_loss,
        optim.SGD(model.parameters(), lr=0.0),
        loader=DataLoader(ArrayDataset(x, np.zeros((8, 2), np.float32)), 4),
        precision=precision,
        **options,
    )


@COMPILED
def test_a_loss_that_overflows_skips_the_step(compile, tmp_path):
    made = overflowing(every=8, compile=compile, out=tmp_path)  # the first batch of an epoch only
    result = made.fit(3)
    scaler = made.numerics.scaler
    assert scaler.skipped == 3 and scaler.get_scale() == 2.0**13
    assert result.steps == 6
    for k, line in enumerate(result.history, start=1):
        # The figures are those of the steps that had a cost.
        assert math.isfinite(line["train_loss"])
        assert (line["loss_scale"], line["skipped_steps"]) == (2.0 ** (16 - k), k)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["skipped_steps"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(p.numpy()).all() for p in made.model.parameters())


def test_an_epoch_without_any_cost():
    made = overflowing(every=4)
    assert made.fit(2).history[-1]["train_loss"] is None
    assert made.numerics.scaler.skipped == 4


def test_an_overflow_that_no_scale_helps_ends_the_run():
    made = overflowing(every=4, scaler=GradScaler("cpu", init_scale=LEAST * 8))
    with pytest.raises(NonFiniteError) as caught:
        made.fit(20)
    assert str(caught.value).startswith("step 4 (epoch 2, batch 2): astype in layer '0' (Linear)")
    assert "or precision 'bf16-mixed', which ends later, may help" in str(caught.value)
    assert made.numerics.scaler.skipped == 3


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed"])
def test_float32_and_bfloat16_have_the_range_for_it(precision):
    made = overflowing(every=4, precision=precision)
    assert math.isfinite(made.fit(1).history[-1]["train_loss"])


# The parts of a step.


@MIXED
@pytest.mark.parametrize("clip", [{}, {"clip_norm": 0.1}, {"clip_value": 0.01}])
def test_pieces_of_a_batch_add_up(make, precision, clip):
    settings = {"precision": precision, "clip_norm": None, **clip}
    whole, pieces = make(**settings), make(**settings, accumulate=4)
    for made in (whole, pieces):
        made.model[2].p = 0.0  # dropout draws by place in the batch
        made.fit(1)
    for p, q in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=0.1, atol=2e-2)


@pytest.mark.parametrize("clip", [{"clip_norm": 0.05}, {"clip_value": 1e-3}])
def test_clipping_does_not_see_the_scale(make, clip):
    """Bounds far below the scaled gradients: the update is bound as in float32."""
    settings = {"optimizer": optim.SGD, "schedule": None, "clip_norm": None, **clip}
    moves = []
    for precision in ("float32", "fp16-mixed"):
        made = make(precision=precision, **settings)
        before = [p.numpy().copy() for p in made.model.parameters()]
        made.update(next(iter(made.loader.batches(0))))
        moves.append([p.numpy() - b for p, b in zip(made.model.parameters(), before, strict=True)])
    for a, b in zip(*moves, strict=True):
        np.testing.assert_allclose(b, a, rtol=0.05, atol=2e-5)
    assert max(np.abs(m).max() for m in moves[0]) > 1e-5


# Checkpoints.


@pytest.mark.parametrize("after", [1, 3, 9, 20])
def test_a_resumed_run_has_the_same_bits(tmp_path, make, outcome, after):
    """Among steps that are skipped, and others after which the scale grows."""

    def trainer(**options):
        scaler = GradScaler("cpu", init_scale=2.0**24, growth_interval=5)
        return make(precision="fp16-mixed", scaler=scaler, **options)

    whole = trainer()
    whole.fit(4)
    with pytest.raises(KeyboardInterrupt):
        trainer(out=tmp_path, checkpoint_steps=1, progress=Stop(after + 1)).fit(4)
    again = trainer(out=tmp_path)
    assert again.resume() and again.run.step == after
    again.fit(4)
    assert outcome(again) == outcome(whole)
    assert again.numerics.state() == whole.numerics.state()
    assert whole.numerics.scaler.skipped > 1
    grown = [line["loss_scale"] for line in whole.run.history]
    assert len(set(grown)) > 1


def test_bfloat16_resumed(tmp_path, make, outcome):
    whole = make(precision="bf16-mixed")
    whole.fit(2)
    with pytest.raises(KeyboardInterrupt):
        make(precision="bf16-mixed", out=tmp_path, checkpoint_steps=5, progress=Stop(11)).fit(2)
    again = make(precision="bf16-mixed", out=tmp_path)
    assert again.resume()
    again.fit(2)
    assert outcome(again) == outcome(whole)


def test_a_run_is_not_resumed_in_another_precision(tmp_path, make):
    make(precision="fp16-mixed", out=tmp_path).fit(1)
    for other in ("float32", "bf16-mixed"):
        with pytest.raises(CheckpointError, match=f"'fp16-mixed' and cannot .* with '{other}'"):
            make(precision=other, out=tmp_path).resume()


def test_checkpoints_from_before_there_was_a_choice(tmp_path, make):
    made = make(out=tmp_path)
    made.fit(1)
    checkpoint = made.folder.read()
    del checkpoint.meta["precision"]
    made.folder.write(checkpoint)
    assert make(out=tmp_path).resume()
    with pytest.raises(CheckpointError, match="'float32' and cannot be resumed with 'fp16-mixed'"):
        make(out=tmp_path, precision="fp16-mixed").resume()


@pytest.mark.parametrize(
    "damage", [1, {"name": "fp16-mixed"}, {"name": "fp16-mixed", "scaler": None}]
)
def test_a_damaged_precision(tmp_path, make, damage):
    made = make(out=tmp_path, precision="fp16-mixed")
    made.fit(1)
    checkpoint = made.folder.read()
    checkpoint.meta["precision"] = damage
    made.folder.write(checkpoint)
    with pytest.raises(CheckpointError, match="precision is damaged|loss scale is missing"):
        make(out=tmp_path, precision="fp16-mixed").resume()


# Arguments.


def test_arguments_that_do_not_go_together(make):
    with pytest.raises(ConfigError, match="Trainer: unknown precision 'fp8'"):
        make(precision="fp8")
    with pytest.raises(ConfigError, match="a scaler goes with precision 'fp16-mixed', not 'bf16"):
        make(precision="bf16-mixed", scaler=GradScaler("cpu"))
    model = nn.Linear(2, 2).double()
    loader = DataLoader(ArrayDataset(np.ones((4, 2)), np.ones((4, 2))), 2)
    with pytest.raises(ConfigError, match=r"in float32, but one of shape \(2, 2\) is float64"):
        Trainer(
            model,
            F.mse_loss,
            optim.SGD(model.parameters()),
            loader=loader,
            precision="bf16-mixed",
        )


def test_what_the_loss_function_sees_is_up_to_it(make):
    """A cost in half precision is taken to float32 before it is scaled."""

    def cost(outputs, target):
        assert outputs.dtype == np.float16
        return F.relu(outputs)[0, 0]

    made = make(loss=cost, precision="fp16-mixed", compile=False, validation=None, accuracy=False)
    made.update(next(iter(made.loader.batches(0))))
    assert made.numerics.scaler.skipped == 0
