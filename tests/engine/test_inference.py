# SPDX-License-Identifier: MIT
"""Inference against the protocol written out once more in plain PyTorch and NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openseg.engine.inference import Inference, window_starts


class Net(nn.Module):
    """Stride 4, not symmetric under mirroring, and with a view of the whole image."""

    def __init__(self, num_classes=5, align_corners=True):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.conv = nn.Conv2d(3, num_classes, 5, stride=4, padding=2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=generator))
        self.drop = nn.Dropout2d(0.5)
        self.align_corners = align_corners
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        logits = self.drop(self.conv(images))
        return SimpleNamespace(main=logits + logits.mean((-2, -1), keepdim=True))


def image(height, width, batch=()):
    return torch.randn(*batch, 3, height, width, generator=torch.Generator().manual_seed(7))


def bilinear(x, size, align_corners=True):
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def logits_of(net, images):
    """Logits at the size of the images, in eval mode."""
    net.eval()
    with torch.no_grad():
        return bilinear(net(images).main, images.shape[-2:], net.align_corners)


def slide_by_numpy(net, images, crop, stride):
    """Windows enumerated pixel by pixel: each starts a stride after the last, or at the border."""
    height, width = images.shape[-2:]
    total, count = np.zeros((5, height, width)), np.zeros((height, width))
    tops = [min(t, height - crop[0]) for t in range(0, height - crop[0] + stride[0], stride[0])]
    lefts = [min(x, width - crop[1]) for x in range(0, width - crop[1] + stride[1], stride[1])]
    for top in tops:
        for left in lefts:
            window = images[..., top : top + crop[0], left : left + crop[1]]
            logits = logits_of(net, window)[0].numpy()
            total[:, top : top + crop[0], left : left + crop[1]] += logits
            count[top : top + crop[0], left : left + crop[1]] += 1
    assert count.min() >= 1
    return torch.from_numpy(total / count)[None]


def assert_same(result, logits):
    """Labels and confidence as the softmax of float logits [1, K, H, W] gives them."""
    labels, confidence = result
    expected, expected_labels = logits.double().softmax(1).max(1)
    assert labels.dtype == torch.uint8
    assert confidence.dtype == torch.float32
    # float32 sums of values up to about 40: their rounding, not the protocol, decides ties.
    torch.testing.assert_close(confidence, expected[0].float(), atol=2e-5, rtol=0)
    top, second = logits.topk(2, dim=1).values.unbind(1)
    clear = (top - second)[0] > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(labels[clear].long(), expected_labels[0][clear])


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (64, 64)])
@pytest.mark.parametrize("align_corners", [True, False])
def test_whole(size, align_corners):
    net, x = Net(align_corners=align_corners), image(*size)
    assert_same(Inference(net)(x, confidence=True), logits_of(net, x[None]))


def test_batch_equals_single_images_and_labels_come_alone_by_default():
    infer, x = Inference(Net()), image(20, 31, (2,))
    labels = infer(x)
    assert labels.shape == (2, 20, 31)
    assert torch.equal(labels, torch.stack([infer(x[0]), infer(x[1])]))


def test_flip():
    net, x = Net(), image(33, 47)
    mirrored = logits_of(net, x[None].flip(-1)).flip(-1)
    result = Inference(net, flip=True)(x, confidence=True)
    assert_same(result, (logits_of(net, x[None]) + mirrored) / 2)


def test_several_scales_and_flip():
    net, x = Net(), image(33, 47)
    scales, logits = (0.5, 1.0, 1.75), 0
    for scale in scales:
        scaled = bilinear(x[None], (int(33 * scale), int(47 * scale)))
        for pixels, back in ((scaled, lambda y: y), (scaled.flip(-1), lambda y: y.flip(-1))):
            logits = logits + bilinear(back(logits_of(net, pixels)), (33, 47))
    result = Inference(net, scales=scales, flip=True)(x, confidence=True)
    assert_same(result, logits / 6)
    assert {shape[-2:] for shape in net.seen} == {(16, 23), (33, 47), (57, 82)}


def test_size_brings_the_labels_back_to_the_original():
    net, x = Net(), image(33, 47)
    full = F.interpolate(logits_of(net, x[None]), (50, 21), mode="bicubic", align_corners=False)
    assert_same(Inference(net)(x, size=(50, 21), confidence=True), full)


@pytest.mark.parametrize("stride", [None, (5, 9)])
def test_slide(stride):
    net, x = Net(), image(33, 47)
    infer = Inference(net, mode="slide", crop_size=(16, 20), stride=stride)
    assert_same(
        infer(x, confidence=True), slide_by_numpy(net, x[None], (16, 20), stride or (16, 20))
    )


def test_slide_over_scales_sees_small_scales_whole():
    net, x = Net(), image(33, 47)
    infer = Inference(net, mode="slide", crop_size=(24, 24), scales=(0.75, 1.5))
    labels = infer(x, confidence=True)
    small, large = bilinear(x[None], (24, 35)), bilinear(x[None], (49, 70))
    parts = logits_of(net, small), slide_by_numpy(net, large, (24, 24), (24, 24))
    full = [bilinear(part.float(), (33, 47)) for part in parts]
    assert_same(labels, (full[0] + full[1]) / 2)


def test_every_scale_slides_where_asked_for():
    net, x = Net(), image(33, 47)
    infer = Inference(net, "slide", (24, 24), scales=(0.75,), slide_from=0)
    logits = slide_by_numpy(net, bilinear(x[None], (24, 35)), (24, 24), (24, 24))
    assert_same(infer(x, confidence=True), bilinear(logits.float(), (33, 47)))
    assert {shape[-2:] for shape in net.seen} == {(24, 24)}


@pytest.mark.parametrize("options", [{}, {"scales": (0.5, 1.0)}, {"flip": True}])
def test_padding_to_a_multiple_is_cut_off_again(options):
    net, x = Net(), image(33, 47)
    padded = torch.zeros(3, 40, 48)
    padded[:, :33, :47] = x
    labels, confidence = Inference(net, **options)(padded, confidence=True)
    cut = Inference(net, **options, multiple=8)(x, confidence=True)
    assert torch.equal(cut[0], labels[:33, :47])
    assert torch.equal(cut[1], confidence[:33, :47])
    batch = Inference(net, **options, multiple=8)(x.expand(2, -1, -1, -1))
    assert torch.equal(batch, cut[0].expand(2, -1, -1))


def test_padding_goes_before_the_labels_are_brought_to_another_size():
    net, x = Net(), image(33, 47)
    padded = torch.zeros(1, 3, 40, 48)
    padded[..., :33, :47] = x
    logits = logits_of(net, padded)[..., :33, :47]
    full = F.interpolate(logits, (50, 21), mode="bicubic", align_corners=False)
    assert_same(Inference(net, multiple=8)(x, size=(50, 21), confidence=True), full)


def test_mirrored_classes_trade_places():
    net, x = Net(), image(33, 47)
    mirrored = logits_of(net, x[None].flip(-1)).flip(-1)[:, [0, 2, 1, 4, 3]]
    result = Inference(net, flip=True, flip_pairs=((1, 2), (4, 3)))(x, confidence=True)
    assert_same(result, (logits_of(net, x[None]) + mirrored) / 2)


class Exponentials(nn.Module):
    """The network under `flip` and "exp": what such an evaluation sums."""

    align_corners = True

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        mirrored = logits_of(self.net, images.flip(-1)).flip(-1)
        return SimpleNamespace(main=((logits_of(self.net, images) + mirrored) / 2).exp())


@pytest.mark.parametrize("slide", [{}, {"mode": "slide", "crop_size": (24, 24), "slide_from": 0}])
def test_sums_of_exponentials(slide):
    net, x, total = Net(), image(33, 47), 0
    net.conv.weight.data /= 8  # so that the exponentials are of one order
    for scale in (0.75, 1.5):
        scaled = bilinear(x[None], (int(33 * scale), int(47 * scale)))
        if slide:
            sums = slide_by_numpy(Exponentials(net), scaled, (24, 24), (24, 24)).float()
        else:
            sums = Exponentials(net)(scaled).main
        total = total + bilinear(sums, (33, 47))
    infer = Inference(net, scales=(0.75, 1.5), flip=True, combine="exp", **slide)
    assert_same(infer(x, confidence=True), total.log())
    assert_same(infer(x, size=(20, 30), confidence=True), bilinear(total, (20, 30)).log())


def test_slide_equals_whole_where_one_window_is_the_image():
    net, x = Net(), image(33, 47)
    infer = Inference(net, mode="slide", crop_size=(33, 47))
    assert_same(infer(x, confidence=True), logits_of(net, x[None]))


def test_slide_pads_an_image_smaller_than_the_window_with_zeros():
    net, x = Net(), image(9, 30)
    padded = torch.zeros(1, 3, 16, 30)
    padded[..., :9, :] = x
    logits = slide_by_numpy(net, padded, (16, 20), (16, 20))[..., :9, :]
    assert_same(Inference(net, "slide", (16, 20))(x, confidence=True), logits)
    assert {shape[-2:] for shape in net.seen} == {(16, 20)}


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (10, 4, 4, [0, 4, 6]),
        (8, 4, 4, [0, 4]),
        (4, 4, 2, [0]),
        (3, 4, 4, [0]),
        (9, 4, 3, [0, 3, 5]),
    ],
)
def test_window_starts(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


def test_the_model_runs_in_eval_mode_and_keeps_its_own():
    net, x = Net(), image(16, 16)
    expected = Inference(net.eval())(x)
    net.train()
    net.conv.eval()  # as a frozen layer is
    assert torch.equal(Inference(net)(x), expected)
    assert net.training
    assert net.drop.training
    assert not net.conv.training


def test_the_image_is_not_written_to():
    class Identity(Net):
        def forward(self, images):
            return SimpleNamespace(main=images)

    x = image(8, 8)
    before = x.clone()
    Inference(Identity(3), scales=(1.0, 2.0))(x)
    assert torch.equal(x, before)


def test_autocast_reaches_the_network_and_logits_are_float32():
    dtypes = []
    net = Net().eval()
    net.conv.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    labels, confidence = Inference(net, amp_dtype=torch.bfloat16)(image(32, 32), confidence=True)
    assert dtypes == [torch.bfloat16]
    assert confidence.dtype == torch.float32
    assert (labels == Inference(net)(image(32, 32))).float().mean() > 0.9


def test_no_full_size_logits_in_one_pass(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("full-size logits were made")

    net = Net()
    infer = Inference(net, flip=True)
    monkeypatch.setattr("openseg.engine.inference.F.interpolate", forbidden)
    monkeypatch.setattr(
        "openseg.engine.inference.upsample_argmax",
        lambda logits, size, confidence, align_corners: torch.zeros(1, *size),
    )
    assert infer(image(33, 47)).shape == (33, 47)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "tiles"}, "'tiles'"),
        ({"mode": "slide"}, "crop_size"),
        ({"crop_size": (8, 8)}, "crop_size"),
        ({"stride": (8, 8)}, "stride"),
        ({"mode": "slide", "crop_size": (8, 8), "stride": (9, 8)}, "stride"),
        ({"mode": "slide", "crop_size": (8, 8), "stride": (0, 8)}, "stride"),
        ({"mode": "slide", "crop_size": (0, 8)}, r"crop_size, .* is \(0, 8\)"),
        ({"mode": "slide", "crop_size": (8, -5), "stride": (1, 1)}, r"crop_size, .* is \(8, -5\)"),
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, float("nan"))}, "scales"),
        ({"scales": (float("inf"),)}, "scales"),
        ({"scales": (1.0, -0.5)}, "scales"),
        ({"multiple": 0}, "multiple"),
        ({"combine": "sum"}, "'sum'"),
    ],
)
def test_arguments_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        Inference(Net(), **options)
