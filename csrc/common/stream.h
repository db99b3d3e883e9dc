// SPDX-License-Identifier: MIT
// Stores past the cache, for csrc/<op>/cpu/*.cpp alone. A line that is written whole need not be
// read first, and a map of many megabytes pushes out of the cache what is still wanted. A smaller
// one is better left there, for whoever reads it next.
//
// Other threads see these stores after a fence: `run_parallel` ends each piece with one.
#pragma once

#include "common/map.h"
#include "common/simd.h"

namespace openseg::OPENSEG_ISA {
namespace {

constexpr int64_t line_bytes = 64;

// A result of so many bytes was faster streamed even where all of it was read right afterwards.
constexpr int64_t streamed_bytes = 8 << 20;

template <typename T>
bool is_large(const Map& map) {
  return map.batch * map.channels * map.pixels * (int64_t)sizeof(T) >= streamed_bytes;
}

// Whether each pixel, or each channel where pixels are neighbours, begins with a line.
template <typename T>
bool begins_lines(const Map& map) {
  const int64_t pitch = map.stride_channel == 1 ? map.stride_pixel : map.stride_channel;
  const int64_t bytes = (pitch | map.stride_batch) * (int64_t)sizeof(T);
  return ((uintptr_t)map.data | bytes) % line_bytes == 0;
}

// Writes all lanes to an address that is a multiple of their size.
template <typename T>
inline void stream_float(T* to, vfloat values) {
  T copy[lanes];
  store_float(copy, values);
  if constexpr (sizeof(copy) == 64) {
    _mm512_stream_si512((__m512i*)to, load<__m512i>(copy));
  } else if constexpr (sizeof(copy) == 32) {
    _mm256_stream_si256((__m256i*)to, load<__m256i>(copy));
  } else if constexpr (sizeof(copy) == 16) {
    _mm_stream_si128((__m128i*)to, load<__m128i>(copy));
  } else {
    store_float(to, values);
  }
}

}  // namespace
}  // namespace openseg::OPENSEG_ISA
