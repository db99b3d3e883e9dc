// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace openseg {

// loss = (1 - s) w[t] (lse - x[t]) + s / K sum_k w[k] (lse - x[k]) for each pixel of the target,
// with x the upsampled logits, t the label, s the label smoothing; 0 where the label is ignored,
// NaN where it is out of range.
struct UpsampleCrossEntropy {
  const void* logits;  // [batch, classes, in_height, in_width], any strides
  DType dtype;         // float32, bfloat16 or float16
  int64_t batch, classes, in_height, in_width;
  int64_t stride_batch, stride_class, stride_row, stride_column;  // in elements
  const void* target;                                             // [batch, out_height, out_width]
  DType target_dtype;                                             // uint8 or int64
  int64_t out_height, out_width;
  bool align_corners;
  const float* weight;  // [classes], or null for 1
  int64_t ignore_index;
  float label_smoothing;

  // [batch, out_height, out_width], written by the forward pass for the backward
  float* log_sum_exp = nullptr;

  // Forward only.
  float* loss = nullptr;      // [batch, out_height, out_width], or null
  float* partials = nullptr;  // [2, upsample_cross_entropy_partials], scratch
  float* sums = nullptr;      // [2]: of the losses, and of the weights of the pixels that count

  // Backward only.
  const float* grad_loss = nullptr;  // [batch, out_height, out_width], or one value for all pixels
  bool grad_per_pixel = false;
  void* grad_logits = nullptr;  // as logits: dtype, shape and strides
};

}  // namespace openseg
