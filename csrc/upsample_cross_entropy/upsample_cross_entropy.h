// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace openseg {

struct UpsampleCrossEntropy {
  const void* logits;  // [batch, classes, in_height, in_width], any strides
  DType dtype;         // float32 or bfloat16; on GPUs float16 too
  int64_t batch, classes, in_height, in_width;
  int64_t stride_batch, stride_class, stride_row, stride_column;  // in elements
  const void* target;                                             // [batch, out_height, out_width]
  DType target_dtype;                                             // uint8 or int64
  int64_t out_height, out_width;
  const float* weight;  // [classes], or null for ones
  bool align_corners;
  int64_t ignore_index;
  float label_smoothing;
};

// Sums over one row of pixels, [batch, out_height] of them: merged in their order, they are the
// same for every number of threads.
struct RowTotals {
  double loss;
  double divisor;  // sum of the weights of the counted pixels
  int64_t invalid;
  int64_t first_invalid;  // position in target of the first, where there is one
};

// lse is log(sum(exp(logits))), less a shift that the backward pass knows too; infinity for a pixel
// that does not count, which then has no gradient.
struct CrossEntropyForward {
  float* loss;         // [batch, out_height, out_width] or null
  float* lse;          // [batch, out_height, out_width]
  float* probability;  // [batch, out_height, out_width] or null: of the true class, -1 if ignored
  bool first_enters;   // the first pixel has a probability, of class 0, even if ignored
  RowTotals* totals;
};

struct CrossEntropyBackward {
  const float* lse;
  const float* scale;  // gradient of each pixel's loss: [batch, out_height, out_width], or one
  bool one_scale;
  void* grad;  // as logits, but with strides of its own
  int64_t stride_batch, stride_class, stride_row, stride_column;
};

struct Ohem {
  bool openseg;  // the variant of openseg.pytorch, else that of OCNet.pytorch
  float thresh;
  int64_t min_kept;
};

// The passes: false when there was no memory. mine_hard_pixels takes the pixels that are not hard
// out of the result of the forward pass, which has a loss and a probability for each.
OPENSEG_FOR_EACH_ISA(bool upsample_cross_entropy_forward_cpu(const UpsampleCrossEntropy& call,
                                                             const CrossEntropyForward& result);
                     bool upsample_cross_entropy_backward_cpu(const UpsampleCrossEntropy& call,
                                                              const CrossEntropyBackward& result);
                     void mine_hard_pixels_cpu(const UpsampleCrossEntropy& call, const Ohem& ohem,
                                               const CrossEntropyForward& result);)

}  // namespace openseg
