// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace openseg {

enum class DType { float32, bfloat16, float16, uint8, int32, int64 };

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

}  // namespace openseg

// Runs `body`, an expression that uses `scalar_t`, for the type that `dtype` names. The caller has
// checked that `dtype` is one of them.
#define OPENSEG_DISPATCH_CASE(value, type, ...) \
  case ::openseg::DType::value: {               \
    using scalar_t = type;                      \
    __VA_ARGS__;                                \
    break;                                      \
  }
#define OPENSEG_DISPATCH_FLOATING(dtype, ...)                         \
  switch (dtype) {                                                    \
    OPENSEG_DISPATCH_CASE(bfloat16, ::openseg::bfloat16, __VA_ARGS__) \
    OPENSEG_DISPATCH_CASE(float16, ::openseg::float16, __VA_ARGS__)   \
    default:                                                          \
      OPENSEG_DISPATCH_CASE(float32, float, __VA_ARGS__)              \
  }
#define OPENSEG_DISPATCH_INTEGRAL(dtype, ...)            \
  switch (dtype) {                                       \
    OPENSEG_DISPATCH_CASE(uint8, uint8_t, __VA_ARGS__)   \
    OPENSEG_DISPATCH_CASE(int32, int32_t, __VA_ARGS__)   \
    default:                                             \
      OPENSEG_DISPATCH_CASE(int64, int64_t, __VA_ARGS__) \
  }
