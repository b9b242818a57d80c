"""A resumed run has the same bits as one that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest

from gpubackprop import optim
from gpubackprop.errors import CheckpointError
from gpubackprop.training import EarlyStopping, Interrupted, Progress
from gpubackprop.training.checkpoint import CheckpointFolder

EPOCHS, STEPS = 6, 48  # 8 batches an epoch, the last of 10 samples


class Signal(Progress):
    """Sends this process a signal after so many batches, as a user or a system would."""

    def __init__(self, after: int, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.left, self.number = after, number

    def batch(self, loss: float) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
            time.sleep(0.001)  # let the interpreter see it


@pytest.mark.parametrize("after", [1, 5, 7, 8, 9, 16, 29, 47])
def test_interrupted_anywhere(tmp_path, make, outcome, after):
    whole = make(stopping=EarlyStopping())
    whole.fit(EPOCHS)
    first = make(stopping=EarlyStopping(), out=tmp_path, progress=Signal(after))
    with pytest.raises(Interrupted) as caught:
        first.fit(EPOCHS)
    assert caught.value.step == after and caught.value.folder == tmp_path
    second = make(stopping=EarlyStopping(), out=tmp_path)
    assert second.resume()
    assert second.run.step == after
    second.fit(EPOCHS)
    assert outcome(second) == outcome(whole)


@pytest.mark.parametrize("method", [optim.SGD, optim.Adagrad, optim.RMSprop, optim.AdamW])
def test_every_optimizer(tmp_path, make, outcome, method):
    whole = make(optimizer=method)
    whole.fit(2)
    with pytest.raises(Interrupted):
        make(optimizer=method, out=tmp_path, progress=Signal(11)).fit(2)
    again = make(optimizer=method, out=tmp_path)
    again.resume()
    again.fit(2)
    assert outcome(again) == outcome(whole)


def test_interrupted_again_and_again(tmp_path, make, outcome):
    whole = make()
    whole.fit(EPOCHS)
    for _ in range(STEPS):
        trainer = make(out=tmp_path, progress=Signal(7))
        trainer.resume()
        try:
            trainer.fit(EPOCHS)
            break
        except Interrupted:
            continue
    assert outcome(trainer) == outcome(whole)


def test_what_a_checkpoint_in_the_middle_of_an_epoch_is_for(tmp_path, make, outcome):
    """As after kill -9: the process ends with no warning, and the last checkpoint counts."""

    class Killed(BaseException):
        pass

    class Kill(Progress):
        def batch(self, loss):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

    whole = make()
    whole.fit(EPOCHS)
    for left in (3, 20, 21, 40):
        out = tmp_path / str(left)
        with pytest.raises(Killed):
            make(out=out, checkpoint_steps=5, progress=Kill()).fit(EPOCHS)
        again = make(out=out, checkpoint_steps=5)
        assert again.resume()
        again.fit(EPOCHS)
        assert outcome(again) == outcome(whole), left


def metrics(folder) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_metrics_have_neither_gaps_nor_duplicates(tmp_path, make):
    class Killed(BaseException):
        pass

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make(out=whole).fit(4)
    trainer = make(out=broken)
    plain, calls = trainer.folder.write, []

    def write(checkpoint):
        calls.append(checkpoint)
        if len(calls) == 4:  # the end of the third epoch
            raise Killed
        plain(checkpoint)

    trainer.folder.write = write
    with pytest.raises(Killed):
        trainer.fit(4)
    # Worse: a line of an epoch that the checkpoint does not know, and a half one.
    with open(broken / "metrics.jsonl", "a") as stream:
        stream.write('{"epoch": 3, "seconds": 1}\n{"epo')
    again = make(out=broken)
    again.resume()
    again.fit(4)
    assert len(metrics(broken)) == 4
    pairs = zip(metrics(whole), metrics(broken), strict=True)
    for left, right in [(json.loads(a), json.loads(b)) for a, b in pairs]:
        assert left.pop("seconds") > 0 and right.pop("seconds") > 0
        assert left == right


def test_more_epochs_later(tmp_path, make, outcome):
    whole = make(out=tmp_path / "a")
    whole.fit(4)
    again = make(out=tmp_path / "b")
    again.fit(2)
    later = make(out=tmp_path / "b")
    later.resume()
    later.fit(4)
    assert outcome(later) == outcome(whole)


def test_more_epochs_in_the_same_process(make, outcome):
    # fit leaves the best weights in the model, but goes on from the last ones.
    whole, parts = make(stopping=EarlyStopping()), make(stopping=EarlyStopping())
    whole.fit(5)
    parts.fit(2)
    parts.fit(5)
    assert outcome(parts) == outcome(whole)


def test_early_stopping_stays_stopped_and_keeps_the_best(tmp_path, make, outcome):
    def trainer():
        return make(stopping=EarlyStopping(patience=2, min_delta=0.02), out=tmp_path)

    first = trainer()
    result = first.fit(100)
    assert result.stopped_early and result.epochs < 100
    assert result.epochs == first.stopping.best_epoch + 2
    best = {k: v.tobytes() for k, v in first.model.state_dict().items()}
    again = trainer()
    again.resume()
    assert again.fit(100).epochs == result.epochs
    assert {k: v.tobytes() for k, v in again.model.state_dict().items()} == best
    figures = [line["val_loss"] for line in result.history]
    assert np.argmin(figures) + 1 >= first.stopping.best_epoch


def test_nothing_to_resume(tmp_path, make):
    assert not make(out=tmp_path / "new").resume()
    assert not make().resume()


def test_a_run_is_not_overwritten(tmp_path, make):
    make(out=tmp_path).fit(1)
    before = CheckpointFolder(tmp_path).read().meta["progress"]
    with pytest.raises(CheckpointError, match="holds a run already"):
        make(out=tmp_path).fit(1)
    assert CheckpointFolder(tmp_path).read().meta["progress"] == before


def test_other_settings_are_refused_by_name(tmp_path, make):
    make(out=tmp_path, config={"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}}).fit(1)
    other = make(out=tmp_path, config={"optimizer": {"lr": 0.1, "betas": [0.9, 0.5]}})
    with pytest.raises(CheckpointError, match=r"optimizer\.betas\.1 was 0\.99 and is now 0\.5"):
        other.resume()
    with pytest.raises(CheckpointError, match=r"optimizer was .* and is now absent"):
        make(out=tmp_path).resume()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": optim.SGD}, "SGD"),
        ({"stopping": EarlyStopping()}, "early stopping"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, make, options, words):
    make(out=tmp_path).fit(1)
    with pytest.raises(CheckpointError, match=words):
        make(out=tmp_path, **options).resume()


def damage_progress(meta):
    meta["progress"]["step"] = "3"


def damage_epoch(meta):
    meta["progress"]["epoch"] = -1


def damage_batch(meta):
    meta["progress"]["batch"] = 99


def damage_history(meta):
    meta["history"] = [1]


def damage_random(meta):
    meta["random"] = {"2.generator": ["x"]}


def damage_optimizer(meta):
    meta["optimizer"]["param_groups"] = 7


def damage_state(meta):
    meta["optimizer"]["state"] = {"0": 1}


def damage_step(meta):
    meta["optimizer"]["state"]["0"]["step"] = -4


def damage_groups(meta):
    meta["optimizer"]["param_groups"][0]["lr"] = "much"


HOSTILE = (
    damage_progress,
    damage_epoch,
    damage_batch,
    damage_history,
    damage_random,
    damage_optimizer,
    damage_state,
    damage_step,
    damage_groups,
)


@pytest.mark.parametrize("change", HOSTILE, ids=lambda f: f.__name__)
def test_hostile_values_behind_a_right_checksum(tmp_path, make, change):
    make(out=tmp_path).fit(1)
    folder = CheckpointFolder(tmp_path)
    checkpoint = folder.read()
    for key in ("format", "version", "serial"):
        checkpoint.meta.pop(key)
    change(checkpoint.meta)
    folder.write(checkpoint)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        make(out=tmp_path).resume()


def test_tensors_of_another_shape_or_use(tmp_path, make):
    make(out=tmp_path).fit(1)
    folder = CheckpointFolder(tmp_path)
    for name, array, words in (
        ("model/0.weight", np.zeros((3, 3), np.float32), "shape"),
        ("other/x", np.zeros(1), "unknown use"),
        ("optimizer/9/exp_avg", np.zeros(1), "missing"),
        ("model/9.weight", np.zeros(1), "unexpected"),
    ):
        checkpoint = folder.read()
        checkpoint.tensors[name] = array
        folder.write(checkpoint)
        with pytest.raises(CheckpointError, match=words):
            make(out=tmp_path).resume()
        folder.previous.replace(folder.manifest)


def test_a_second_signal_acts_as_usual(make):
    class Twice(Progress):
        def batch(self, loss):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        make(progress=Twice()).fit(1)
    assert not isinstance(caught.value, Interrupted)


def test_signals_are_given_back(make):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    make().fit(1)
    with pytest.raises(Interrupted):
        make(progress=Signal(3, signal.SIGTERM)).fit(1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_during_validation(tmp_path, make, outcome):
    class AtTheEnd(Progress):
        """The last batch of the second epoch is done; validation comes next."""

        def begin(self, epoch, epochs, batches, done):
            self.epoch = epoch

    whole = make()
    whole.fit(3)
    trainer = make(out=tmp_path, progress=AtTheEnd())
    plain = trainer._poll

    def poll():
        if trainer.progress.epoch == 2:
            signal.raise_signal(signal.SIGTERM)
        plain()

    trainer._poll = poll
    with pytest.raises(Interrupted) as caught:
        trainer.fit(3)
    assert caught.value.signum == signal.SIGTERM
    again = make(out=tmp_path)
    again.resume()
    assert (again.run.epoch, again.run.batch) == (1, 8)
    again.fit(3)
    assert outcome(again) == outcome(whole)
