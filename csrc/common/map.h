// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace openseg {

// [batch, channels, pixels] where channels or pixels lie side by side: a contiguous or
// channels_last feature map, or K region vectors, which are a map of K pixels.
struct Map {
  void* data;
  DType dtype;
  int64_t batch, channels, pixels;
  int64_t stride_batch, stride_channel, stride_pixel;  // in elements; one of the last two is 1
};

// Else its pixels are. Static, for a variant of a kernel may share no code with another.
static inline bool channels_are_neighbours(const Map& map) {
  return map.stride_channel == 1 && (map.stride_pixel != 1 || map.pixels == 1);
}

}  // namespace openseg
