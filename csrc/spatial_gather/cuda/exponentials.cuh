// SPDX-License-Identifier: MIT
// Exponentials of logits over pixels: their sums for each region, and, once their greatest logits
// are known, the weights of tiles of pixels.
//
// Weights are 2^15 times what they are: float16 then has those of 2^-29 in full. Logits times the
// scale are rounded before the greatest is subtracted, as it was: of equal ones, however large, the
// differences are zero.
#pragma once

#include "common/region_products.cuh"

namespace openseg {

constexpr float lowest = -3.4e38f;  // finite, so that a split of logits at -inf counts as nothing
constexpr float weight_unit = 1.0f / (1 << 15);

// The greatest value so far, and the sum of exp(value - greatest).
struct Exponentials {
  float greatest = lowest;
  float sum = 0;

  template <int count>
  __device__ void add(const float (&values)[count]) {
    const float before = greatest;
    for (int i = 0; i < count; ++i) {
      greatest = fmaxf(greatest, values[i]);
    }
    sum *= exp_fast(before - greatest);
    for (int i = 0; i < count; ++i) {
      sum += exp_fast(values[i] - greatest);
    }
  }

  __device__ void add(float other_greatest, float other_sum) {
    const float both = fmaxf(greatest, other_greatest);
    sum = sum * exp_fast(greatest - both) + other_sum * exp_fast(other_greatest - both);
    greatest = both;
  }
};

// Of a region at every `step`th pixel from the start to `end`.
template <typename T>
__device__ Exponentials exponentials(const Map& logits, float scale, const TileStart& start,
                                     int step, int64_t end) {
  constexpr int at_once = 8;  // loads under way in each thread
  const T* at = element<T>(logits, start);
  const int64_t stride = step * logits.stride_pixel;
  Exponentials result;
  int left = (int)ceil_div(end - start.pixel, step);
  for (; left >= at_once; left -= at_once) {
    float values[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      values[i] = rounded_product(scale, to_float(*at));
      at += stride;
    }
    result.add(values);
  }
  for (; left > 0; --left) {
    const float value[1] = {rounded_product(scale, to_float(*at))};
    result.add(value);
    at += stride;
  }
  return result;
}

// weights[row, region] = exp(scale * logit - greatest) * factors[region] / weight_unit; without
// factors, these are 1. Rows without a pixel have the weights of the last one, for what they are
// multiplied with is zero; columns without a region are zeros.
struct Weights {
  const Map& logits;
  float scale;
  const float* greatest;
  const float* factors;

  // Of `rows` pixels, by `workers` warps; neighbours in memory go to neighbouring lanes.
  template <int rows, int workers, typename T>
  __device__ void fill(T* weights, int stride, const TileStart& start, int worker) const {
    OPENSEG_DISPATCH_FLOATING(logits.dtype, {
      if (logits.stride_channel == 1) {
        constexpr int most = 8 * workers;
        constexpr int some = rows < most ? rows : most;
        for (int row = 0; row < rows; row += some) {
          fill_rows<scalar_t, some, workers>(weights + row * stride, stride,
                                             {start.batch, start.pixel + row, 0}, worker);
        }
      } else {
        fill_columns<scalar_t, rows, workers>(weights, stride, start, worker);
      }
    })
  }

 private:
  struct Region {
    float scale, greatest, factor;

    __device__ float weight(float logit) const {
      return factor * exp_fast(rounded_product(scale, logit) - greatest);
    }
  };

  __device__ Region region(int index) const {
    if (index >= logits.channels) {
      return {scale, 0, 0};
    }
    return {scale, greatest[index], (factors ? factors[index] : 1.0f) / weight_unit};
  }

  // Regions are neighbours. The pointers move along, for the compiler would find them anew.
  template <typename L, int rows, int workers, typename T>
  __device__ void fill_rows(T* weights, int stride, const TileStart& start, int worker) const {
    constexpr int lines = rows / workers;
    const int count = (int)logits.channels;
    const TileInside inside(logits, start, rows, count);
    const L* at[lines];
#pragma unroll
    for (int i = 0; i < lines; ++i) {
      const int row = worker + i * workers;
      const int real = row < inside.rows ? row : inside.rows - 1;
      at[i] = element<L>(logits, start) + real * logits.stride_pixel + lane_index();
    }
    T* to = weights + worker * stride + lane_index();
#pragma unroll 1
    for (int index = lane_index(); index < padded_regions(count); index += warp_size) {
      const Region own = region(index);
      float values[lines];
#pragma unroll
      for (int i = 0; i < lines; ++i) {
        values[i] = index < count ? to_float(*at[i]) : 0;
        at[i] += warp_size;
      }
#pragma unroll
      for (int i = 0; i < lines; ++i) {
        store(&to[i * workers * stride], own.weight(values[i]));
      }
      to += warp_size;
    }
  }

  // Pixels are neighbours.
  template <typename L, int rows, int workers, typename T>
  __device__ void fill_columns(T* weights, int stride, const TileStart& start, int worker) const {
    constexpr int columns = warp_size / rows;
    constexpr int step = workers * columns;
    constexpr int at_once = 16 / step < 8 ? 16 / step : 8;  // loads under way in each thread
    const int count = (int)logits.channels;
    const TileInside inside(logits, start, rows, count);
    const int row = lane_index() % rows;
    const int real = row < inside.rows ? row : inside.rows - 1;
    const int first = worker * columns + lane_index() / rows;
    const L* at = element<L>(logits, start) + real + first * logits.stride_channel;
    T* to = weights + row * stride + first;
#pragma unroll 1
    for (int index = first; index < padded_regions(count); index += at_once * step) {
      float values[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        values[i] = index + i * step < count ? to_float(*at) : 0;
        at += step * logits.stride_channel;
      }
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        store(&to[i * step], region(index + i * step).weight(values[i]));
      }
      to += at_once * step;
    }
  }
};

}  // namespace openseg
