// SPDX-License-Identifier: MIT
#pragma once

#include "common/attention.h"

namespace openseg {

// The groups of one stage, for attention_cpu, on a map whose size is a multiple of down * across.
// A long group is the pixels of equal row modulo down and column modulo across, a short one a block
// of down * across.
inline PixelSets interlaced_groups(int64_t height, int64_t width, int64_t down, int64_t across,
                                   bool is_long) {
  const int64_t rows = height / down, columns = width / across;
  if (is_long) {
    return {.down = down,
            .across = across,
            .lines = rows,
            .columns = columns,
            .stride_down = width,
            .stride_across = 1,
            .stride_line = down * width,
            .stride_column = across};
  }
  return {.down = rows,
          .across = columns,
          .lines = down,
          .columns = across,
          .stride_down = down * width,
          .stride_across = across,
          .stride_line = width,
          .stride_column = 1};
}

}  // namespace openseg
