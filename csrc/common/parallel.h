// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace openseg {

// Splits 0..count into one piece for each thread, none smaller than `grain`, and runs
// body(begin, end, context) on each. Defined by common/torch.cpp on torch's threads, and by the
// test module without torch. A body must not throw, and its results must not depend on where pieces
// end.
using ParallelBody = void (*)(int64_t begin, int64_t end, void* context);
void run_parallel(int64_t count, int64_t grain, ParallelBody body, void* context);

}  // namespace openseg
