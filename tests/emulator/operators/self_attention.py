# SPDX-License-Identifier: MIT
"""Cases and mutants of `self_attention`."""

import numpy as np

from tests.emulator import attention
from tests.emulator.attention import Case, Sets
from tests.emulator.kernels import Kernels
from tests.emulator.mutants import ASAN, RACE_READ, VALUES, Mutant


def whole_image(height: int, width: int) -> Sets:
    fields = {
        "down": 1,
        "across": 1,
        "lines": 1,
        "columns": height * width,
        "stride_down": 0,
        "stride_across": 0,
        "stride_line": 0,
        "stride_column": 1,
    }
    return Sets((height, width), fields, np.arange(height * width)[None])


CASES = [
    Case(1, 8, 8, whole_image(1, 1)),
    Case(2, 64, 8, whole_image(3, 5), "float16", shared=True),
    Case(1, 256, 256, whole_image(1, 15), "tf32"),
    Case(1, 8, 512, whole_image(5, 13), "bfloat16", channels_last=False),
    Case(1, 100, 24, whole_image(13, 5), "float16", shared=True),
    Case(1, 64, 64, whole_image(8, 8), "float32", channels_last=False),
    Case(1, 33, 300, whole_image(3, 4), "float32", channels_last=False, shared=True),
    Case(2, 16, 40, whole_image(3, 3), "bfloat16", sliced=True),
    Case(2, 5, 7, whole_image(3, 3), "float16", sliced=True, channels_last=False),
    Case(1, 8, 8, whole_image(7, 13), "bfloat16", spread=200.0, scale=0.1),
    Case(1, 8, 8, whole_image(3, 5), "float32", spread=100.0, scale=-0.1),
    # All scores are so low that exp(-score) overflows.
    Case(1, 16, 8, whole_image(3, 4), "bfloat16", shared=True, mean=10.0, scale=-0.25),
    Case(0, 8, 8, whole_image(2, 2)),
    # Beyond what a block takes as a whole, on every GPU or on some.
    Case(1, 8, 8, whole_image(13, 15)),
    Case(1, 136, 72, whole_image(13, 15), "float16", shared=True),  # tiles are kept
    Case(1, 72, 264, whole_image(13, 10), "float16", shared=True, scale=0.1),
    Case(1, 256, 8, whole_image(5, 13), "tf32"),
    Case(1, 33, 300, whole_image(5, 13), "float32", channels_last=False, shared=True),
    Case(2, 5, 7, whole_image(13, 10), "float16", sliced=True, channels_last=False),
    Case(1, 8, 8, whole_image(13, 15), "bfloat16", spread=200.0, scale=0.1),
    Case(1, 8, 8, whole_image(13, 15), "float32", spread=100.0, scale=-0.1),
    Case(1, 16, 8, whole_image(13, 15), "bfloat16", shared=True, mean=10.0, scale=-0.25),
]


def check(kernels: Kernels) -> None:
    attention.check(kernels, CASES)


SHARED = "common/cuda/attention.cuh"
FORWARD = "common/cuda/attention_forward.cu"
BACKWARD = "common/cuda/attention_backward.cu"
MUTANTS = [
    Mutant(
        "earlier sums not rescaled",
        "plain",
        VALUES,
        "          out[chunk][r][i][2 * half] *= worth[r][half];\n",
        "",
        FORWARD,
    ),
    Mutant(
        "pixels beyond the last in the softmax",
        "plain",
        VALUES,
        "counts ? scores[r][tile][e] * scale : -infinity()",
        "scores[r][tile][e] * scale",
        FORWARD,
    ),
    Mutant(
        "maxima of other warps not waited for",
        "race",
        RACE_READ,
        "    sync_block();\n    for_rows([&](int r, int half) {\n      for",
        "    for_rows([&](int r, int half) {\n      for",
        FORWARD,
    ),
    Mutant(
        "statistics beyond the last pixel",
        "asan",
        ASAN,
        "lane_index() % 4 == 0 && n < place.length()",
        "lane_index() % 4 == 0",
        FORWARD,
    ),
    Mutant(
        "rows of a lane's registers exchanged",
        "plain",
        VALUES,
        "factors[r][half]);",
        "factors[r][1 - half]);",
        SHARED,
    ),
    Mutant(
        "weights as queries of pixels beyond the last",
        "plain",
        VALUES,
        "counts ? weight * (grads[r][tile][e] - own.delta) : 0",
        "weight * (grads[r][tile][e] - own.delta)",
        BACKWARD,
    ),
    Mutant(
        "mean gradient of the wrong pixel",
        "plain",
        VALUES,
        "(products[r][tile][e] - delta)",
        "(products[r][tile][e] - memory_.owned[share_.row(r, e)].delta)",
        BACKWARD,
    ),
    Mutant(
        "own pixels without a place of their own",
        "plain",
        VALUES,
        "phase.own_at = program.own_pieces;",
        "phase.own_at = 0;",
        SHARED,
    ),
    Mutant(
        "pieces that are kept where the next tile's come too soon",
        "race",
        RACE_READ,
        "later >= ring_stages",
        "later >= 0",
        SHARED,
    ),
]
