// SPDX-License-Identifier: MIT
// Numbers of 16 bits, and how tensor cores round.
#include "emulator.h"

namespace openseg {
namespace emulator {

float number_of(uint16_t bits, bool is_bfloat16) {
  return is_bfloat16 ? float_from_bits((uint32_t)bits << 16) : to_float(float16{bits});
}

float rounded_sum(double sum) {
  const float nearest = (float)sum;
  return std::fabs((double)nearest) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

}  // namespace emulator

float to_float(float16 value) {
  _Float16 half;
  std::memcpy(&half, &value.bits, sizeof half);
  return (float)half;
}

float16 to_float16(float value) {
  const _Float16 half = (_Float16)value;
  float16 result;
  std::memcpy(&result, &half, sizeof half);
  return result;
}

bfloat16 to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
  return {std::isnan(value) ? (uint16_t)0x7fff : (uint16_t)(rounded >> 16)};
}

}  // namespace openseg
