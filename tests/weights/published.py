# SPDX-License-Identifier: MIT
"""Layers of published networks by their own names, to write the networks down as functions."""

import torch
import torch.nn.functional as F

from openseg import create_model, load_weights

CLASSES = 5


class Published:
    """Layers in eval mode whose parameters are drawn, in float64, when they are first used.

    inplace_abn: `abn` is that norm, one module with a leaky slope and gains of both signs, and not
    a Sequential of BatchNorm2d and ReLU.
    """

    def __init__(self, *, inplace_abn=False):
        self.state = {}
        self.inplace_abn = inplace_abn
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, key, *shape, std=0.1, least=None):
        if key not in self.state:
            value = torch.randn(shape, generator=self.generator, dtype=torch.float64)
            self.state[key] = std * value if least is None else least + value.abs()
        return self.state[key]

    def conv(self, x, name, width, kernel=1, *, bias=True, **options):
        fan_in = x.shape[1] * kernel**2
        weight = self.draw(f"{name}.weight", width, x.shape[1], kernel, kernel, std=fan_in**-0.5)
        return F.conv2d(x, weight, self.draw(f"{name}.bias", width) if bias else None, **options)

    def batch_norm(self, x, name, gain=None):
        mean, var, bias = (
            self.draw(f"{name}.{key}", x.shape[1], least=least)
            for key, least in (("running_mean", None), ("running_var", 0.5), ("bias", None))
        )
        if gain is None:
            gain = self.draw(f"{name}.weight", x.shape[1], least=0.5)
        return F.batch_norm(x, mean, var, gain, bias)

    def abn(self, x, name):
        if not self.inplace_abn:
            return F.relu(self.batch_norm(x, f"{name}.0"))
        gain = self.draw(f"{name}.weight", x.shape[1], std=1.0)
        return F.leaky_relu(self.batch_norm(x, name, gain.abs() + 1e-5), 0.01)


def attend(query, key, value):
    """Maps [B, C, …]: every query attends to all keys."""
    weights = (query.shape[1] ** -0.5 * query.flatten(2).mT @ key.flatten(2)).softmax(-1)
    return (value.flatten(2) @ weights.mT).view(*value.shape[:2], *query.shape[2:])


def assert_heads_equal(
    published, net, backbone_key, *, prefix="", size=(3, 41), labels=(), **arguments
):
    """A network of ours loads what `published(net, aux map, main map)` drew, and equals it.

    The long map reaches across the largest dilations. backbone_key: of our backbone's -> theirs.
    prefix: of every key of the network. Returns the report of loading.
    """
    model = create_model(num_classes=CLASSES, **arguments).double().eval()
    generator = torch.Generator().manual_seed(1)
    channels = model.backbone.channels[-2:]
    maps = [torch.randn(1, c, *size, generator=generator, dtype=torch.float64) for c in channels]
    maps = [maps[0], maps[-1]]
    known_aux, known = published(net, *maps, *labels)
    backbone = {backbone_key(key): value for key, value in model.backbone.state_dict().items()}
    state = {f"{prefix}{key}": value for key, value in (backbone | net.state).items()}
    state["loss.criterion.weight"] = torch.ones(CLASSES)  # as HRNet's code has it
    report = load_weights(model, {"state_dict": state, "meta": {"epoch": 1}})
    assert report.ignored == ["loss.criterion.weight"]
    model.features = lambda _: maps
    with torch.no_grad():
        output = model(torch.zeros(1, 3, 1, 1), *labels)
    torch.testing.assert_close(output.main, known)
    if known_aux is not None:
        (found_aux,) = output.aux.values()
        torch.testing.assert_close(found_aux, known_aux)
    return report
