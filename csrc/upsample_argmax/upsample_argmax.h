// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace openseg {

struct UpsampleArgmax {
  const void* logits;  // [batch, classes, in_height, in_width], any strides
  DType dtype;         // float32, bfloat16 or float16
  int64_t batch, classes, in_height, in_width;
  int64_t stride_batch, stride_class, stride_row, stride_column;  // in elements
  int64_t out_height, out_width;
  bool align_corners;
  void* labels;       // [batch, out_height, out_width] uint8 up to 256 classes, int64 above
  float* confidence;  // [batch, out_height, out_width] or null
};

constexpr int64_t most_uint8_classes = 256;

// False when there was no memory.
OPENSEG_FOR_EACH_ISA(bool upsample_argmax_cpu(const UpsampleArgmax& call);)

}  // namespace openseg
