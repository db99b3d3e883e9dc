// SPDX-License-Identifier: MIT
// Products of tiles in shared memory on the tensor cores, in one shape for every type: a step of a
// product has 32 bytes of depth, 16 numbers of 16 bits or 8 of 32.
//
// `stride` is the distance of rows in elements. Rows start at multiples of 16 bytes; without bank
// conflicts where stride is an odd multiple of 16 bytes.
#pragma once

#include <type_traits>

#include "common/device.cuh"

namespace openseg {

// A float32 that takes part in products as a TF32. Those of plain floats are as exact as float32:
// each is split into two TF32, and three of the four products are summed.
struct tfloat32 {
  float value;
};

__device__ inline float to_float(tfloat32 value) {
  return value.value;
}

__device__ inline void store(tfloat32* to, float value) {
  to->value = value;
}

__device__ inline void store_pair(tfloat32* to, float first, float second) {
  store_pair(&to->value, first, second);
}

// Two neighbours in one access: `from` is aligned to both.
template <typename T>
__device__ void read_pair(const T* from, float& first, float& second) {
  struct alignas(2 * sizeof(T)) Pair {
    T values[2];
  };
  const Pair pair = *reinterpret_cast<const Pair*>(from);
  first = to_float(pair.values[0]);
  second = to_float(pair.values[1]);
}

// Runs the last argument with `scalar_t`, the type that products see.
#define OPENSEG_DISPATCH_PRODUCTS(dtype, allow_tf32, ...)     \
  if ((allow_tf32) && (dtype) == ::openseg::DType::float32) { \
    using scalar_t = ::openseg::tfloat32;                     \
    __VA_ARGS__;                                              \
  } else {                                                    \
    OPENSEG_DISPATCH_FLOATING(dtype, __VA_ARGS__)             \
  }

template <typename T>
constexpr int step_depth = 32 / sizeof(T);

// The left factor: 16 rows of the tile, step_depth columns.
template <typename T>
__device__ void load_left(uint32_t (&a)[4], const T* tile, int stride) {
  const int lane = lane_index();
  load_matrices<false>(a, tile + lane % 16 * stride + lane / 16 * (step_depth<T> / 2));
}

// Two right factors of 8 columns, which lie as 16 rows of the tile.
template <typename T>
__device__ void load_right_transposed(uint32_t (&b)[2][2], const T* tile, int stride) {
  const int lane = lane_index();
  uint32_t matrices[4];
  load_matrices<false>(
      matrices, tile + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * (step_depth<T> / 2));
  b[0][0] = matrices[0];
  b[0][1] = matrices[1];
  b[1][0] = matrices[2];
  b[1][1] = matrices[3];
}

// Products over rows of tiles. Their depth may come in any order that both factors have: of 32-bit
// numbers, rows 2t and 2t + 1 of 8 take the places of t and t + 4. Then banks do not conflict where
// rows are an odd multiple of 16 bytes apart, and results of products are left factors as they are.
//
// Where column `column` of a left factor has to lie in its row for load_left.
template <typename T>
__device__ int depth_position(int column) {
  return sizeof(T) == 2 ? column : column / 8 * 8 + column % 2 * 4 + column % 8 / 2;
}

// Two columns side by side, of which `column` is the first and even.
template <typename T>
__device__ void store_left(T* row, int column, float first, float second) {
  T* const to = row + depth_position<T>(column);
  if constexpr (sizeof(T) == 2) {
    store_pair(to, first, second);
  } else {
    store(to, first);
    store(to + 4, second);
  }
}

template <typename T>
__device__ void read_left(const T* row, int column, float& first, float& second) {
  const T* const from = row + depth_position<T>(column);
  if constexpr (sizeof(T) == 2) {
    read_pair(from, first, second);
  } else {
    first = to_float(from[0]);
    second = to_float(from[4]);
  }
}

// The left factor, which lies as step_depth rows of 16 numbers, column `i` at place_of(i).
template <typename T, typename PlaceOf>
__device__ void load_left_transposed(uint32_t (&a)[4], const T* tile, int stride,
                                     const PlaceOf& place_of) {
  const int lane = lane_index();
  if constexpr (sizeof(T) == 2) {
    load_matrices<true>(a, tile + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8);
  } else {
    const T* const row = tile + lane % 4 * 2 * stride + place_of(lane / 4);
    for (int half = 0; half < 2; ++half) {
      a[half] = bits_of(to_float(row[8 * half]));
      a[half + 2] = bits_of(to_float(row[stride + 8 * half]));
    }
  }
}

template <typename T>
__device__ void load_left_transposed(uint32_t (&a)[4], const T* tile, int stride) {
  load_left_transposed(a, tile, stride, [](int column) { return column; });
}

// A right factor of 8 columns, of 32-bit numbers: step_depth rows of the tile.
template <typename T>
__device__ void load_right_alone(uint32_t (&b)[2], const T* tile, int stride) {
  const int lane = lane_index();
  const T* const row = tile + lane % 4 * 2 * stride + lane / 4;
  b[0] = bits_of(to_float(row[0]));
  b[1] = bits_of(to_float(row[stride]));
}

// Two right factors of 8 columns, side by side: step_depth rows of the tile.
template <typename T>
__device__ void load_right(uint32_t (&b)[2][2], const T* tile, int stride) {
  if constexpr (sizeof(T) == 2) {
    const int lane = lane_index();
    uint32_t matrices[4];
    load_matrices<true>(matrices, tile + lane % 16 * stride + lane / 16 * 8);
    b[0][0] = matrices[0];
    b[0][1] = matrices[1];
    b[1][0] = matrices[2];
    b[1][1] = matrices[3];
  } else {
    load_right_alone(b[0], tile, stride);
    load_right_alone(b[1], tile + 8, stride);
  }
}

// The left factors, of step_depth columns each, that results side by side become.
template <typename T, int size>
__device__ void left_factors(uint32_t (&a)[8 * size / step_depth<T>][4],
                             const float (&results)[size][4]) {
#pragma unroll
  for (int i = 0; i < size; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float first = results[i][2 * half];
      const float second = results[i][2 * half + 1];
      if constexpr (sizeof(T) == 2) {
        store_pair(reinterpret_cast<T*>(&a[i / 2][i % 2 * 2 + half]), first, second);
      } else {
        a[i][half] = bits_of(first);
        a[i][half + 2] = bits_of(second);
      }
    }
  }
}

// The numbers `bits` as TF32. Not by cvt.rna: it takes four instructions, and may lose NaN. That of
// plain floats is found again in their tails; of others, products do not see the low bits.
template <typename T, int size>
__device__ void tf32_heads(uint32_t (&heads)[size], const uint32_t (&bits)[size]) {
  for (int i = 0; i < size; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      heads[i] = round_to_tf32(bits[i]);
    } else {
      constexpr float half_unit = 1.0f / 2048;
      const float power = float_from_bits(bits[i] & 0xff800000);
      heads[i] = bits_of(float_from_bits(bits[i]) + half_unit * power);
    }
  }
}

// What is left of the numbers beyond their heads. That products drop its low bits is 2^-22 of them.
template <int size>
__device__ void tf32_tails(uint32_t (&tails)[size], const uint32_t (&bits)[size],
                           const uint32_t (&heads)[size]) {
  for (int i = 0; i < size; ++i) {
    tails[i] = bits_of(float_from_bits(bits[i]) - float_from_bits(heads[i]));
  }
}

// d += a b
template <typename T>
__device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 2) {
    mma<T>(d, a, b);
  } else {
    uint32_t a_head[4];
    uint32_t b_head[2];
    tf32_heads<T>(a_head, a);
    tf32_heads<T>(b_head, b);
    if constexpr (std::is_same_v<T, float>) {
      uint32_t a_tail[4];
      uint32_t b_tail[2];
      tf32_tails(a_tail, a, a_head);
      tf32_tails(b_tail, b, b_head);
      // Tensor cores round sums towards zero: thousands of them would be worth no more than TF32.
      float product[4] = {};
      mma<float>(product, a_tail, b_head);
      mma<float>(product, a_head, b_tail);
      mma<float>(product, a_head, b_head);
      for (int i = 0; i < 4; ++i) {
        d[i] += product[i];
      }
    } else {
      mma<float>(d, a_head, b_head);
    }
  }
}

// The sum, and the greatest, over the four lanes that share a row of d.
__device__ inline float row_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

__device__ inline float row_max(float value) {
  value = fmaxf(value, shuffle_xor(value, 1));
  return fmaxf(value, shuffle_xor(value, 2));
}

}  // namespace openseg
