# SPDX-License-Identifier: MIT
"""`InPlaceABN`: the keys of the package of that name, and weights of batch norms."""

import copy

import pytest
import torch
from torch import nn

from openseg.layers import InPlaceABN


def test_keys_and_start():
    layer = InPlaceABN(3)
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    assert list(InPlaceABN(3, affine=False, track_running_stats=False).state_dict()) == []
    assert repr(InPlaceABN(3, activation="elu", activation_param=1.0)) == (
        "InPlaceABN(3, eps=1e-05, momentum=0.1, activation=elu(1.0))"
    )


def test_trains_and_evaluates_as_batch_norm_and_activation():
    torch.manual_seed(0)
    layer, plain = InPlaceABN(3, momentum=0.3), nn.BatchNorm2d(3, momentum=0.3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-0.5, 1.0, 2.0]))
        plain.weight.copy_(layer.weight.abs() + 1e-5)
    expected = nn.Sequential(plain, nn.LeakyReLU(0.01))
    for _ in range(2):
        x = torch.randn(2, 3, 4, 5)
        torch.testing.assert_close(layer(x), expected(x))
    torch.testing.assert_close(layer.running_var, plain.running_var)
    layer, expected = copy.deepcopy(layer).eval(), expected.eval()
    torch.testing.assert_close(layer(x), expected(x))


def test_without_running_statistics_the_batch_is_used_in_evaluation_too():
    layer, x = InPlaceABN(3, track_running_stats=False), torch.randn(2, 3, 4, 5)
    assert torch.equal(layer(x), layer.eval()(x))


@pytest.mark.parametrize("prefix", ["", "0."])
def test_weights_of_a_batch_norm_are_translated(prefix):
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1e-5, 0.3, 1.0, 7.0]))
        norm.running_mean.normal_()
    layer = InPlaceABN(4, activation="identity").eval()
    target = nn.Sequential(layer) if prefix else layer
    target.load_state_dict({prefix + key: value for key, value in norm.state_dict().items()})
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(layer(x), norm.eval()(x), rtol=1e-6, atol=1e-6)


def test_gains_that_it_cannot_have_are_refused():
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.25, 0.0, 2.0]))
    with pytest.raises(RuntimeError, match=r"0.weight is of a batch norm.*1 \(-0.25\), 2 \(0\)"):
        nn.Sequential(InPlaceABN(4)).load_state_dict(nn.Sequential(norm).state_dict())


def test_its_own_negative_weights_are_loaded_as_they_are():
    layer, other = InPlaceABN(2), InPlaceABN(2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-1.0, 1.0]))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
