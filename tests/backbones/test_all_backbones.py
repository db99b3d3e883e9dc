# SPDX-License-Identifier: MIT
"""What every family of backbones has to do, on short and narrow ones."""

import copy

import pytest
import torch

from openseg.backbones import HRNet, HRNet2x, ResNet, WideResNet38, hrnet, wide_resnet
from openseg.backbones.resnet import BasicBlock, Bottleneck, stage
from tests.backbones.test_wide_resnet import NARROW

FAMILIES = {
    "deep stem": lambda c: ResNet(BasicBlock, (1, 1, 2, 1), deep_stem=True, in_channels=c),
    "bottlenecks": lambda c: ResNet(
        Bottleneck, (1, 1, 1, 1), deep_stem=False, output_stride=16, in_channels=c
    ),
    "hrnet": lambda c: HRNet(4, in_channels=c),
    "hrnet2x": lambda c: HRNet2x(4, in_channels=c),
    "wide": lambda c: WideResNet38(in_channels=c),
}


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request):
    """In eval mode, for four channels; tests do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        # Tracing is slow: no exchange in the last stage, which is as that of the stage before.
        patch.setattr(hrnet, "_MODULES", {1: 1, 2: 1, 3: 1, 4: 0})
        patch.setattr(hrnet, "stage", lambda *a: stage(*a[:-1], [1]))  # of one block
        patch.setattr(wide_resnet, "_PLAN", NARROW)
        torch.manual_seed(0)
        network = FAMILIES[request.param](4)
    if request.param.startswith("hrnet"):  # whose weights are so small that nothing would be seen
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
    return network.eval()


def images(height, width, batch=1):
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(1))


def test_any_size_from_33_on(backbone):
    with torch.no_grad():
        for height, width in [(33, 34), (35, 36), (37, 40), (47, 63), (64, 65)]:
            maps = backbone(images(height, width))
            assert all(m.isfinite().all() for m in maps)
            assert len(maps) == len(backbone.channels)


def test_channels_last_is_equal(backbone):
    network = copy.deepcopy(backbone).double()
    x = images(50, 41).double()
    with torch.no_grad():
        known = network(x)
        network = network.to(memory_format=torch.channels_last)
        found = network(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, known)


def test_gradients_reach_every_parameter(backbone):
    network = copy.deepcopy(backbone).train()
    sum(m.square().mean() for m in network(images(33, 47, batch=2))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_bfloat16_autocast_stays_finite(backbone):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert all(m.isfinite().all() for m in backbone(images(33, 47)))


def test_compiles_and_exports(backbone):
    if isinstance(backbone, HRNet2x) or backbone.channels == (256, 512, 1024, 2048):
        pytest.skip("slow to trace, and made of what hrnet and the deep stem are made of")
    x = images(65, 39)
    with torch.no_grad():
        known = backbone(x)
        compiler = "eager" if isinstance(backbone, HRNet) else "aot_eager"  # which is slow there
        compiled = torch.compile(backbone, fullgraph=True, backend=compiler)
        torch.testing.assert_close(compiled(x), known, rtol=1e-4, atol=1e-5)
        free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        # in torch 2.11 a graph with max_pool2d is for sizes that leave the same remainder
        other = images(97, 71) if torch.__version__.startswith("2.11.") else images(64, 72)
        program = torch.export.export(backbone, (other,), dynamic_shapes={"images": free})
        torch.testing.assert_close(program.module()(x), known, rtol=1e-4, atol=1e-5)
