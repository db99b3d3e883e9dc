// SPDX-License-Identifier: MIT
#pragma once

#include "upsample_cross_entropy/upsample_cross_entropy.h"

namespace openseg {

constexpr int ohem_passes = 3;
constexpr int ohem_bins = 1 << 11;

// lse and probability are those of CrossEntropyForward. totals: sum of the loss, its divisor,
// number of labels out of range, position of the first.
struct CrossEntropyForwardCuda {
  float* loss;         // [batch, out_height, out_width] or null
  float* lse;          // [batch, out_height, out_width]
  float* probability;  // [batch, out_height, out_width] where hard pixels are mined, or null
  bool first_enters;
  uint32_t* counts;  // [ohem_passes, ohem_bins], zeros: scratch of mining
  float* partials;   // [2, upsample_cross_entropy_partials], scratch
  int64_t* invalid;  // [2], zeros: scratch
  double* totals;    // [4]
};

// These only enqueue work on `stream`, a cudaStream_t; pointers are to memory of the current
// device.
// `ohem` may be null; else there is a loss and a probability for each pixel.
void upsample_cross_entropy_cuda(const UpsampleCrossEntropy& call, const Ohem* ohem,
                                 const CrossEntropyForwardCuda& result, void* stream);
void upsample_cross_entropy_backward_cuda(const UpsampleCrossEntropy& call,
                                          const CrossEntropyBackward& result, void* stream);

// A part of upsample_cross_entropy_cuda: takes the pixels that are not hard out of the result.
// Returns how many partial sums there are now of each kind.
int64_t mine_hard_pixels_cuda(const UpsampleCrossEntropy& call, const Ohem& ohem,
                              const CrossEntropyForwardCuda& result, void* stream);

int64_t upsample_cross_entropy_partials(const UpsampleCrossEntropy& call);

}  // namespace openseg
