// SPDX-License-Identifier: MIT
// What a channel's numbers make of its values, whichever kernel holds them.
#pragma once

#include <type_traits>

#include "inplace_abn/cuda/walk.cuh"
#include "inplace_abn/inplace_abn.h"

namespace openseg {
namespace {

constexpr int forward_kinds = 3;  // y = (x - c₀) c₁ + c₂

// c₀ is near x, where x - c₀ is exact; what rounding it to float32 took away is in c₂.
__device__ void find_forward(const double* statistics, const float* affine, float eps,
                             int64_t channels, int64_t channel, bool with_bias,
                             float (&to)[forward_kinds]) {
  const double mean = statistics[channel];
  const double scale = affine[channel] / sqrt(statistics[channels + channel] + (double)eps);
  to[0] = (float)mean;
  to[1] = (float)scale;
  to[2] = (float)(((double)to[0] - mean) * scale + (with_bias ? affine[channels + channel] : 0.0f));
}

// Calls body(kind), where kind is ELU or not at compile time: nothing is asked for every value.
template <typename Body>
__device__ void with_kind(const InPlaceAbn& abn, const Body& body) {
  if (abn.activation == Activation::elu) {
    body(std::true_type());
  } else {
    body(std::false_type());
  }
}

template <typename Elu>
__device__ float activate(Elu elu, const InPlaceAbn& abn, float y) {
  if constexpr (elu.value) {
    return y > 0 ? y : abn.parameter * (exp_fast(y) - 1.0f);
  } else {
    return y < 0 ? (abn.activation == Activation::relu ? 0.0f : y * abn.parameter) : y;
  }
}

__device__ void find_numbers(const InPlaceAbn& abn, int64_t channel, float (&to)[forward_kinds]) {
  find_forward(abn.statistics, abn.affine, abn.eps, abn.x.channels, channel, true, to);
}

// What recovers y from what was kept, then dx = c₄ dy + c₅ (y - bias) + c₆.
//   from the output: bias, the greatest |y - bias|
//   from the input:  y - bias = (x - c₀) c₁ + c₂, bias
constexpr int recovery_kinds = 4;
constexpr int backward_kinds = recovery_kinds + 3;

template <int kinds>
__device__ void find_numbers(const InPlaceAbnBackward& abn, int64_t channel, float (&to)[kinds]) {
  const int64_t channels = abn.kept.channels;
  const double count = abn.statistics[2 * channels + channel];
  const double gain = abn.affine[channel];
  const float bias = abn.affine[channels + channel];
  if (abn.kept_input) {
    float recovery[forward_kinds];
    find_forward(abn.statistics, abn.affine, abn.eps, channels, channel, false, recovery);
    to[0] = recovery[0];
    to[1] = recovery[1];
    to[2] = recovery[2];
    to[3] = bias;
  } else {
    // No normalised value is further out; a rounded output may say so.
    to[0] = bias;
    to[1] = (float)(gain * sqrt(count > 1 ? count - 1 : 0));
    to[2] = to[3] = 0;
  }
  if constexpr (kinds == backward_kinds) {
    const double inverse = 1 / sqrt(abn.statistics[channels + channel] + (double)abn.eps);
    to[4] = (float)(gain * inverse);
    const bool known = count == infinity();  // statistics that do not depend on the batch
    to[5] = known ? 0 : (float)(-inverse * abn.sums[channels + channel] / (gain * count));
    to[6] = known ? 0 : (float)(-inverse * gain * abn.sums[channel] / count);
  }
}

// Numbers of the channels of a block, by [kind, piece of a lane, lane], so that neither those who
// write nor those who read meet in a bank. A thread finds those of one channel, of `all`.
template <int kinds, int width, typename Abn>
__device__ void find_for_block(const Abn& abn, int64_t all, int lanes, int64_t group,
                               float* found) {
  constexpr int piece = float_piece<width>;
  const int pieces = threadIdx.x / piece;
  const int of_lane = pieces / lanes * piece + threadIdx.x % piece;
  const int64_t channel = (group * lanes + pieces % lanes) * width + of_lane;
  if (of_lane < width && channel < all) {
    float values[kinds];
    find_numbers(abn, channel, values);
#pragma unroll
    for (int kind = 0; kind < kinds; ++kind) {
      found[kind * lanes * width + threadIdx.x] = values[kind];
    }
  }
  sync_block();
}

// Those of the channels of a thread.
template <int kinds, int width>
__device__ void take_own(int lanes, int lane, const float* found, float (&own)[kinds][width]) {
  constexpr int piece = float_piece<width>;
#pragma unroll
  for (int i = 0; i < kinds * width; i += piece) {
    const auto some =
        reinterpret_cast<const Vector<float, piece>*>(found)[i / piece * lanes + lane];
#pragma unroll
    for (int v = 0; v < piece; ++v) {
      own[(i + v) / width][(i + v) % width] = some.values[v];
    }
  }
}

struct Recovered {
  float grad;      // of y
  float centered;  // y - bias
};

// The step between numbers just above -1.
__device__ inline float step_above_minus_one(float) {
  return 0x1p-24f;
}
__device__ inline float step_above_minus_one(bfloat16) {
  return 0x1p-8f;
}
__device__ inline float step_above_minus_one(float16) {
  return 0x1p-11f;
}

template <bool is_elu, bool is_kept_input>
struct Kind {
  static constexpr bool elu = is_elu, kept_input = is_kept_input;
};

template <typename Body>
__device__ void with_kind(const InPlaceAbnBackward& abn, const Body& body) {
  const bool elu = abn.activation == Activation::elu;
  if (abn.kept_input) {
    elu ? body(Kind<true, true>()) : body(Kind<false, true>());
  } else {
    elu ? body(Kind<true, false>()) : body(Kind<false, false>());
  }
}

// The numbers of channel v of a thread, with inverse = 1 / parameter; where y is 0, the gradient is
// that of its negative side.
template <typename Kind, typename T, int kinds, int width>
__device__ Recovered recover(Kind, const InPlaceAbnBackward& abn, float inverse, float grad,
                             T stored, const float (&c)[kinds][width], int v) {
  const float kept = to_float(stored);
  const float p = abn.parameter;
  if constexpr (Kind::kept_input) {
    const float centered = (kept - c[0][v]) * c[1][v] + c[2][v];
    const float y = centered + c[3][v];
    if constexpr (Kind::elu) {
      return {y > 0 ? grad : grad * (p * exp_fast(y)), centered};
    } else {
      const float lower = abn.activation == Activation::relu ? 0.0f : grad * p;
      return {y > 0 ? grad : lower, centered};
    }
  }
  float y = kept;
  if constexpr (Kind::elu) {
    const float ratio = kept * inverse;
    const float lowest = step_above_minus_one(stored) - 1.0f;
    y = kept > 0 ? kept : log_fast((ratio < lowest ? lowest : ratio) + 1.0f);
    grad *= kept > 0 ? 1.0f : kept + p;
  } else {
    y = kept > 0 ? kept : kept * inverse;
    grad *= kept > 0 ? 1.0f : p;
  }
  const float centered = y - c[0][v];
  const float most = c[1][v];
  // Written so that NaN stays NaN.
  return {grad, centered > most ? most : centered < -most ? -most : centered};
}

}  // namespace
}  // namespace openseg
