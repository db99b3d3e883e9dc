# SPDX-License-Identifier: MIT
import math

import pytest
import torch
import torch.nn.functional as F

from openseg.ops import upsample_cross_entropy

# B, K, h, w, H, W
SHAPES = [(1, 2, 1, 1, 1, 1), (2, 5, 3, 4, 7, 9), (1, 19, 5, 5, 33, 17), (2, 3, 6, 6, 4, 5)]
WEIGHT = [0.5, 1.5, 2.0, 0.25, 1.0]


def case(b, k, h, w, height, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(b + k + h + w + height + width)
    logits = 2 * torch.randn(b, k, h, w, generator=generator, dtype=torch.float64)
    target = torch.randint(0, k, (b, height, width), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    target[:, 0, 0] = 0  # never all ignored
    return logits.to(dtype), target


def sample(logits, y, x, size, align_corners):
    """The bilinear sample [K] of logits [K, h, w] for pixel (y, x) of a map of `size`."""

    def corner(i, inside, outside):
        if align_corners:
            position = i * (inside - 1) / (outside - 1) if outside > 1 else 0.0
        else:
            position = max((i + 0.5) * inside / outside - 0.5, 0.0)
        low = min(int(position), inside - 1)
        return low, min(low + 1, inside - 1), position - low

    top, bottom, v = corner(y, logits.shape[1], size[0])
    left, right, u = corner(x, logits.shape[2], size[1])
    above = (1 - u) * logits[:, top, left] + u * logits[:, top, right]
    below = (1 - u) * logits[:, bottom, left] + u * logits[:, bottom, right]
    return (1 - v) * above + v * below


def by_hand(logits, target, align_corners, weight):
    total = norm = 0.0
    for i, label_map in enumerate(target):
        for y, row in enumerate(label_map.tolist()):
            for x, label in enumerate(row):
                if label != 255:
                    values = sample(logits[i], y, x, label_map.shape, align_corners).tolist()
                    loss = math.log(sum(map(math.exp, values))) - values[label]
                    total += weight[label] * loss
                    norm += weight[label]
    return total / norm


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("align_corners", [True, False])
def test_equals_a_loop_over_pixels(shape, align_corners):
    logits, target = case(*shape)
    loss = upsample_cross_entropy(logits, target, align_corners=align_corners)
    assert loss.item() == pytest.approx(by_hand(logits, target, align_corners, [1.0] * shape[1]))


def test_weighted_mean_divides_by_the_weights_of_valid_pixels():
    logits, target = case(*SHAPES[1])
    loss = upsample_cross_entropy(logits, target, weight=torch.tensor(WEIGHT))
    assert loss.item() == pytest.approx(by_hand(logits, target, True, WEIGHT))


@pytest.mark.parametrize("weight", [None, torch.tensor(WEIGHT, dtype=torch.float64)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_equals_the_two_steps_of_torch(weight, reduction):
    logits, target = case(*SHAPES[1])
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction}
    loss = upsample_cross_entropy(logits, target, **options)
    upsampled = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
    known = F.cross_entropy(upsampled, target, ignore_index=255, **options)
    torch.testing.assert_close(loss, known)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"reduction": "none"}])
def test_gradients(options):
    logits, target = case(2, 5, 2, 3, 5, 4)
    weight = torch.tensor(WEIGHT, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: upsample_cross_entropy(x, target, weight=weight, **options),
        logits.requires_grad_(),
    )


@pytest.mark.parametrize("weight", [None, torch.tensor(WEIGHT)])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_all_ignored_is_zero_with_zero_gradient(weight, label_smoothing):
    logits, target = case(*SHAPES[1])
    logits.requires_grad_()
    loss = upsample_cross_entropy(
        logits, torch.full_like(target, 255), weight=weight, label_smoothing=label_smoothing
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_bytes_and_other_ignore_index():
    logits, target = case(*SHAPES[1])
    known = upsample_cross_entropy(logits, target)
    torch.testing.assert_close(upsample_cross_entropy(logits, target.byte()), known)
    shifted = torch.where(target == 255, -1, target)
    torch.testing.assert_close(upsample_cross_entropy(logits, shifted, ignore_index=-1), known)


def test_low_precision_is_computed_in_float32():
    logits, target = case(*SHAPES[1], torch.bfloat16)
    loss = upsample_cross_entropy(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, upsample_cross_entropy(logits.float(), target))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(upsample_cross_entropy(logits, target), loss)


def test_compiles_without_a_break():
    logits, target = case(*SHAPES[1])
    compiled = torch.compile(upsample_cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, target), upsample_cross_entropy(logits, target))


@pytest.mark.parametrize(
    ("logits", "target", "options", "text"),
    [
        ((2, 3, 4), (2, 3, 4), {}, r"\[B, K, h, w\]"),
        ((2, 3, 4, 4), (1, 8, 8), {}, "same B"),
        ((2, 3, 4, 4), (2, 8, 8), {"weight": torch.ones(4)}, "each of the 3 classes"),
        ((2, 3, 4, 4), (2, 8, 8), {"label_smoothing": 2.0}, "label_smoothing"),
        ((2, 3, 4, 4), (2, 8, 8), {"reduction": "max"}, "max"),
        ((2, 3, 4, 4), (2, 8, 8), {"backend": "fortran"}, "fortran"),
    ],
)
def test_arguments_that_do_not_fit(logits, target, options, text):
    with pytest.raises(ValueError, match=text):
        upsample_cross_entropy(torch.zeros(logits), torch.zeros(target).long(), **options)


def test_tensors_on_other_devices_are_named():
    logits, target = torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8).long()
    with pytest.raises(ValueError, match="device of logits, cpu, got a target on meta"):
        upsample_cross_entropy(logits, target.to("meta"))
    with pytest.raises(ValueError, match="a weight on meta"):
        upsample_cross_entropy(logits, target, weight=torch.ones(3, device="meta"))


def test_target_of_floats_is_a_type_error():
    with pytest.raises(TypeError, match="float32"):
        upsample_cross_entropy(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3))
