# SPDX-License-Identifier: MIT
"""The loop: what happens at which iteration, and how it ends early."""

import os
import signal
from dataclasses import dataclass
from operator import attrgetter

import pytest
import torch

from openseg.engine import training
from openseg.engine.training import Plan, Progress, train
from openseg.errors import TrainingError
from tests.engine.tiny import batches, make_trainer


@dataclass
class Metrics:
    mean_iou: float

    def to_dict(self):
        return {"mean_iou": self.mean_iou}


class Diary:
    """Notes what the loop does, as (what, iteration) pairs."""

    def __init__(self, trainer, scores=()):
        self.trainer = trainer
        self.scores = iter(scores)
        self.notes = []
        self.records = []

    def on_step(self, iteration):
        pass

    def on_losses(self, record):
        self.records.append(record)

    def on_validation(self, iteration, metrics, is_best):
        self.notes.append(("best" if is_best else "not best", iteration))

    def validate(self, model, iteration):
        self.notes.append(("validate", iteration))
        return Metrics(next(self.scores, 0.5))

    def save(self, kind):
        self.notes.append((f"save {kind}", self.trainer.iteration))


def run(plan, scores=(), trainer=None, data=None, progress=None):
    trainer = trainer or make_trainer()
    diary = Diary(trainer, scores)
    progress = progress or Progress()
    data = data or batches()
    stopped = train(trainer, data, plan, progress, diary, diary.validate, diary.save)
    return diary, progress, stopped


def test_what_is_due_when():
    plan = Plan(8, log_every=2, validate_every=3, save_every=4)
    diary, progress, stopped = run(plan, [0.2, 0.4, 0.3])
    assert [record["iteration"] for record in diary.records] == [2, 3, 4, 6, 8]
    assert diary.notes == [
        *[("validate", 3), ("save best", 3), ("best", 3)],
        ("save last", 4),
        *[("validate", 6), ("save best", 6), ("best", 6)],
        *[("save last", 8), ("validate", 8), ("not best", 8), ("save last", 8)],
    ]
    assert (progress.best_mean_iou, progress.best_iteration) == (0.4, 6)
    assert progress.metrics == {"mean_iou": 0.3}
    assert stopped is None


def test_records_are_means_over_their_window():
    single, _, _ = run(Plan(4, log_every=1))
    pairs, _, _ = run(Plan(4, log_every=2))
    losses = [record["loss"] for record in single.records]
    means = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2]
    assert [record["loss"] for record in pairs.records] == pytest.approx(means)
    assert single.records[0]["lr"] == 0.1
    assert single.records[0]["memory_mib"] > 10  # this process holds PyTorch at least


def test_patience_ends_a_run_that_does_not_improve():
    diary, progress, _ = run(Plan(8, validate_every=1, patience=2), [0.1, 0.3, 0.2, 0.3, 0.9])
    assert diary.trainer.iteration == 4
    assert diary.notes[-1] == ("save last", 4)
    assert progress.best_iteration == 2


def test_a_best_from_before_the_resume_stays_best():
    diary, _, _ = run(Plan(2, validate_every=2), [0.4], progress=Progress(0.6, 1))
    assert ("save best", 2) not in diary.notes


def test_a_run_that_ended_in_its_validation_begins_with_it():
    trainer = make_trainer()
    trainer.iteration = 4
    plan = Plan(6, validate_every=4, save_every=4)
    progress = Progress(0.3, 2, awaits_validation=True)
    diary, _, _ = run(plan, [0.4, 0.2], trainer, progress=progress)
    assert diary.notes[:4] == [("validate", 4), ("save best", 4), ("best", 4), ("save last", 4)]
    assert (progress.best_iteration, progress.awaits_validation) == (4, False)


def test_patience_may_end_with_the_validation_that_a_run_begins_with():
    trainer = make_trainer()
    trainer.iteration = 4
    plan = Plan(8, validate_every=2, patience=1)
    diary, _, _ = run(plan, [0.2], trainer, progress=Progress(0.3, 2, awaits_validation=True))
    assert diary.notes == [("validate", 4), ("not best", 4), ("save last", 4)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_iteration_with_a_checkpoint(number):
    def interrupted():
        for index, batch in enumerate(batches()):
            if index == 2:
                os.kill(os.getpid(), number)
            yield batch

    usual = signal.getsignal(number)
    diary, _, stopped = run(Plan(8), data=interrupted())
    assert stopped == number
    assert diary.notes == [("save last", 3)]
    assert [record["iteration"] for record in diary.records] == [3]
    assert signal.getsignal(number) is usual


def test_an_interrupt_that_is_passed_on_is_one_wish():
    def passed_on():
        for batch in batches():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    diary, _, stopped = run(Plan(8), data=passed_on())
    assert stopped == signal.SIGINT
    assert diary.notes == [("save last", 1)]


def test_a_second_interrupt_acts_at_once(monkeypatch):
    monkeypatch.setattr(training, "_SAME_WISH_SECONDS", -1.0)

    def impatient():
        os.kill(os.getpid(), signal.SIGINT)
        yield next(batches())

    # it is ignored where a shell runs the tests in the background
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(Plan(8), data=impatient())
    finally:
        signal.signal(signal.SIGINT, usual)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_iteration_and_not_saved(value):
    def poisoned():
        for index, batch in enumerate(batches()):
            if index == 2:
                batch["image"] = torch.full_like(batch["image"], value)
            yield batch

    trainer = make_trainer(norm=False)
    diary = Diary(trainer)
    plan = Plan(8, log_every=2, save_every=4)
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) at iteration 3; .*lower train\.lr"):
        train(trainer, poisoned(), plan, Progress(), diary, diary.validate, diary.save)
    assert diary.notes == []


@pytest.mark.parametrize("spoilt", ["model.stem.weight", "model.norm.running_var", "best_model"])
def test_weights_that_are_not_finite_are_neither_validated_nor_saved(spoilt):
    trainer = make_trainer(ema_decay=0.9)

    def spoiling():
        for index, batch in enumerate(batches()):
            if index == 5:
                trainer.step = lambda *batch: (step(*batch), spoil())[0]
            yield batch

    def spoil():
        tensor = attrgetter(spoilt)(trainer)
        tensor = tensor.head.bias if spoilt == "best_model" else tensor
        tensor.detach().view(-1)[0] = float("inf")

    step = trainer.step
    diary = Diary(trainer)
    plan = Plan(8, log_every=1, validate_every=2, save_every=4)
    name = "head.bias" if spoilt == "best_model" else spoilt.removeprefix("model.")
    with pytest.raises(
        TrainingError, match=rf"{name} has values .* after iteration 6.*of iteration 4"
    ):
        train(trainer, spoiling(), plan, Progress(), diary, diary.validate, diary.save)
    assert diary.notes[-1] == ("save last", 4)


def test_an_error_before_the_first_checkpoint_says_that_there_is_none():
    with pytest.raises(TrainingError, match=r"nothing was saved: start anew.*lower train\.lr"):
        run(Plan(2), trainer=make_trainer(lr=1e38))
