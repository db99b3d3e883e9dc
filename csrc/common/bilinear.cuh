// SPDX-License-Identifier: MIT
// Where the pixels of an upsampled map come from, in exact integers: which output positions belong
// to an input position is then the same whoever asks, from either side.
#pragma once

#include "common/check.h"
#include "common/device.cuh"

namespace openseg {

struct Source {
  int index;     // the upper or left neighbour
  float weight;  // of the other neighbour, 0 <= weight < 1
};

// One axis of an upsampling from `in` to `out` positions.
struct Axis {
  int in;
  int out;
  bool align_corners;

  // Output position p lies at numerator(p) / denominator() of the input.
  __host__ __device__ int denominator() const {
    return !align_corners ? 2 * out : out > 1 ? out - 1 : 1;
  }

  __host__ __device__ int numerator(int position) const {
    if (align_corners) {
      return position * (in - 1) * (out > 1);
    }
    const int shifted = (2 * position + 1) * in - out;
    return shifted > 0 ? shifted : 0;
  }

  __device__ Source source(int position) const {
    const int index = numerator(position) / denominator();
    return {index, weight(position, index)};
  }

  __device__ float weight(int position, int index) const {
    return (float)(numerator(position) - index * denominator()) / (float)denominator();
  }

  __device__ int next(int index) const { return index + 1 < in ? index + 1 : index; }

  // How much input position `index` counts where the source has that index and weight: the last
  // position is its own neighbour.
  __device__ float own_share(int index, float weight) const {
    return index + 1 < in ? 1.0f - weight : 1.0f;
  }

  // The first output position whose source index is at least `index`; `out` if there is none.
  __host__ __device__ int first(int index) const {
    if (index <= 0) {
      return 0;
    }
    if (index >= in || (align_corners && out == 1)) {
      return out;
    }
    const int above = align_corners ? index * (out - 1) : (2 * index + 1) * out - in;
    const int below = align_corners ? in - 1 : 2 * in;
    const int position = above > 0 ? (above + below - 1) / below : 0;
    return position < out ? position : out;
  }
};

inline Axis make_axis(int64_t in, int64_t out, bool align_corners) {
  OPENSEG_CHECK(in * out < 1 << 29, "upsampling from ", in, " to ", out,
                " positions is beyond what the CUDA kernels count in 32 bits");
  return {(int)in, (int)out, align_corners};
}

}  // namespace openseg
