# SPDX-License-Identifier: MIT
"""Cases and mutants of the backward pass by the products of sm_90a."""

from tests.emulator import attention
from tests.emulator.attention import Case
from tests.emulator.kernels import Kernels
from tests.emulator.mutants import ASAN, VALUES, Mutant
from tests.emulator.operators.interlaced_attention import long_sets
from tests.emulator.operators.self_attention import whole_image

CASES = [
    # Tiles begin at every place of the ring.
    Case(1, 256, 256, whole_image(15, 30), shared=True, scale=0.1),
    Case(1, 200, 248, whole_image(14, 14), "float16", shared=True, sliced=True, scale=-0.1),
    # Two sets, and scores so low that exp(-score) overflows.
    Case(1, 256, 200, long_sets(15, 26, 1, 2), shared=True, mean=1.0, scale=-0.5),
]


def check(kernels: Kernels) -> None:
    attention.check(kernels.on("9.0"), CASES)


BACKWARD = "common/cuda/attention_backward_sm90.cu"
MUTANTS = [
    Mutant(
        "weights as queries of pixels beyond the last",
        "plain",
        VALUES,
        "column(i, e) < columns ? weight * (products[i][e] - own.delta) : 0",
        "weight * (products[i][e] - own.delta)",
        BACKWARD,
    ),
    Mutant(
        "a ring that slips",
        "plain",
        VALUES,
        "(at_ + 6) % ring_halves",
        "(at_ + 5) % ring_halves",
        BACKWARD,
    ),
    Mutant(
        "both groups at the same pixels",
        "plain",
        VALUES,
        "streamed + group_ * group_columns * block_columns",
        "streamed",
        BACKWARD,
    ),
    Mutant(
        "gradients of the wrong role",
        "plain",
        VALUES,
        "products[i][e] = weight * (products[i][e] - other.delta);",
        "products[i][e] = weight * (products[i][e] - memory_.owned[row(e)].delta);",
        BACKWARD,
    ),
    Mutant(
        "scores that are not there yet",
        "plain",
        "results of products that may still be under way",
        "wait_for_products<1>(scores, key_products)",
        "wait_for_products<2>(scores, key_products)",
        BACKWARD,
    ),
    Mutant(
        "gradients of the tile that are not there yet",
        "plain",
        "a factor has changed",
        "wait_for_copies<1>();\n      meet();",
        "wait_for_copies<2>();\n      meet();",
        BACKWARD,
    ),
    Mutant(
        "halves overwritten that products of other warps read",
        "plain",
        "a factor has changed",
        "wait_for_products<1>();\n      sync_block();",
        "wait_for_products<1>();",
        BACKWARD,
    ),
    Mutant(
        "halves overwritten that products read",
        "plain",
        "a factor has changed",
        "wait_for_products<1>();\n      sync_block();",
        "wait_for_products<2>();\n      sync_block();",
        BACKWARD,
    ),
    Mutant(
        "weights that products may not see",
        "race",
        "product of what was not shown to it",
        "weigh_as_keys(key_products, scores);\n      meet();",
        "weigh_as_keys(key_products, scores);\n      sync_block();",
        BACKWARD,
    ),
    Mutant(
        "statistics beyond the last pixel",
        "asan",
        ASAN,
        "if (n >= place_.length()) {",
        "if (false) {",
        BACKWARD,
    ),
]
