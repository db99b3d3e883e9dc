# SPDX-License-Identifier: MIT
"""Cases and mutants of `interlaced_attention`."""

import numpy as np

from tests.emulator import attention
from tests.emulator.attention import Case, Sets
from tests.emulator.kernels import Kernels
from tests.emulator.mutants import ASAN, RACE_READ, RACE_WRITE, VALUES, Mutant


def long_sets(height: int, width: int, down: int, across: int) -> Sets:
    fields = {
        "down": down,
        "across": across,
        "lines": height // down,
        "columns": width // across,
        "stride_down": width,
        "stride_across": 1,
        "stride_line": down * width,
        "stride_column": across,
    }
    rows, columns = np.divmod(np.arange(height * width), width)
    return Sets((height, width), fields, sorted_by(rows % down * across + columns % across))


def short_sets(height: int, width: int, down: int, across: int) -> Sets:
    fields = {
        "down": height // down,
        "across": width // across,
        "lines": down,
        "columns": across,
        "stride_down": down * width,
        "stride_across": across,
        "stride_line": width,
        "stride_column": 1,
    }
    rows, columns = np.divmod(np.arange(height * width), width)
    return Sets(
        (height, width), fields, sorted_by(rows // down * (width // across) + columns // across)
    )


def sorted_by(sets: np.ndarray) -> np.ndarray:
    """[sets, pixels of a set], in the order of the map."""
    return np.argsort(sets, kind="stable").reshape(sets.max() + 1, -1)


CASES = [
    Case(2, 8, 16, long_sets(4, 9, 2, 3), "float16"),
    Case(1, 64, 512, short_sets(2, 6, 2, 3), "bfloat16"),
    Case(1, 8, 8, short_sets(16, 8, 8, 8), "tf32", channels_last=False),
    Case(1, 24, 136, long_sets(13, 10, 1, 2), "bfloat16", channels_last=False, shared=True),
    Case(1, 100, 8, long_sets(1, 3, 1, 3), "float32", shared=True),
    Case(1, 136, 24, short_sets(3, 4, 3, 2), "float16", shared=True),
    # Whole sets need more shared memory than some GPUs have.
    Case(1, 72, 24, long_sets(13, 13, 1, 1)),
    Case(2, 8, 40, long_sets(11, 12, 1, 2), "tf32"),
    Case(1, 16, 264, short_sets(11, 6, 11, 6), "float32", channels_last=False),
    Case(0, 8, 8, long_sets(2, 3, 2, 3)),
]


def check(kernels: Kernels) -> None:
    attention.check(kernels, CASES)


MAPS = "common/cuda/set_maps.cuh"
SHARED = "common/cuda/attention.cuh"
FORWARD = "common/cuda/attention_forward.cu"
SETS = "common/cuda/whole_sets.cuh"
SETS_FORWARD = "common/cuda/whole_sets_forward.cu"
SETS_BACKWARD = "common/cuda/whole_sets_backward.cu"
MUTANTS = [
    Mutant(
        "all pixels of the map in the softmax",
        "plain",
        VALUES,
        "place.length() - tile * tile_pixels",
        "(int)call.out.map.pixels - tile * tile_pixels",
        FORWARD,
    ),
    Mutant(
        "statistics as if sets had whole tiles",
        "asan",
        ASAN,
        "+ set_) * length() + n",
        "+ set_) * 64 + n",
        MAPS,
    ),
    Mutant(
        "statistics without the image",
        "race",
        RACE_WRITE,
        "call.most[place.number(n)]",
        "call.most[n]",
        FORWARD,
    ),
    Mutant(
        "sets of a row of sets where the first one is",
        "plain",
        VALUES,
        "set_ % across * (int)sets.stride_across",
        "0",
        MAPS,
    ),
    Mutant(
        "pieces not waited for",
        "asan",
        ASAN,
        "    wait_for_copies<ring_stages - 2>();\n",
        "",
        SHARED,
    ),
    Mutant(
        "pieces overwritten while they are read",
        "race",
        RACE_WRITE,
        "    wait_for_copies<ring_stages - 2>();\n    sync_block();\n",
        "    wait_for_copies<ring_stages - 2>();\n    sync_warp();\n",
        SHARED,
    ),
    Mutant(
        "channels beyond the last",
        "asan",
        ASAN,
        "start + (there ? offset : 0), there);",
        "start + (pixel < 0 ? 0 : offset), pixel >= 0);",
        MAPS,
    ),
    Mutant(
        "own pixels beyond the last",
        "asan",
        ASAN,
        "return n < length() ? there : -1;",
        "return there;",
        MAPS,
    ),
    Mutant(
        "registers of the right factor exchanged",
        "plain",
        VALUES,
        "multiply<T>(scores[r][tile + 1], left[r], right[1]);",
        "multiply<T>(scores[r][tile + 1], left[r], {right[1][1], right[1][0]});",
        SHARED,
    ),
    Mutant(
        "pixels beyond a whole set in the softmax",
        "plain",
        VALUES,
        "counts ? scores[m][i][e] * scale : -infinity()",
        "scores[m][i][e] * scale",
        SETS,
    ),
    Mutant(
        "the other half of a row not waited for",
        "race",
        RACE_READ,
        "    sync_block();\n#pragma unroll\n",
        "#pragma unroll\n",
        SETS,
    ),
    Mutant(
        "halves of rows overwritten while they are read",
        "race",
        RACE_WRITE,
        "    sync_block();  // by_row has been read\n",
        "",
        SETS,
    ),
    Mutant(
        "the only stage overwritten while it is read",
        "race",
        RACE_WRITE,
        "    if (program_.stages == 1) {\n      sync_block();\n",
        "    if (program_.stages == 1) {\n",
        SETS,
    ),
    Mutant(
        "tiles not waited for",
        "asan",
        ASAN,
        "    wait_for_copies<0>();\n",
        "",
        SETS,
    ),
    Mutant(
        "room for one tile of a pair",
        "asan",
        ASAN,
        "program.stages * 2 * Shape::tile",
        "program.stages * Shape::tile",
        SETS,
    ),
    Mutant(
        "columns of the two warps side by side",
        "plain",
        VALUES,
        "(i / 2 * 2 + column_warp()) * 16 + i % 2 * 8",
        "(i + column_warp() * Shape::score_tiles) * 8",
        SETS,
    ),
    Mutant(
        "statistics of a set by both warps of a row",
        "race",
        RACE_WRITE,
        "block.column_warp() == 0 && lane_index() % 4 == 0 &&",
        "lane_index() % 4 == 0 &&",
        SETS_FORWARD,
    ),
    Mutant(
        "statistics beyond the last pixel of a set",
        "asan",
        ASAN,
        "&& n < block.place().length()",
        "",
        SETS_FORWARD,
    ),
    Mutant(
        "gradients of scores without their mean",
        "plain",
        VALUES,
        "second * (grads[m][i][2 * half + 1] - mean[m][half])",
        "second * grads[m][i][2 * half + 1]",
        SETS_BACKWARD,
    ),
    Mutant(
        "means of half a row",
        "race",
        RACE_WRITE,
        "  block.combine(mean, [](float a, float b) { return a + b; });\n",
        "",
        SETS_BACKWARD,
    ),
]
