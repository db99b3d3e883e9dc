# SPDX-License-Identifier: MIT
"""A step: micro batches, clipping, precision, averages; and the state that resumes it."""

import pytest
import torch

from openseg.engine.checkpoints import read_checkpoint, save_checkpoint
from openseg.engine.determinism import set_seed
from openseg.errors import CheckpointError
from tests.engine.tiny import assert_equal_states, make_batch, make_trainer


def run(trainer, first, last):
    for index in range(first, last):
        batch = make_batch(index)
        losses = trainer.step(batch["image"], batch["label"])
    return losses


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_micro_batches_do_not_change_a_step(micro_batch_size):
    whole = make_trainer(norm=False, dropout=0.0)
    parts = make_trainer(norm=False, dropout=0.0, micro_batch_size=micro_batch_size)
    losses = [run(trainer, 0, 3)["loss"] for trainer in (whole, parts)]
    torch.testing.assert_close(losses[0], losses[1])
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert parts.samples == 12


def test_frozen_norms_keep_their_statistics_and_learn_their_parameters():
    trainer = make_trainer(freeze_norm=True)
    before = {k: v.clone() for k, v in trainer.model.norm.state_dict().items()}
    run(trainer, 0, 2)
    after = trainer.model.norm.state_dict()
    assert torch.equal(after["running_mean"], before["running_mean"])
    assert torch.equal(after["running_var"], before["running_var"])
    assert not torch.equal(after["weight"], before["weight"])
    assert trainer.model.dropout.training


def test_clipping_bounds_the_first_update():
    trainer = make_trainer(lr=1.0, clip_grad_norm=1e-3)
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    run(trainer, 0, 1)
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert 0.9e-3 < (after - before).norm() <= 1.001e-3


def test_bf16_runs_the_network_in_low_precision_and_keeps_the_weights():
    trainer = make_trainer(amp="bf16")
    seen = []
    trainer.model.head.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    run(trainer, 0, 1)
    assert seen == [torch.bfloat16]
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_averages_follow_their_formula_and_norms_are_copied():
    trainer = make_trainer(ema_decay=0.9)
    expected = None
    for index in range(3):
        run(trainer, index, index + 1)
        weight = trainer.model.head.weight.detach().clone()
        expected = weight if expected is None else 0.9 * expected + 0.1 * weight
    averaged = trainer.best_model
    torch.testing.assert_close(averaged.head.weight, expected)
    assert torch.equal(averaged.norm.running_mean, trainer.model.norm.running_mean)


def test_channels_last_weights():
    trainer = make_trainer(channels_last=True)
    assert trainer.model.stem.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "micro_batch_size": 2}])
def test_resume_is_exact(tmp_path, options):
    set_seed(7)
    straight = make_trainer(**options)
    run(straight, 0, 8)

    set_seed(7)
    first = make_trainer(**options)
    run(first, 0, 4)
    parts = {"model": {}, "meta": {}, "config": {}, "metrics": {}}
    state = {**parts, **first.weights(), "training": first.training_state()}
    save_checkpoint(tmp_path / "last.pt", state)
    set_seed(123)
    second = make_trainer(**options)
    second.resume(read_checkpoint(tmp_path / "last.pt"))
    assert (second.iteration, second.samples) == (4, 16)
    run(second, 4, 8)

    assert_equal_states(straight.model.state_dict(), second.model.state_dict())
    assert_equal_states(straight.best_model.state_dict(), second.best_model.state_dict())
    for a, b in zip(straight.model.parameters(), second.model.parameters(), strict=True):
        momenta = straight.optimizer.state[a], second.optimizer.state[b]
        assert torch.equal(*(momentum["momentum_buffer"] for momentum in momenta))
    assert straight.learning_rate == second.learning_rate


def test_options_of_the_optimizer_come_from_the_new_run():
    first, second = make_trainer(lr=0.1), make_trainer(lr=0.3)
    run(first, 0, 1)
    second.resume({**first.weights(), "training": first.training_state()})
    assert second.optimizer.param_groups[0]["base_lr"] == 0.3


def test_a_checkpoint_of_another_network_is_refused():
    first, second = make_trainer(norm=True), make_trainer(norm=False)
    checkpoint = {**first.weights(), "training": first.training_state()}
    with pytest.raises(CheckpointError, match="does not fit this network"):
        second.resume(checkpoint)
