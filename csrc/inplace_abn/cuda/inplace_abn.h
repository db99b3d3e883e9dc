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

}  // namespace openseg
