// SPDX-License-Identifier: MIT
#pragma once

#include "upsample_cross_entropy/upsample_cross_entropy.h"

namespace openseg {

// lse is that of CrossEntropyForward. totals: sum of the loss, its divisor, number of labels out of
// range, position of the first.
struct CrossEntropyForwardCuda {
  float* loss;       // [batch, out_height, out_width] or null
  float* lse;        // [batch, out_height, out_width]
  float* partials;   // [2, upsample_cross_entropy_partials], scratch
  int64_t* invalid;  // [2], zeros: scratch
  double* totals;    // [4]
};

// These only enqueue work on `stream`, a cudaStream_t; pointers are to memory of the current
// device.
void upsample_cross_entropy_cuda(const UpsampleCrossEntropy& call,
                                 const CrossEntropyForwardCuda& result, void* stream);
void upsample_cross_entropy_backward_cuda(const UpsampleCrossEntropy& call,
                                          const CrossEntropyBackward& result, void* stream);

int64_t upsample_cross_entropy_partials(const UpsampleCrossEntropy& call);

}  // namespace openseg
