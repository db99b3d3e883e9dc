// SPDX-License-Identifier: MIT
// What the lanes of a warp compute together: mma and load_matrices.
#include "emulator.h"

namespace openseg::emulator {
namespace {

float half_of(uint32_t pair, int index, bool is_bfloat16) {
  return number_of((uint16_t)(pair >> 16 * index), is_bfloat16);
}

template <int depth>
void multiply(void* const* lanes, const double (&a)[16][depth], const double (&b)[depth][8]) {
  for (int lane = 0; lane < 32; ++lane) {
    auto& mine = operand_of<Fragments>(lanes, lane);
    for (int e = 0; e < 4; ++e) {
      double sum = mine.d[e];
      for (int k = 0; k < depth; ++k) {
        sum += a[lane / 4 + 8 * (e / 2)][k] * b[k][2 * (lane % 4) + e % 2];
      }
      mine.d[e] = rounded_sum(sum);
    }
  }
}

void combine_mma(void* const* lanes, bool is_bfloat16) {
  double a[16][16];
  double b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = operand_of<Fragments>(lanes, lane);
    const int g = lane / 4;
    const int t = lane % 4;
    for (int e = 0; e < 8; ++e) {
      a[g + 8 * (e / 2 % 2)][2 * t + e % 2 + 8 * (e / 4)] =
          half_of(mine.a[e / 2], e % 2, is_bfloat16);
    }
    for (int e = 0; e < 4; ++e) {
      b[2 * t + e % 2 + 8 * (e / 2)][g] = half_of(mine.b[e / 2], e % 2, is_bfloat16);
    }
  }
  multiply(lanes, a, b);
}

// The tensor cores drop what a float32 has beyond TF32.
float tf32_of(uint32_t bits) {
  return float_from_bits(bits & ~0x1fffu);
}

void combine_rows(void* const* lanes, bool transposed) {
  uint16_t matrices[4][8][8];
  for (int lane = 0; lane < 32; ++lane) {
    std::memcpy(matrices[lane / 8][lane % 8], &operand_of<Fragments>(lanes, lane).row, 16);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    for (int m = 0; m < 4; ++m) {
      const uint16_t low = transposed ? matrices[m][2 * t][g] : matrices[m][g][2 * t];
      const uint16_t high = transposed ? matrices[m][2 * t + 1][g] : matrices[m][g][2 * t + 1];
      operand_of<Fragments>(lanes, lane).a[m] = (uint32_t)high << 16 | low;
    }
  }
}

}  // namespace

void combine_mma_bfloat16(void* const* lanes) {
  combine_mma(lanes, true);
}

void combine_mma_float16(void* const* lanes) {
  combine_mma(lanes, false);
}

void combine_mma_tf32(void* const* lanes) {
  double a[16][8];
  double b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = operand_of<Fragments>(lanes, lane);
    const int g = lane / 4;
    const int t = lane % 4;
    for (int e = 0; e < 4; ++e) {
      a[g + 8 * (e % 2)][t + 4 * (e / 2)] = tf32_of(mine.a[e]);
    }
    for (int e = 0; e < 2; ++e) {
      b[t + 4 * e][g] = tf32_of(mine.b[e]);
    }
  }
  multiply(lanes, a, b);
}

void combine_matrices(void* const* lanes) {
  combine_rows(lanes, false);
}

void combine_transposed_matrices(void* const* lanes) {
  combine_rows(lanes, true);
}

}  // namespace openseg::emulator
