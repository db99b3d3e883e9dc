# SPDX-License-Identifier: MIT
"""Kernels that are broken on purpose: each is the real source with one mistake of a common kind.

A mode that lets one of them pass has lost its eyes.
"""

from typing import NamedTuple

ASAN = r"AddressSanitizer: (heap-buffer-overflow|SEGV|use-after-poison|unknown-crash)"
MISALIGNED = "misaligned address"
RACE_READ = "race, read after write"
RACE_WRITE = "race, write after (read|write)"
UNWRITTEN = "read of shared memory that was never written"
VALUES = "AssertionError"


class Mutant(NamedTuple):
    operator: str
    mistake: str
    mode: str
    report: str  # what the output of the run has to match
    old: str  # occurs once in the operator's .cu
    new: str


MUTANTS = [
    Mutant(
        "primitives",
        "copies not waited for",
        "asan",
        ASAN,
        "  wait_for_copies<1>();\n",
        "",
    ),
    Mutant(
        "primitives",
        "copies of other lanes not waited for",
        "race",
        RACE_WRITE,
        "  wait_for_copies<1>();\n  sync_warp();",
        "  wait_for_copies<1>();",
    ),
    Mutant(
        "primitives",
        "columns that are not there",
        "asan",
        ASAN,
        "column < product.valid",
        "true",
    ),
    Mutant(
        "primitives",
        "matrix not transposed",
        "plain",
        VALUES,
        "load_matrices<true>",
        "load_matrices<false>",
    ),
    Mutant(
        "primitives",
        "copies left behind",
        "plain",
        "copies under way",
        "  wait_for_copies<0>();\n",
        "",
    ),
    Mutant(
        "primitives",
        "a lane that leaves early",
        "plain",
        "no thread can go on",
        "  commit_copies();\n  wait_for",
        "  if (lane == 31) {\n    wait_for_copies<-1>();\n    return;\n  }\n"
        "  commit_copies();\n  wait_for",
    ),
    Mutant(
        "confusion_matrix",
        "no barrier after clearing",
        "race",
        RACE_WRITE,
        "  sync_block();\n  const int64_t stride",
        "  const int64_t stride",
    ),
    Mutant(
        "confusion_matrix",
        "no barrier before merging",
        "race",
        RACE_READ,
        "  sync_block();\n  for (int cell",
        "  for (int cell",
    ),
    Mutant(
        "confusion_matrix",
        "counters not cleared",
        "race",
        UNWRITTEN,
        "    counts[cell] = 0;",
        "",
    ),
    Mutant(
        "confusion_matrix",
        "counters without atomics",
        "race",
        RACE_WRITE,
        "atomic_add(&counts[cell], length);",
        "counts[cell] += length;",
    ),
    Mutant(
        "confusion_matrix",
        "tail read in full",
        "asan",
        ASAN,
        "if (call.aligned && size == pixels)",
        "if (call.aligned)",
    ),
    Mutant(
        "confusion_matrix",
        "vector loads from any address",
        "asan",
        MISALIGNED,
        "addresses % 16 == 0",
        "addresses != 0",
    ),
    Mutant(
        "confusion_matrix",
        "more shared memory than there is",
        "plain",
        "the architecture has",
        "fits ? (int)cells : 0",
        "(int)cells + 0 * fits",
    ),
    Mutant(
        "upsample_argmax",
        "one column too many",
        "asan",
        ASAN,
        "column >= call.columns.out",
        "column > call.columns.out",
    ),
    Mutant(
        "upsample_argmax",
        "a row below the last",
        "asan",
        ASAN,
        "call.rows.next(upper)",
        "(upper + 1)",
    ),
    Mutant(
        "upsample_argmax",
        "rows of the next block",
        "race",
        RACE_WRITE,
        "begin + row >= end",
        "begin + row >= call.rows.out",
    ),
    Mutant(
        "upsample_argmax",
        "sum not cleared",
        "plain",
        VALUES,
        "    winners.sum[row] = 0;\n",
        "",
    ),
    Mutant(
        "upsample_argmax",
        "last class of equal ones",
        "plain",
        VALUES,
        "value > best ||",
        "value >= best ||",
    ),
    Mutant(
        "upsample_cross_entropy",
        "columns overwritten while they are read",
        "race",
        RACE_WRITE,
        "      sync_block();  // the piece before has been read\n",
        "",
    ),
    Mutant(
        "upsample_cross_entropy",
        "no barrier before the sum across",
        "race",
        RACE_READ,
        "      }\n      sync_block();\n      for (int task",
        "      }\n      for (int task",
    ),
    Mutant(
        "upsample_cross_entropy",
        "last row shared with a row below",
        "plain",
        VALUES,
        "call.rows.own_share(upper, weights[row])",
        "(1.0f - weights[row])",
    ),
    Mutant(
        "upsample_cross_entropy",
        "ignored pixels with a softmax",
        "plain",
        VALUES,
        "log_sum_exp[row] = infinity();",
        "log_sum_exp[row] = 0;",
    ),
    Mutant(
        "upsample_cross_entropy",
        "last label out of range",
        "plain",
        VALUES,
        "~(uint64_t)pixel",
        "(uint64_t)pixel",
    ),
    Mutant(
        "upsample_cross_entropy",
        "infinity taken for the mark of ignored pixels",
        "plain",
        VALUES,
        "best[row] < infinity() ?",
        "best[row] <= infinity() ?",
    ),
    Mutant(
        "upsample_cross_entropy",
        "columns beyond the last",
        "asan",
        ASAN,
        "column < call.columns.out ? call.rows.first(upper + 1) : 0",
        "call.rows.first(upper + 1)",
    ),
    Mutant(
        "upsample_cross_entropy",
        "weights among the losses",
        "race",
        RACE_WRITE,
        "partials[blocks + block]",
        "partials[block + 1]",
    ),
    Mutant(
        "upsample_cross_entropy",
        "too little shared memory",
        "plain",
        "more shared memory is taken",
        "take<float>(2 * warp_size)",
        "take<float>(warp_size)",
    ),
]
