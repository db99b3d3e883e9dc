// SPDX-License-Identifier: MIT
// Vectors of one instruction set, for csrc/<op>/cpu/*.cpp alone.
//
// Everything lies in openseg::<isa> and in an anonymous namespace: a symbol that two variants share
// is resolved to either of them, and would run AVX-512 code on a machine that has none. Therefore
// no std:: templates in kernels either.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "common/dtype.h"
#include "common/large_pages.h"

#if defined(__AVX512F__)
#define OPENSEG_ISA avx512
#define OPENSEG_MM(name) _mm512_##name
#elif defined(__AVX2__)
#define OPENSEG_ISA avx2
#define OPENSEG_MM(name) _mm256_##name
#else
#define OPENSEG_ISA baseline
#define OPENSEG_MM(name) _mm_##name
#endif

namespace openseg::OPENSEG_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

using vfloat = float __attribute__((vector_size(4 * lanes)));
using vint = int32_t __attribute__((vector_size(4 * lanes)));
using vuint = uint32_t __attribute__((vector_size(4 * lanes)));

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

template <typename Vector, typename Scalar>
inline Vector load(const Scalar* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(Vector));
  return vector;
}

template <typename Vector, typename Scalar>
inline void store(Scalar* to, Vector vector) {
  std::memcpy(to, &vector, sizeof(Vector));
}

inline vfloat splat(float value) {
  return vfloat{} + value;
}

inline vfloat max(vfloat a, vfloat b) {
  return a > b ? a : b;
}

inline vfloat min(vfloat a, vfloat b) {
  return a < b ? a : b;
}

// The first `count` lanes, and `rest` in those that are left.
inline vfloat first_of(vfloat values, int64_t count, float rest = 0) {
  vint index;
  for (int i = 0; i < lanes; ++i) {
    index[i] = i;
  }
  return index < (int)count ? values : splat(rest);
}

inline float sum_of(vfloat values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)values);  // as a tree: gcc makes a chain of the loop
#else
  float sum = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    sum += values[lane];
  }
  return sum;
#endif
}

inline float max_of(vfloat values) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)values);
#else
  float most = values[0];
  for (int lane = 1; lane < lanes; ++lane) {
    most = values[lane] > most ? values[lane] : most;
  }
  return most;
#endif
}

// gcc 12 turns __builtin_convertvector from 16 to 32 bits into slow code.
inline vuint widen(const uint16_t* from) {
#if defined(__AVX512F__)
  return (vuint)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (vuint)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#else
  return (vuint)_mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i*)from), _mm_setzero_si128());
#endif
}

inline vfloat load_float(const float* from) {
  return load<vfloat>(from);
}

inline vfloat load_float(const bfloat16* from) {
  return (vfloat)(widen(&from->bits) << 16);
}

// Moves the exponent by a multiplication, which is right for subnormal numbers too; infinities and
// NaN come out as 2^16 and above and are mended.
inline vfloat load_float(const float16* from) {
  const vuint half = widen(&from->bits);
  const vfloat value = (vfloat)((half & 0x7fff) << 13) * 0x1p112f;
  const vuint special = value >= 0x1p16f ? vuint{} + 0x7f800000u : vuint{};
  return (vfloat)((vuint)value | special | (half & 0x8000) << 16);
}

inline void store_float(float* to, vfloat value) {
  store(to, value);
}

// The upper halves of the lanes.
template <typename Half>
inline void store_upper_halves(Half* to, vuint value) {
  typedef uint16_t Halves __attribute__((vector_size(2 * lanes)));
  store(to, __builtin_convertvector(value >> 16, Halves));
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline void store_float(bfloat16* to, vfloat value) {
#if defined(__AVX512BF16__)
  store(to, _mm512_cvtneps_pbh((__m512)value));
#else
  const vuint bits = (vuint)value;
  const vuint rounded = bits + 0x7fff + (bits >> 16 & 1);
  store_upper_halves(to, value == value ? rounded : bits | 0x400000);
#endif
}

inline void store_float(float16* to, vfloat value) {
#if defined(__AVX512F__)
  store(to, _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  store(to, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
  const vuint sign = (vuint)value & 0x80000000u;
  const vuint bits = (vuint)value ^ sign;
  const vuint normal = bits - (112u << 23) + 0xfff + (bits >> 13 & 1);
  // adding 1/2 leaves a subnormal result in the low bits, rounded by the processor
  const vuint subnormal = ((vuint)((vfloat)bits + 0.5f) - 0x3f000000u) << 13;
  const vuint small = bits < 113u << 23 ? subnormal : normal;
  const vuint large = bits > 0x7f800000u ? vuint{} + (0x7e00u << 13) : vuint{} + (0x7c00u << 13);
  const vuint half = bits >= 0x477ff000u ? large : small;
  store_upper_halves(to, (half << 3 & 0x7fff0000u) | sign);
#endif
}

inline float to_float(float value) {
  return value;
}

template <typename Half>
inline float to_float(Half value) {
  Half copies[lanes];
  for (Half& copy : copies) {
    copy = value;
  }
  return load_float(copies)[0];
}

// `count` elements and zeros up to `capacity`: the end of a row, for loads of whole vectors.
template <int capacity, typename T>
inline const T* padded(const T* from, int64_t count, T* copy) {
  if (count >= capacity) {
    return from;
  }
  std::memset((void*)copy, 0, capacity * sizeof(T));
  if (count > 0) {
    std::memcpy((void*)copy, from, count * sizeof(T));
  }
  return copy;
}

template <typename T>
inline vfloat load_some(const T* from, int64_t count) {
  T copy[lanes];
  return load_float(padded<lanes>(from, count, copy));
}

template <typename T>
inline void store_some(T* to, vfloat values, int64_t count) {
  if (count >= lanes) {
    store_float(to, values);
  } else if (count > 0) {
    T copy[lanes];
    store_float(copy, values);
    std::memcpy((void*)to, copy, count * sizeof(T));
  }
}

// row[start + offset] in each lane, 0 <= offset < lanes.
inline vfloat permute(const float* start, vint offset) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_permutexvar_ps((__m512i)offset, _mm512_loadu_ps(start));
#elif defined(__AVX2__)
  return (vfloat)_mm256_permutevar8x32_ps(_mm256_loadu_ps(start), (__m256i)offset);
#else
  return vfloat{start[offset[0]], start[offset[1]], start[offset[2]], start[offset[3]]};
#endif
}

// exp(x) for x <= 88, relative error below 1.5e-7, 0 for x < -87; NaN stays NaN.
inline vfloat exp(vfloat x) {
  const vfloat shifted = x * 1.44269504f + 0x1.8p23f;  // rounds to an integer in the low bits
  const vfloat n = shifted - 0x1.8p23f;
  const vfloat r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // log 2 in two parts
  vfloat p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const vfloat power = (vfloat)(((vint)shifted + 127) << 23);
  return x < -87.0f ? vfloat{} : p * power;
}

#if defined(__AVX512F__)
// exp(x) for x <= 88 to be rounded to 16 bits: relative error below 2^-17, 0 for x < -104; NaN
// stays NaN.
inline vfloat exp_coarse(vfloat x) {
  const vfloat power = max(splat(-160.0f), x * 1.44269504f);
  const vfloat n = (power + 0x1.8p23f) - 0x1.8p23f;
  const vfloat f = power - n;
  vfloat p = f * 0.0095700966f + 0.0559178628f;
  p = p * f + 0.2402474433f;
  p = p * f + 0.6931217909f;
  p = p * f + 0.9999992847f;
  return (vfloat)_mm512_scalef_ps((__m512)p, (__m512)n);
}
#endif

// log(x) for x a positive normal number, error below 2e-7 of the greater of 1 and the result; NaN
// stays NaN. With x = 2^n m, 0.7 < m < 1.5: log m = 2 artanh((m - 1) / (m + 1)), by its series.
inline vfloat log(vfloat x) {
  const vint bits = (vint)x - 0x3f330000;
  const vfloat n = __builtin_convertvector(bits >> 23, vfloat);
  const vfloat m = (vfloat)((bits & 0x7fffff) + 0x3f330000);
  const vfloat s = (m - 1.0f) / (m + 1.0f);
  const vfloat square = s * s;
  vfloat p = square * (2.0f / 9) + 2.0f / 7;
  p = p * square + 2.0f / 5;
  p = p * square + 2.0f / 3;
  const vfloat fraction = s * square * p + 2.0f * s;
  const vfloat value = n * 0.693145752f + (n * 1.42860677e-6f + fraction);
  return x == x ? value : x;
}

// Memory of one piece of a parallel run, freed with it; null when there is none.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : start_((char*)std::aligned_alloc(64, round_up(bytes, 64))) {
    prefer_large_pages(start_, bytes);
  }
  ~Scratch() { std::free(start_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  explicit operator bool() const { return start_ != nullptr; }

  template <typename T>
  T* take(int64_t count) {
    T* taken = (T*)(start_ + used_);
    used_ += round_up(count * (int64_t)sizeof(T), 64);
    return taken;
  }

 private:
  char* start_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace openseg::OPENSEG_ISA
