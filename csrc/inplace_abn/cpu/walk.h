// SPDX-License-Identifier: MIT
// How both passes go over a map. Where pixels lie side by side, a thread takes a channel: it sums
// over it and writes it while it is in the cache. Where channels do, a task is a run of pixels of
// all channels; the sums of tasks are added in their order, then the map is gone over again.
//
// Vectors are of pixels with the coefficients of one channel, or of channels with coefficients of
// their own: Uniform or Rows.
#pragma once

#include "common/parallel.h"
#include "common/stream.h"

namespace openseg::OPENSEG_ISA {
namespace {

constexpr int64_t task_pixels = 512;  // a multiple of all numbers of rows that are summed at once
constexpr int64_t grain = 1 << 15;    // values that are worth a thread

template <typename T>
T* at(const Map& map, int64_t image, int64_t channel, int64_t pixel) {
  return (T*)map.data + image * map.stride_batch + channel * map.stride_channel +
         pixel * map.stride_pixel;
}

inline int64_t tasks_of(const Map& map) {
  return map.batch * ((map.pixels + task_pixels - 1) / task_pixels);
}

inline int64_t pitch_of(const Map& map) {
  return round_up(map.channels, lanes);
}

// Some pixels of one image.
struct Run {
  int64_t image, begin, end;
};

inline Run run_of(const Map& map, int64_t task) {
  const int64_t each = (map.pixels + task_pixels - 1) / task_pixels;
  const int64_t begin = task % each * task_pixels, left = map.pixels - begin;
  return {task / each, begin, begin + (left < task_pixels ? left : task_pixels)};
}

// body(first, count) for each vector of 0..count.
template <typename Body>
inline void for_vectors(int64_t count, const Body& body) {
  int64_t first = 0;
  for (; first + lanes <= count; first += lanes) {
    body(first, (int64_t)lanes);
  }
  if (first < count) {
    body(first, count - first);
  }
}

// to[first..] = value(first, count) for each vector of 0..count, whole lines past the cache where
// `streamed`: then vectors begin anew where the first line of `to` does.
template <typename T, typename Value>
inline void write_vectors(T* to, int64_t count, bool streamed, const Value& value) {
  int64_t begin = 0;
  if (streamed) {
    const int64_t before = -(uintptr_t)to % line_bytes / sizeof(T);
    begin = before < count ? before : count;
    for_vectors(begin, [&](int64_t i, int64_t left) { store_some(to + i, value(i, left), left); });
    for (; begin + lanes <= count; begin += lanes) {
      stream_float(to + begin, value(begin, lanes));
    }
  }
  for_vectors(count - begin, [&](int64_t i, int64_t left) {
    store_some(to + begin + i, value(begin + i, left), left);
  });
}

// Whether a result is to be streamed: not one that takes the place of what is read. Rows of
// channels are, where none begins within a line.
template <typename T>
bool is_streamed(const Map& result, const Map& read) {
  return is_large<T>(result) && result.data != read.data &&
         (!channels_are_neighbours(result) || begins_lines<T>(result));
}

template <int size>
struct Uniform {
  vfloat values[size];

  explicit Uniform(const float* coefficients) {
    for (int i = 0; i < size; ++i) {
      values[i] = splat(coefficients[i]);
    }
  }

  vfloat operator()(int i, int64_t) const { return values[i]; }
};

struct Rows {
  const float* start;
  int64_t pitch;

  vfloat operator()(int i, int64_t first) const { return load<vfloat>(start + i * pitch + first); }
};

// body(begin, end) on pieces of 0..count, each of which has `values` values.
template <typename Body>
void in_parallel(int64_t count, int64_t values, const Body& body) {
  run_parallel(
      count, 1 + grain / (values + 1),
      [](int64_t begin, int64_t end, void* context) { (*(const Body*)context)(begin, end); },
      (void*)&body);
}

template <Activation kind>
struct Kind {
  static constexpr Activation value = kind;
};

template <typename Body>
void with_kind(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::relu:
      return body(Kind<Activation::relu>{});
    case Activation::elu:
      return body(Kind<Activation::elu>{});
    default:
      return body(Kind<Activation::leaky_relu>{});
  }
}

}  // namespace
}  // namespace openseg::OPENSEG_ISA
