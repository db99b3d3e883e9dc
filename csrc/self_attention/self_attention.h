// SPDX-License-Identifier: MIT
#pragma once

#include "common/attention.h"

namespace openseg {

// All pixels of an image attend to each other.
inline PixelSets whole_image(int64_t pixels) {
  return {.down = 1,
          .across = 1,
          .lines = 1,
          .columns = pixels,
          .stride_down = 0,
          .stride_across = 0,
          .stride_line = 0,
          .stride_column = 1};
}

}  // namespace openseg
