// SPDX-License-Identifier: MIT
// The pixels of sets, and how blocks bring channels of them into shared memory and results back.
// Only this knows of the layout of maps, and of where the pixels of a set lie.
#pragma once

#include "common/attention.h"
#include "common/check.h"
#include "common/fragments.cuh"

namespace openseg {

struct Source {
  Map map;
  bool in_vectors;  // all pixels have their channels in aligned vectors of 16 bytes
};

inline Source source_of(const Map& map) {
  OPENSEG_CHECK(map.stride_pixel < (int64_t)1 << 31, "attention in a map whose pixels are ",
                map.stride_pixel,
                " elements apart is beyond what the CUDA kernels count in 32 bits");
  const int64_t size = map.dtype == DType::float32 ? 4 : 2;
  const int64_t misalignment = ((int64_t)map.data | map.stride_batch * size |
                                map.stride_pixel * size | map.channels * size) %
                               16;
  return {map, map.stride_channel == 1 && misalignment == 0};
}

// The `rows` pixels that a block owns, and their set, which has row_blocks such blocks.
template <int rows>
class Place {
 public:
  __device__ Place(const PixelSets& sets, const int& row_blocks)
      : sets_(sets), row_blocks_(row_blocks), set_((int)blockIdx.x / row_blocks) {
    const int across = (int)sets.across;
    origin_ = set_ / across * (int)sets.stride_down + set_ % across * (int)sets.stride_across;
  }

  __device__ static int image() { return (int)blockIdx.y; }

  // Pixels of the set.
  __device__ int length() const { return (int)(sets_.columns * sets_.lines); }

  // Which pixel of the set is in a row.
  __device__ int own(int row) const { return (int)blockIdx.x % row_blocks_ * rows + row; }

  // Where pixel n of the set lies in the map, -1 beyond the last.
  __device__ int pixel(int n) const {
    const int columns = (int)sets_.columns;
    const int lines = n < columns ? 0 : n / columns;
    const int column = n - lines * columns;
    const int there = origin_ + lines * (int)sets_.stride_line + column * (int)sets_.stride_column;
    return n < length() ? there : -1;
  }

  __device__ auto own_pixels() const {
    return [this](int row) { return pixel(own(row)); };
  }

  // The number of pixel n among those of all sets.
  __device__ int number(int n) const {
    return (image() * (int)(sets_.down * sets_.across) + set_) * length() + n;
  }

 private:
  const PixelSets& sets_;
  const int& row_blocks_;
  int set_;  // of the image
  int origin_;
};

// Fills a piece with channels `first_channel` … of the pixels of a map that rows(i) names for its
// rows, with zeros where it names none, -1, and beyond the channels. `thread` of `threads` calls
// it.
template <typename T, int threads, int pixels, int channels, int stride, typename Rows>
__device__ void copy_piece(T* to, const Source& source, int image, Rows rows, int first_channel,
                           int thread) {
  const Map& map = source.map;
  const T* const start = static_cast<const T*>(map.data) + image * map.stride_batch;
  const int left = (int)map.channels - first_channel;
  const int stride_pixel = (int)map.stride_pixel;
  if (source.in_vectors) {
    constexpr int size = 16 / sizeof(T);
    constexpr int vectors = channels / size;
    constexpr int rows_at_once = threads / vectors;
    static_assert(pixels % rows_at_once == 0);
    const int column = thread % vectors * size;
#pragma unroll 1
    for (int i = 0; i < pixels / rows_at_once; ++i) {
      const int row = i * rows_at_once + thread / vectors;
      const int pixel = rows(row);
      const bool there = pixel >= 0 && column < left;
      const int64_t offset = (int64_t)pixel * stride_pixel + first_channel + column;
      copy_async(&to[row * stride + column], start + (there ? offset : 0), there);
    }
    return;
  }
  const bool along_channels = map.stride_channel == 1;
#pragma unroll 1
  for (int i = thread; i < pixels * channels; i += threads) {
    const int row = along_channels ? i / channels : i % pixels;
    const int column = along_channels ? i % channels : i / pixels;
    const int pixel = rows(row);
    T value{};
    if (pixel >= 0 && column < left) {
      value = start[(int64_t)pixel * stride_pixel + (first_channel + column) * map.stride_channel];
    }
    to[row * stride + column] = value;
  }
}

struct alignas(16) Vector {
  uint32_t words[4];
};

// Word j of lane i of four becomes word i of lane j.
__device__ inline void transpose_words(Vector& vector) {
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    const bool upper = lane_index() & distance;
#pragma unroll
    for (int low = 0; low < 4; ++low) {
      if (low & distance) {
        continue;
      }
      uint32_t& first = vector.words[low];
      uint32_t& second = vector.words[low + distance];
      const uint32_t other =
          bits_of(shuffle_xor(float_from_bits(upper ? first : second), distance));
      (upper ? first : second) = other;
    }
  }
}

// Writes factor * sums to channels of a pixel, as Place::pixel names it. They are one row of
// results of mma side by side, of which a lane has numbers 2 * half and 2 * half + 1.
template <typename T, int tiles>
__device__ void write_row(const Source& to, int image, int at, int first_channel,
                          const float (&sums)[tiles][4], int half, float factor) {
  const Map& map = to.map;
  const bool inside = at >= 0;
  T* const pixel = static_cast<T*>(map.data) + image * map.stride_batch +
                   (int64_t)(inside ? at : 0) * (int)map.stride_pixel;
  const int position = lane_index() % 4;
  if constexpr (sizeof(T) == 2 && tiles % 4 == 0) {
    if (to.in_vectors) {  // whole ones for each lane
#pragma unroll
      for (int tile = 0; tile < tiles; tile += 4) {
        Vector vector;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          store_pair(reinterpret_cast<T*>(&vector.words[i]), factor * sums[tile + i][2 * half],
                     factor * sums[tile + i][2 * half + 1]);
        }
        transpose_words(vector);
        const int channel = first_channel + (tile + position) * 8;
        if (inside && channel < map.channels) {
          store_whole(reinterpret_cast<Vector*>(&pixel[channel]), vector);
        }
      }
      return;
    }
  }
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const int channel = first_channel + tile * 8 + position * 2;
    const float first = factor * sums[tile][2 * half];
    const float second = factor * sums[tile][2 * half + 1];
    if (inside && to.in_vectors && channel < map.channels) {
      store_pair(&pixel[channel], first, second);
    } else if (inside) {
      if (channel < map.channels) {
        store(&pixel[channel * map.stride_channel], first);
      }
      if (channel + 1 < map.channels) {
        store(&pixel[(channel + 1) * map.stride_channel], second);
      }
    }
  }
}

// Elements of each of the two statistics.
inline int64_t statistics_count(const Attention& call) {
  return call.query.batch * call.query.pixels;
}

inline void check_attention(const Attention& call) {
  for (const Map* map : {&call.query, &call.value}) {
    OPENSEG_CHECK(map->channels > 0 && map->channels <= 512, "attention of ", map->channels,
                  " channels: the CUDA kernels serve 1 to 512");
  }
  // There are no more blocks than pixels.
  OPENSEG_CHECK(call.query.pixels < ((int64_t)1 << 31) / (call.query.batch + 1), "attention in ",
                call.query.batch, " maps of ", call.query.pixels,
                " pixels is beyond what the CUDA kernels count in 32 bits");
}

}  // namespace openseg
