# SPDX-License-Identifier: MIT
"""The learning rate at every iteration."""

import pytest
import torch

from openseg.engine.schedules import poly_schedule, set_learning_rate


def test_poly_is_the_published_formula():
    factor = poly_schedule(40000)
    assert factor(0) == 1
    assert factor(10000) == pytest.approx(0.75**0.9)
    assert factor(39999) == pytest.approx((1 / 40000) ** 0.9)


@pytest.mark.parametrize(("warmup", "power"), [("linear", 1), ("quartic", 4)])
def test_warmup_rises_to_the_schedule(warmup, power):
    factor, plain = poly_schedule(100, 0.9, 10, warmup), poly_schedule(100)
    for iteration in range(10):
        ratio = ((iteration + 1) / 10) ** power
        assert factor(iteration) == pytest.approx(plain(iteration) * ratio)
    assert [factor(i) for i in range(10, 100)] == [plain(i) for i in range(10, 100)]


def test_groups_keep_their_ratio():
    groups = [{"params": [torch.zeros(1)], "base_lr": lr} for lr in (0.01, 0.1)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.05]
