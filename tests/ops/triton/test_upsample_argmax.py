# SPDX-License-Identifier: MIT
import functools

import pytest
import torch

from openseg.ops import upsample_argmax
from tests.ops.oracle import LAYOUTS, check_labels, laid_out, upsampled
from tests.ops.test_upsample_argmax import logits_of

label = functools.partial(upsample_argmax, backend="triton")


# K, h, w, H, W: many classes, upsampling by whole steps and by none, downsampling, one pixel, far
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 5, 2, 2), (6, 9)),
        ((1, 40, 1, 2), (3, 9)),
        ((1, 3, 3, 2), (3, 2)),
        ((1, 3, 4, 3), (3, 2)),
        ((1, 4, 1, 1), (5, 1)),
        ((1, 300, 1, 2), (1, 2)),
        ((1, 2, 7, 1), (112, 50)),
    ],
)
def test_labels_and_confidence(shape, size, align_corners):
    logits = logits_of(shape)
    labels, confidence = label(logits, size, True, align_corners=align_corners)
    check_labels(labels, logits, size, align_corners)
    known = upsampled(logits, size, align_corners).softmax(1).amax(1)
    torch.testing.assert_close(confidence.double(), known, rtol=1e-5, atol=0)
    assert torch.equal(label(logits, size, align_corners=align_corners), labels)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    logits = logits_of((1, 5, 2, 3))
    assert torch.equal(label(laid_out(logits, layout), (11, 13)), label(logits, (11, 13)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_as_torch(value):
    logits = logits_of((1, 5, 3, 4))
    logits[0, 3, 1, 2] = value
    logits[0, 1, 1, 3] = value
    labels, confidence = label(logits, (9, 13), True)
    known = upsample_argmax(logits, (9, 13), True, backend="reference")
    assert torch.equal(labels, known[0])
    torch.testing.assert_close(confidence, known[1], equal_nan=True)


def test_equal_logits_give_the_first_class_and_no_image_gives_none():
    assert not label(torch.ones(1, 40, 2, 2), (5, 5)).any()
    assert label(torch.ones(0, 3, 2, 2), (5, 5)).shape == (0, 5, 5)


def test_opcheck():
    arguments = logits_of((1, 5, 1, 2)), (3, 4), True, True
    torch.library.opcheck(torch.ops.openseg_triton.upsample_argmax.default, arguments)


def test_says_what_it_cannot_count():
    with pytest.raises(RuntimeError, match="beyond what it counts in 32 bits"):
        label(torch.ones(1, 1, 1 << 15, 1), (1 << 15, 1))


def test_confidence_of_logits_that_are_all_minus_infinity():
    logits = torch.full((1, 3, 2, 2), -float("inf"))
    labels, confidence = upsample_argmax(
        logits, (5, 5), True, align_corners=False, backend="triton"
    )
    assert confidence.isnan().all()
    assert (labels == 0).all()
