// SPDX-License-Identifier: MIT
// Products of many pixels with few region vectors, as object_attention and spatial_gather take
// them. A warp owns 16 pixels: their scores for all regions lie in its registers, `regions` / 8
// results of mma side by side, so that nothing of size pixels x regions is ever in global memory.
//
// Sums over pixels are formed by each block in memory of its own, in the order of the registers,
// and added up by a later kernel in the order of blocks: the same in every run.
#pragma once

#include "common/fragments.cuh"
#include "common/map_tile.cuh"

namespace openseg {

constexpr int warp_pixels = 16;
constexpr int most_regions = 256;
constexpr int64_t least_shared_memory = 99 << 10;  // that a block can have on every sm_80 and later

// Runs `body`, an expression that uses `regions`, for the least that is enough for `count`: 150 and
// 171 are the classes of ADE20K and COCO-Stuff. The caller has checked `count`.
#define OPENSEG_DISPATCH_REGIONS(count, ...) \
  if ((count) <= 64) {                       \
    constexpr int regions = 64;              \
    __VA_ARGS__;                             \
  } else if ((count) <= 176) {               \
    constexpr int regions = 176;             \
    __VA_ARGS__;                             \
  } else {                                   \
    constexpr int regions = 256;             \
    __VA_ARGS__;                             \
  }

// Shared memory of a block: two stages of tiles, one of which is on its way while the other is
// used, and [pixels, regions] weights.
template <typename T, int regions>
class PixelBlock {
  static constexpr int64_t bytes(int warps) {
    const int64_t tiles = 2 * (warp_pixels * warps + regions) * tile_stride<T>;
    return (tiles + (int64_t)warp_pixels * warps * weights_stride) * (int64_t)sizeof(T);
  }

 public:
  static constexpr int weights_stride = regions + 16 / sizeof(T);
  static constexpr int warps = bytes(8) <= least_shared_memory   ? 8
                               : bytes(4) <= least_shared_memory ? 4
                               : bytes(2) <= least_shared_memory ? 2
                                                                 : 1;
  static constexpr int threads = warps * warp_size;
  static constexpr int pixels = warps * warp_pixels;

  __host__ __device__ explicit PixelBlock(SharedMemory& shared)
      : pixels_{shared.take<T>(pixels * tile_stride<T>), shared.take<T>(pixels * tile_stride<T>)},
        vectors_{shared.take<T>(regions * tile_stride<T>),
                 shared.take<T>(regions * tile_stride<T>)},
        weights_(shared.take<T>(pixels * weights_stride)) {}

  __device__ T* pixel_tile(int stage) const { return stage == 0 ? pixels_[0] : pixels_[1]; }
  __device__ T* vector_tile(int stage) const { return stage == 0 ? vectors_[0] : vectors_[1]; }
  __device__ T* weights() const { return weights_; }

  // The rows of this warp's pixels.
  __device__ T* own_pixels(int stage) const {
    return pixel_tile(stage) + warp_index() * warp_pixels * tile_stride<T>;
  }
  __device__ T* own_weights() const {
    return weights_ + warp_index() * warp_pixels * weights_stride;
  }

 private:
  T* pixels_[2];
  T* vectors_[2];
  T* weights_;
};

// Rows of vectors that products read: those beyond the regions are zeros.
__device__ inline int padded_regions(int64_t count) {
  return (int)ceil_div(count, 16) * 16;
}

// Where values[i][e] of a product lies in its 16 rows.
__device__ inline int row_of(int e) {
  return lane_index() / 4 + 8 * (e / 2);
}

__device__ inline int column_of(int i, int e) {
  return 8 * i + 2 * (lane_index() % 4) + e % 2;
}

template <int size>
__device__ void clear(float (&values)[size][4]) {
#pragma unroll
  for (int i = 0; i < size; ++i) {
    values[i][0] = values[i][1] = values[i][2] = values[i][3] = 0;
  }
}

template <typename T, int size>
__device__ void put_rows(T* rows, int stride, const float (&values)[size][4]) {
#pragma unroll
  for (int i = 0; i < size; ++i) {
    T* const to = rows + row_of(0) * stride + column_of(i, 0);
    store_pair(to, values[i][0], values[i][1]);
    store_pair(to + 8 * stride, values[i][2], values[i][3]);
  }
}

template <int size>
__device__ void scale_rows(float (&values)[size][4], float upper, float lower) {
#pragma unroll
  for (int i = 0; i < size; ++i) {
    values[i][0] *= upper;
    values[i][1] *= upper;
    values[i][2] *= lower;
    values[i][3] *= lower;
  }
}

// The warp's 16 rows of one tile of a map, by way of a tile in shared memory that is free.
template <typename T, int size>
__device__ void write_rows(const Map& map, const TileStart& start, T* tile,
                           const float (&values)[size][4]) {
  put_rows(tile, tile_stride<T>, values);
  sync_warp();
  store_rows(map, start, tile);
}

// scores += pixels vectorsT, over the channels of one tile.
template <typename T, int size>
__device__ void add_scores(float (&scores)[size][4], const T* pixels, const T* vectors,
                           int64_t count) {
#pragma unroll 1
  for (int depth = 0; depth < tile_channels<T>; depth += step_depth<T>) {
    uint32_t left[4];
    load_left(left, pixels + depth, tile_stride<T>);
#pragma unroll
    for (int i = 0; i < size; i += 2) {
      if (8 * i < count) {
        uint32_t right[2][2];
        load_right_transposed(right, vectors + 8 * i * tile_stride<T> + depth, tile_stride<T>);
        multiply<T>(scores[i], left, right[0]);
        multiply<T>(scores[i + 1], left, right[1]);
      }
    }
  }
}

// mixed = weights vectors, for the channels of one tile; `weights` are the rows of this warp.
template <typename T, int size>
__device__ void mix(float (&mixed)[size][4], const T* weights, int weights_stride, const T* vectors,
                    int64_t count) {
  static_assert(size == tile_channels<T> / 8);
  clear(mixed);
#pragma unroll 1
  for (int depth = 0; depth < count; depth += step_depth<T>) {
    uint32_t left[4];
    load_left(left, weights + depth, weights_stride);
#pragma unroll
    for (int i = 0; i < size; i += 2) {
      uint32_t right[2][2];
      load_right(right, vectors + depth * tile_stride<T> + 8 * i, tile_stride<T>);
      multiply<T>(mixed[i], left, right[0]);
      multiply<T>(mixed[i + 1], left, right[1]);
    }
  }
}

// Sums over pixels of 16 regions x 16 channels are 2 x 32 pieces: piece `lane` of half h is what
// mma leaves in that lane for channels 8h … 8h + 7.
struct alignas(16) SumPiece {
  float values[4];
};

constexpr int sum_pieces = 2 * warp_size;

// Whose sum the number `index` of a row of `columns` such squares for 16 regions each is.
struct SumPlace {
  int region, channel;

  __device__ SumPlace(int64_t index, int columns) {
    const int e = index % 4;
    const int lane = index / 4 % warp_size;
    const int half = index / (4 * warp_size) % 2;
    const int square = index / (4 * sum_pieces);
    region = square / columns * 16 + lane / 4 + 8 * (e / 2);
    channel = square % columns * 16 + 8 * half + 2 * (lane % 4) + e % 2;
  }
};

// sums += weightsT pixels over the `rows` pixels of a block, for the channels of one tile; where
// `first`, there were no sums before. A thread meets the same pieces each time.
template <typename T>
__device__ void add_sums(SumPiece* sums, bool first, const T* weights, int weights_stride,
                         const T* pixels, int rows, int64_t count) {
  constexpr int columns = tile_channels<T> / 16;
  const int squares = (int)ceil_div(count, 16) * columns;
  for (int square = warp_index(); square < squares; square += blockDim.x / warp_size) {
    SumPiece* const pieces = sums + square * sum_pieces + lane_index();
    SumPiece before[2] = {};
    if (!first) {
      before[0] = pieces[0];
      before[1] = pieces[warp_size];
    }
    float sum[2][4] = {};
    const T* const left_rows = weights + square / columns * 16;
    const T* const right_rows = pixels + square % columns * 16;
#pragma unroll 2
    for (int row = 0; row < rows; row += step_depth<T>) {
      uint32_t left[4];
      load_left_transposed(left, left_rows + row * weights_stride, weights_stride);
      uint32_t right[2][2];
      load_right(right, right_rows + row * tile_stride<T>, tile_stride<T>);
      multiply<T>(sum[0], left, right[0]);
      multiply<T>(sum[1], left, right[1]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        before[half].values[e] += sum[half][e];
      }
      pieces[half * warp_size] = before[half];
    }
  }
}

}  // namespace openseg
