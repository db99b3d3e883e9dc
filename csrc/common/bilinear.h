// SPDX-License-Identifier: MIT
// What the operators share that interpolate maps [B, K, h, w]; for csrc/<op>/cpu/*.cpp alone.
#pragma once

#include "common/simd.h"

namespace openseg::OPENSEG_ISA {
namespace {

struct Source {
  int64_t index;  // the upper or left neighbour
  float weight;   // of the other neighbour, 0 <= weight <= 1
};

inline Source source_of(int64_t position, int64_t in, int64_t out, bool align_corners) {
  double at;
  if (align_corners) {
    at = out > 1 ? (double)position * (double)(in - 1) / (double)(out - 1) : 0.0;
  } else {
    at = ((double)position + 0.5) * (double)in / (double)out - 0.5;
    at = at < 0 ? 0 : at;
  }
  const int64_t index = (int64_t)at < in - 1 ? (int64_t)at : in - 1;
  return {index, (float)(at - (double)index)};
}

// Copies one row of all classes to rows[class * pitch + 0..width) as floats.
template <typename T>
void widen_rows(const T* logits, int64_t classes, int64_t width, int64_t stride_class,
                int64_t stride_column, int64_t pitch, float* rows) {
  if (stride_column != 1) {
    for (int64_t x = 0; x < width; ++x) {
      const T* pixel = logits + x * stride_column;
      for (int64_t k = 0; k < classes; ++k) {
        rows[k * pitch + x] = to_float(pixel[k * stride_class]);
      }
    }
    return;
  }
  for (int64_t k = 0; k < classes; ++k) {
    const T* from = logits + k * stride_class;
    float* const row = rows + k * pitch;
    int64_t x = 0;
    for (; x + lanes <= width; x += lanes) {
      store(row + x, load_float(from + x));
    }
    for (; x < width; ++x) {
      row[x] = to_float(from[x]);
    }
  }
}

}  // namespace
}  // namespace openseg::OPENSEG_ISA
