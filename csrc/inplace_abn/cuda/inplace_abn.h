// SPDX-License-Identifier: MIT
#pragma once

#include "inplace_abn/inplace_abn.h"

namespace openseg {

// These only enqueue work on `stream`, a cudaStream_t; pointers are to memory of the current
// device. `partials` is scratch of inplace_abn_partials floats.
int64_t inplace_abn_partials(const Map& map);
void inplace_abn_cuda(const InPlaceAbn& call, float* partials, void* stream);
void inplace_abn_statistics_cuda(const Map& x, double* statistics, float* partials, void* stream);
void inplace_abn_backward_cuda(const InPlaceAbnBackward& call, float* partials, void* stream);
void inplace_abn_backward_sums_cuda(const InPlaceAbnBackward& call, float* partials, void* stream);

// The same by one read of each value; false, with nothing enqueued, where channels do not fit into
// shared memory. `known` is null.
bool inplace_abn_whole_cuda(const InPlaceAbn& call, void* stream);
bool inplace_abn_backward_whole_cuda(const InPlaceAbnBackward& call, void* stream);

}  // namespace openseg
