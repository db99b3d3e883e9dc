# SPDX-License-Identifier: MIT
import math

import pytest
import torch

from openseg.ops import spatial_gather

SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 7, 4), (1, 8, 13, 11, 19), (0, 3, 4, 5, 2)]


def case(b, c, h, w, k, dtype=torch.float64):
    generator = torch.Generator().manual_seed(b + c + h + w + k)
    features = torch.randn(b, c, h, w, generator=generator, dtype=torch.float64)
    logits = 3 * torch.randn(b, k, h, w, generator=generator, dtype=torch.float64)
    return features.to(dtype), logits.to(dtype)


def by_hand(features, logits, scale):
    b, c, _, w = features.shape
    out = torch.zeros(b, logits.shape[1], c, dtype=torch.float64)
    for i in range(b):
        for k in range(logits.shape[1]):
            weights = [math.exp(scale * float(v)) for v in logits[i, k].flatten()]
            for n, weight in enumerate(weights):
                out[i, k] += weight / sum(weights) * features[i, :, n // w, n % w]
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_equals_a_loop_over_pixels(shape, scale):
    features, logits = case(*shape)
    torch.testing.assert_close(
        spatial_gather(features, logits, scale), by_hand(features, logits, scale)
    )


def test_gradients():
    features, logits = case(2, 3, 3, 2, 4)
    assert torch.autograd.gradcheck(
        lambda f, x: spatial_gather(f, x, 0.7),
        (features.requires_grad_(), logits.requires_grad_()),
    )


def test_layouts_agree():
    features, logits = case(2, 6, 5, 7, 4)
    known = spatial_gather(features, logits)
    last = spatial_gather(
        features.to(memory_format=torch.channels_last),
        logits.to(memory_format=torch.channels_last),
    )
    wide = torch.cat([features, features], dim=3)[..., :7]
    torch.testing.assert_close(last, known)
    torch.testing.assert_close(spatial_gather(wide, logits), known)


def test_huge_logits_do_not_overflow():
    features, logits = case(1, 4, 5, 3, 2, torch.float32)
    out = spatial_gather(features, 1e4 * logits)
    strongest = logits.flatten(2).argmax(2)
    torch.testing.assert_close(out[0], features.flatten(2)[0, :, strongest[0]].T)


def test_bfloat16_stays_near_float64():
    features, logits = case(2, 16, 9, 9, 5, torch.bfloat16)
    out = spatial_gather(features, logits)
    known = spatial_gather(features.double(), logits.double())
    assert out.dtype == torch.bfloat16
    # Weights and result are rounded to bfloat16 (2^-9 each), the features are below 4.
    torch.testing.assert_close(out.double(), known, rtol=2**-7, atol=4 * 2**-9)


def test_autocast_matches_float32():
    features, logits = case(1, 16, 9, 9, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = spatial_gather(features, logits)
    torch.testing.assert_close(
        out.float(), spatial_gather(features, logits), rtol=2**-7, atol=4 * 2**-8
    )


def test_compiles_without_a_break():
    features, logits = case(2, 3, 5, 7, 4)
    compiled = torch.compile(spatial_gather, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, logits), spatial_gather(features, logits))


@pytest.mark.parametrize(
    ("features", "logits", "text"),
    [
        ((2, 3, 4), (2, 3, 4, 4), r"\[B, C, H, W\]"),
        ((2, 3, 4, 4), (2, 5, 4, 8), "agree in batch and size"),
        ((1, 3, 4, 4), (2, 5, 4, 4), "agree in batch and size"),
        ((1, 3, 0, 4), (1, 5, 0, 4), "no pixels"),
    ],
)
def test_shapes_that_do_not_fit(features, logits, text):
    with pytest.raises(ValueError, match=text):
        spatial_gather(torch.zeros(features), torch.zeros(logits))


def test_unknown_backend():
    with pytest.raises(ValueError, match="fortran"):
        spatial_gather(*case(1, 1, 1, 1, 1), backend="fortran")
