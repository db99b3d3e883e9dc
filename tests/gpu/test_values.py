# SPDX-License-Identifier: MIT
"""Results and gradients on a GPU against float64, by the error of plain torch in that dtype."""

import pytest
import torch

from tests.gpu.operators import (
    ALL,
    BACKENDS,
    DIFFERENTIABLE,
    gradient_of,
    inplace_abn,
    or_skip,
)
from tests.ops import attention_cases, test_spatial_gather
from tests.ops.gradients import check_budget
from tests.ops.test_inplace_abn import EPS, INVERTIBLE
from tests.ops.test_inplace_abn_cpp import batch_statistics, inverted

# batch, channels, classes, size; every combination costs Triton seconds to compile
ONE_PIXEL, PRIMES, BLOCKS = (1, 8, 2, (1, 1)), (3, 100, 19, (15, 4)), (2, 64, 59, (13, 31))
SMALL = [
    (ONE_PIXEL, "contiguous", torch.float32),
    (ONE_PIXEL, "channels_last", torch.bfloat16),
    (PRIMES, "channels_last", torch.float32),
    (PRIMES, "sliced", torch.bfloat16),
    (PRIMES, "contiguous", torch.float16),
    (BLOCKS, "contiguous", torch.bfloat16),
    (BLOCKS, "channels_last", torch.float16),
    ((1, 256, 2, (14, 14)), "channels_last", torch.bfloat16),
]
# what networks have: 65² and 97² pixels, many classes
LARGE = [
    ((1, 256, 19, (65, 65)), "channels_last", torch.bfloat16),
    ((1, 256, 19, (65, 65)), "contiguous", torch.bfloat16),
    ((2, 128, 150, (60, 60)), "channels_last", torch.float32),
    ((1, 512, 171, (33, 65)), "channels_last", torch.bfloat16),
    ((1, 256, 256, (97, 97)), "channels_last", torch.bfloat16),
]
# channels that fit into a block on 8.0 and 9.0, backward and forward, or forward alone
FULL_BLOCKS = [((images, 256, 19, (97, 97)), "contiguous", torch.bfloat16) for images in (4, 8)]
backends = pytest.mark.parametrize("backend", BACKENDS)


def check(name, backend, shape, layout, dtype):
    call = DIFFERENTIABLE[name](*shape, dtype, layout)
    mine = or_skip(call, backend)
    exact = [t.double() for t in call.run("reference", call.wide())]
    slack, grad = None, gradient_of(exact[0])
    if name.startswith("spatial_gather"):
        slack = test_spatial_gather.gradient_slack(grad, mine, exact)
    elif name.startswith(("self_attention", "interlaced_attention")):
        slack = attention_cases.gradient_slack(grad, mine, exact, call.tensors)
    check_budget(mine, call.run("reference"), exact, slack)


@backends
@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize(("shape", "layout", "dtype"), SMALL)
def test_small(name, backend, shape, layout, dtype):
    if name.startswith("inplace_abn") and shape[0] * shape[3][0] * shape[3][1] == 1:
        pytest.skip("one value of a channel has no variance")
    check(name, backend, shape, layout, dtype)


@backends
@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize(("shape", "layout", "dtype"), LARGE)
def test_large(name, backend, shape, layout, dtype):
    check(name, backend, shape, layout, dtype)


@backends
@pytest.mark.parametrize("activation", INVERTIBLE)
@pytest.mark.parametrize(("shape", "layout", "dtype"), SMALL[2:] + LARGE[:2] + FULL_BLOCKS)
def test_inplace_abn_has_the_gradients_of_its_output(backend, activation, shape, layout, dtype):
    kind, parameter = activation
    options = {"activation": kind, "activation_param": parameter, "keep": "output", "eps": EPS}
    call = inplace_abn(*shape, dtype, layout, **options)
    z, *mine = or_skip(call, backend)
    x, weight, bias = call.tensors

    def recovered(wide):
        known = batch_statistics(x, wide)
        return inverted(z, gradient_of(z), known, weight, bias, activation, True)

    plain = [t.to(m.dtype) for t, m in zip(recovered(torch.float32), mine, strict=True)]
    check_budget(mine, plain, recovered(torch.float64))


@backends
@pytest.mark.parametrize(("shape", "layout", "dtype"), SMALL + LARGE)
def test_labels(backend, shape, layout, dtype):
    """Labels may differ where two classes are equal but for rounding."""
    call = ALL["upsample_argmax"](*shape, dtype, layout)
    labels, confidence = or_skip(call, backend)
    known, probability = call.run("reference", call.wide())
    torch.testing.assert_close(confidence.double(), probability.double(), rtol=1e-5, atol=1e-6)
    different = (labels != known).float().mean()
    assert different < 1e-3


@backends
@pytest.mark.parametrize("classes", [1, 19, 150])
def test_counts(backend, classes):
    call = ALL["confusion_matrix"](2, 1, classes, (257, 333), None, None)
    assert torch.equal(or_skip(call, backend)[0], call.run("reference")[0])


@backends
@pytest.mark.parametrize("name", ALL)
def test_empty_batches(name, backend):
    if name.startswith("inplace_abn"):
        pytest.skip("no value of a channel has no variance")
    call = ALL[name](0, 8, 3, (4, 4), torch.float32, "contiguous")
    for ours, known in zip(or_skip(call, backend), call.run("reference"), strict=True):
        assert ours.shape == known.shape
        assert torch.equal(ours.nan_to_num(), known.nan_to_num())


@backends
@pytest.mark.parametrize("name", ["object_attention", "spatial_gather"])
def test_offsets_beyond_32_bits(name, backend):
    """2^31 elements lie before the last image."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free memory")
    size = (64, 64)
    call = DIFFERENTIABLE[name](1, 64, 19, size, torch.bfloat16, "channels_last")
    images = (1 << 31) // (64 * size[0] * size[1]) + 1
    first = torch.zeros(images, *size, 64, dtype=torch.bfloat16, device="cuda").permute(0, 3, 1, 2)
    first[-1] = call.tensors[0][0]
    tensors = [first, *(t.expand(images, *t.shape[1:]) for t in call.tensors[1:])]
    known = call.function(*call.tensors, backend="reference")
    call.with_gradients = 0
    out = or_skip(call, backend, tensors)[0]
    torch.testing.assert_close(out[-1:], known, rtol=2**-6, atol=2**-6)
