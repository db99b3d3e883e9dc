// SPDX-License-Identifier: MIT
// Products of pairs of bfloat16 on the tiles of processors that have them (AMX), for
// csrc/<op>/cpu/*.cpp alone: 16 rows and 16 columns of sums, 16 words of each at once.
//
// The right factor is that of other products. Of the left one the words of a row lie side by side,
// [rows, pitch], as rows of pixels do.
#pragma once

#include "common/isa.h"
#include "common/products.h"

#if defined(__AVX512BF16__) && defined(OPENSEG_HAS_TILES)
#define OPENSEG_TILES
#endif

namespace openseg::OPENSEG_ISA {
namespace {

#if defined(__AVX512BF16__)
// Any operand as the left factor: [columns, pitch], with words(rows) in a row. Whole panels of
// columns are written.
template <typename T>
void pack_left(const Matrix<T>& from, TilePair* to, int64_t pitch) {
  constexpr int run = 2 * lanes;
  if (from.stride_row == 1) {
    T end[run];
    for (int64_t column = 0; column < from.columns; ++column, to += pitch) {
      const T* const line = from.data + column * from.stride_column;
      for (int64_t row = 0; row < from.rows; row += run) {
        const T* const at = padded<run>(line + row, from.rows - row, end);
        store((uint32_t*)to + row / 2, both_rows(at, at + lanes));
      }
    }
    return;
  }
  // a square of 16 rows of words and a panel at a time
  uint32_t square[tile_side * panel];
  for (int64_t row = 0; row < from.rows; row += 2 * tile_side, to += tile_side) {
    for (int64_t x = 0; x < from.columns; x += panel) {
      Matrix<T> part = from;
      part.data += row * from.stride_row + x;
      part.rows = from.rows - row < 2 * tile_side ? from.rows - row : 2 * tile_side;
      part.columns = from.columns - x < panel ? from.columns - x : panel;
      part.later = 0;
      pack(part, (TilePair*)square, panel);
      const float* lines[lanes];
      for (int i = 0; i < lanes; ++i) {
        lines[i] = (const float*)square + i * panel;
      }
      for (int64_t column = 0; column < panel; column += 4) {
        vfloat turned[4];
        turn_quads<float>(lines, column, turned);
        for (int i = 0; i < 4; ++i) {
          store(to + (x + column + i) * pitch, turned[i]);
        }
      }
    }
  }
}
#endif

#if defined(OPENSEG_TILES)
#define OPENSEG_ON_TILES __attribute__((target("amx-tile,amx-bf16")))

// The intrinsics do not tell gcc that they read and write all of the memory that they do.
inline void memory_is_used(const void* start) {
  __asm__ volatile("" ::"r"(start) : "memory");
}

// Configures the tiles of this thread, and leaves them as they were: a library may count on that.
class Tiles {
 public:
  OPENSEG_ON_TILES Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const ours;
    memory_is_used(&ours);
    _tile_storeconfig(before_);
    _tile_loadconfig(&ours);
  }
  OPENSEG_ON_TILES ~Tiles() { _tile_loadconfig(before_); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  alignas(64) uint8_t before_[64];
};

// Up to 2 x 2 tiles of sums, added to what is there or not.
template <bool two_rows, bool two_columns>
OPENSEG_ON_TILES void sum_tiles(const Operands<TilePair>& in, bool add, float* out,
                                int64_t stride) {
  const int64_t row = tile_side * stride, bytes = stride * (int64_t)sizeof(float);
  const int64_t bytes_a = in.pitch_a * (int64_t)sizeof(TilePair);
  const int64_t bytes_b = in.pitch_b * (int64_t)sizeof(TilePair);
  memory_is_used(out);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (add) {
    _tile_loadd(0, out, bytes);
    if (two_columns) {
      _tile_loadd(1, out + tile_side, bytes);
    }
    if (two_rows) {
      _tile_loadd(2, out + row, bytes);
    }
    if (two_rows && two_columns) {
      _tile_loadd(3, out + row + tile_side, bytes);
    }
  }
  const TilePair *a = in.a, *b = in.b;
  for (int64_t r = 0; r < in.depth; r += tile_side, a += tile_side, b += tile_side * in.pitch_b) {
    _tile_loadd(4, a, bytes_a);
    _tile_loadd(6, b, bytes_b);
    _tile_dpbf16ps(0, 4, 6);
    if (two_columns) {
      _tile_loadd(7, b + tile_side, bytes_b);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (two_rows) {
      _tile_loadd(5, a + tile_side * in.pitch_a, bytes_a);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (two_rows && two_columns) {
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, bytes);
  if (two_columns) {
    _tile_stored(1, out + tile_side, bytes);
  }
  if (two_rows) {
    _tile_stored(2, out + row, bytes);
  }
  if (two_rows && two_columns) {
    _tile_stored(3, out + row + tile_side, bytes);
  }
  memory_is_used(out);
}

constexpr int64_t tile_rows = 2 * tile_side;  // of a panel, at once

// One panel of up to tile_rows rows. Those that are not there are multiplied too, and dropped.
template <Into into, typename Out>
void multiply_panel(const Operands<TilePair>& in, int64_t rows, int64_t columns, Out* out,
                    int64_t stride) {
  const auto sum = [&](bool add, float* sums, int64_t pitch) {
    if (rows > tile_side && columns > tile_side) {
      sum_tiles<true, true>(in, add, sums, pitch);
    } else if (rows > tile_side) {
      sum_tiles<true, false>(in, add, sums, pitch);
    } else if (columns > tile_side) {
      sum_tiles<false, true>(in, add, sums, pitch);
    } else {
      sum_tiles<false, false>(in, add, sums, pitch);
    }
  };
  if constexpr (into == Into::add) {
    if (rows % tile_side == 0) {
      return sum(!in.fresh, out, stride);
    }
  }
  alignas(64) float sums[tile_rows * panel];
  sum(false, sums, panel);
  for (int64_t i = 0; i < rows; ++i) {
    for (int half = 0; half < 2; ++half) {
      const vfloat values = load<vfloat>(sums + i * panel + half * lanes);
      put<into>(out + i * stride, values, half, columns, in.fresh);
    }
  }
}

template <Into into = Into::set, typename Out>
void multiply(const Operands<TilePair>& in, int64_t rows, int64_t columns, Out* out,
              int64_t stride) {
  Operands<TilePair> part = in;
  for (int64_t m = 0; m < rows; m += tile_rows, part.a += tile_rows * in.pitch_a) {
    part.b = in.b;
    for (int64_t x = 0; x < columns; x += panel, part.b += in.panel_pitch) {
      const int64_t left = rows - m;
      multiply_panel<into>(part, left < tile_rows ? left : tile_rows, columns - x,
                           out + m * stride + x, stride);
    }
  }
}

#endif

// What has to live where a thread multiplies.
template <typename Word>
struct TilesFor {
  TilesFor() {}
};
#if defined(OPENSEG_TILES)
template <>
struct TilesFor<TilePair> {
  Tiles tiles;
};
#endif

}  // namespace
}  // namespace openseg::OPENSEG_ISA

// Runs `body`, an expression that uses `scalar_t` and the `word_t` of its products.
#if defined(OPENSEG_TILES)
#define OPENSEG_DISPATCH_WORDS(dtype, ...)                                    \
  if ((dtype) == ::openseg::DType::bfloat16 && ::openseg::tiles_are_used()) { \
    using scalar_t = ::openseg::bfloat16;                                     \
    using word_t = TilePair;                                                  \
    __VA_ARGS__;                                                              \
  } else {                                                                    \
    OPENSEG_DISPATCH_PLAIN_WORDS(dtype, __VA_ARGS__)                          \
  }
#else
#define OPENSEG_DISPATCH_WORDS OPENSEG_DISPATCH_PLAIN_WORDS
#endif
#define OPENSEG_DISPATCH_PLAIN_WORDS(dtype, ...)     \
  OPENSEG_DISPATCH_FLOATING(dtype, {                 \
    using word_t = typename WordFor<scalar_t>::type; \
    __VA_ARGS__;                                     \
  })
