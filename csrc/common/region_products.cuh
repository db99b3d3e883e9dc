// SPDX-License-Identifier: MIT
// Products of many pixels with few region vectors, as object_attention and spatial_gather take
// them. A warp owns some pixels: their scores for all regions lie in its registers, `regions` / 8
// results of mma side by side, so that nothing of size pixels x regions is ever in global memory.
//
// Sums over pixels are formed by each block in memory of its own, in the order of the registers,
// and added up by a later kernel in the order of blocks: the same in every run.
#pragma once

#include <algorithm>

#include "common/fragments.cuh"
#include "common/map_tile.cuh"

namespace openseg {

constexpr int most_regions = 256;
constexpr int most_pixels = 1 << 30;  // of an image: 32 bits count them
constexpr int block_warps = 8;
constexpr int block_threads = block_warps * warp_size;

// Runs `body`, an expression that uses `regions`, for the least that is enough for `count`: 19 are
// the classes of Cityscapes, 150 and 171 those of ADE20K and COCO-Stuff. The caller has checked
// `count`.
#define OPENSEG_DISPATCH_REGIONS(count, ...) \
  if ((count) <= 32) {                       \
    constexpr int regions = 32;              \
    __VA_ARGS__;                             \
  } else if ((count) <= 64) {                \
    constexpr int regions = 64;              \
    __VA_ARGS__;                             \
  } else if ((count) <= 176) {               \
    constexpr int regions = 176;             \
    __VA_ARGS__;                             \
  } else {                                   \
    constexpr int regions = 256;             \
    __VA_ARGS__;                             \
  }

// Times 16 pixels that a warp can own: a right factor in registers serves all of them.
template <typename T, int regions>
constexpr int most_row_tiles = sizeof(T) == 2 && regions <= 176 ? 2 : 1;

// Blocks at a time for which a multiprocessor has the registers.
template <int regions>
constexpr int blocks_per_multiprocessor = regions <= 64 ? 2 : 1;

// Rows of vectors that products read: those beyond the regions are zeros.
__host__ __device__ inline int padded_regions(int64_t count) {
  return (int)ceil_div(count, 16) * 16;
}

// How blocks share the pixels of every image: each takes `pixels` of them, `tile` at a time, both
// whole warps of pixels.
struct PixelShares {
  int64_t blocks;  // of an image
  int pixels, tile;

  __device__ int begin() const { return (int)blockIdx.x * pixels; }
  __device__ int end(const Map& map) const {
    const int end = begin() + pixels;
    return end < map.pixels ? end : (int)map.pixels;
  }
};

// The turns of a block: some steps for each tile of its pixels. Once what a step needs is there,
// what the next one needs is sent for, to the other of two stages: send(stage, first pixel, step).
template <typename Send>
class Turns {
 public:
  __device__ Turns(const int& count, const int& tile, const int& end, const Send& send)
      : count_(count), tile_(tile), end_(end), send_(send) {}

  // Starts this step of the tile from pixel `first`; -1 comes before the first step.
  __device__ void start(int first, int step) {
    wait_for_copies<0>();
    sync_block();
    const int next_stage = stage_;
    stage_ = 1 - stage_;
    if (++step == count_) {
      step = 0;
      first += tile_;
    }
    if (first < end_) {
      send_(next_stage, first, step);
      commit_copies();
    }
  }

  __device__ int stage() const { return stage_; }

 private:
  const int& count_;
  const int& tile_;
  const int& end_;
  const Send& send_;
  int stage_ = 0;
};

// Shared memory of a block: two stages of tiles, one of which is on its way while the other is
// used, and perhaps [pixels, regions] weights.
template <typename T, int regions, int row_tiles>
class PixelBlock {
 public:
  static constexpr int warp_pixels = 16 * row_tiles;

  __host__ __device__ PixelBlock(SharedMemory& shared, int pixels, int64_t count, bool weighted)
      : pixels_(pixels),
        vectors_(padded_regions(count)),
        pixel_tiles_(shared.take<T>(2 * pixels * tile_stride<T>)),
        vector_tiles_(shared.take<T>(2 * vectors_ * tile_stride<T>)),
        weights_(weighted ? shared.take<T>(pixels * weights_stride()) : nullptr) {}

  static int64_t bytes(int pixels, int64_t count, bool weighted) {
    SharedMemory measure(nullptr);
    PixelBlock block(measure, pixels, count, weighted);
    return measure.bytes();
  }

  // As many blocks as run at once, with tiles alike and as large as their shared memory allows.
  static PixelShares share(const Map& map, int64_t count, bool weighted) {
    constexpr int64_t reserved = 1 << 10;  // by the system, for every block
    constexpr int at_once = blocks_per_multiprocessor<regions>;
    const int64_t limit = shared_memory_limit() / at_once - (at_once - 1) * reserved;
    int64_t most = block_warps;  // warps with pixels
    while (most > 1 && bytes(most * warp_pixels, count, weighted) > limit) {
      --most;
    }
    const int64_t blocks =
        std::max<int64_t>(1, multiprocessor_count() * at_once / std::max<int64_t>(1, map.batch));
    const int64_t warps = std::max<int64_t>(1, ceil_div(map.pixels, blocks * warp_pixels));
    const int64_t tile = ceil_div(warps, ceil_div(warps, most));
    return {ceil_div(map.pixels, warps * warp_pixels), (int)warps * warp_pixels,
            (int)tile * warp_pixels};
  }

  __device__ T* pixel_tile(int stage) const {
    return pixel_tiles_ + stage * pixels_ * tile_stride<T>;
  }
  __device__ T* vector_tile(int stage) const {
    return vector_tiles_ + stage * vectors_ * tile_stride<T>;
  }
  __device__ T* weights() const { return weights_; }
  __host__ __device__ int weights_stride() const { return vectors_ + 16 / (int)sizeof(T); }

  // Rows for the pixels from `first` on, of the warps that have any.
  __device__ int rows(int first, int end) const {
    const int left = (end - first + warp_pixels - 1) / warp_pixels * warp_pixels;
    return left < pixels_ ? left : pixels_;
  }
  __device__ static int own_row() { return warp_index() * warp_pixels; }
  __device__ T* own_pixels(int stage) const {
    return pixel_tile(stage) + own_row() * tile_stride<T>;
  }
  __device__ T* own_weights() const { return weights_ + own_row() * weights_stride(); }

 private:
  int pixels_, vectors_;
  T* pixel_tiles_;
  T* vector_tiles_;
  T* weights_;
};

// Where values[i][e] of a product lies in its 16 rows.
__device__ inline int row_of(int e) {
  return lane_index() / 4 + 8 * (e / 2);
}

__device__ inline int column_of(int i, int e) {
  return 8 * i + 2 * (lane_index() % 4) + e % 2;
}

template <int rows, int size>
__device__ void clear(float (&values)[rows][size][4]) {
#pragma unroll
  for (int r = 0; r < rows; ++r) {
#pragma unroll
    for (int i = 0; i < size; ++i) {
      values[r][i][0] = values[r][i][1] = values[r][i][2] = values[r][i][3] = 0;
    }
  }
}

// Neighbours in a row of a tile that are one lane's: of 32 bits, the lanes of every other row take
// the second first, for else the banks of rows conflict.
template <typename T>
__device__ void put_pair(T* to, float first, float second) {
  if constexpr (sizeof(T) == 2) {
    store_pair(to, first, second);
  } else {
    const int turn = lane_index() / 4 % 2;
    store(&to[turn], turn == 0 ? first : second);
    store(&to[1 - turn], turn == 0 ? second : first);
  }
}

template <typename T>
__device__ void get_pair(const T* from, float& first, float& second) {
  if constexpr (sizeof(T) == 2) {
    read_pair(from, first, second);
  } else {
    const int turn = lane_index() / 4 % 2;
    const float one = to_float(from[turn]);
    const float other = to_float(from[1 - turn]);
    first = turn == 0 ? one : other;
    second = turn == 0 ? other : one;
  }
}

// The first `columns` columns of 16 rows.
template <typename T, int size>
__device__ void put_rows(T* rows, int stride, const float (&values)[size][4], int columns) {
#pragma unroll
  for (int i = 0; i < size; ++i) {
    if (8 * i < columns) {
      T* const to = rows + row_of(0) * stride + column_of(i, 0);
      put_pair(to, values[i][0], values[i][1]);
      put_pair(to + 8 * stride, values[i][2], values[i][3]);
    }
  }
}

// The same back; columns beyond `columns` stay what they are.
template <typename T, int size>
__device__ void get_rows(float (&values)[size][4], const T* rows, int stride, int columns) {
#pragma unroll
  for (int i = 0; i < size; ++i) {
    if (8 * i < columns) {
      const T* const from = rows + row_of(0) * stride + column_of(i, 0);
      get_pair(from, values[i][0], values[i][1]);
      get_pair(from + 8 * stride, values[i][2], values[i][3]);
    }
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

// scores += pixels vectorsT, over the channels of one tile.
template <typename T, int rows, int size>
__device__ void add_scores(float (&scores)[rows][size][4], const T* pixels, const T* vectors,
                           int count) {
#pragma unroll 1
  for (int depth = 0; depth < tile_channels<T>; depth += step_depth<T>) {
    uint32_t left[rows][4];
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      load_left(left[r], pixels + 16 * r * tile_stride<T> + depth, tile_stride<T>);
    }
#pragma unroll
    for (int i = 0; i < size; i += 2) {
      if (8 * i < count) {
        uint32_t right[2][2];
        load_right_transposed(right, vectors + 8 * i * tile_stride<T> + depth, tile_stride<T>);
#pragma unroll
        for (int r = 0; r < rows; ++r) {
          multiply<T>(scores[r][i], left[r], right[0]);
          multiply<T>(scores[r][i + 1], left[r], right[1]);
        }
      }
    }
  }
}

// The warp's rows of one tile of a map: factors weights vectors, by way of a tile in shared memory
// that is free. `weights` are left_factors.
template <typename T, int rows, int steps>
__device__ void write_mixed(const Map& map, const TileStart& start, T* tile,
                            const uint32_t (&weights)[rows][steps][4],
                            const float (&factors)[rows][2], const T* vectors, int count) {
  constexpr int size = 4;  // results at a time
#pragma unroll 1
  for (int channel = 0; channel < tile_channels<T>; channel += 8 * size) {
    float mixed[rows][size][4] = {};
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int depth = step * step_depth<T>;
      if (depth < count) {
#pragma unroll
        for (int i = 0; i < size; i += 2) {
          uint32_t right[2][2];
          load_right(right, vectors + depth * tile_stride<T> + channel + 8 * i, tile_stride<T>);
#pragma unroll
          for (int r = 0; r < rows; ++r) {
            multiply<T>(mixed[r][i], weights[r][step], right[0]);
            multiply<T>(mixed[r][i + 1], weights[r][step], right[1]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      scale_rows(mixed[r], factors[r][0], factors[r][1]);
      put_rows(tile + 16 * r * tile_stride<T> + channel, tile_stride<T>, mixed[r], 8 * size);
    }
  }
  sync_warp();
  store_rows<T, 16 * rows>(map, start, tile);
}

// sums += weightsT pixels, over `rows` pixels: for the first `squares` times 16 regions and the
// channels of all `size` results.
template <typename T, int most, int size>
__device__ void add_squares(float (&sums)[most][size][4], int squares, const T* weights,
                            int weights_stride, const T* pixels, int rows) {
#pragma unroll 1
  for (int row = 0; row < rows; row += step_depth<T>) {
    uint32_t right[size / 2][2][2];
#pragma unroll
    for (int i = 0; i < size / 2; ++i) {
      load_right(right[i], pixels + row * tile_stride<T> + 16 * i, tile_stride<T>);
    }
#pragma unroll
    for (int square = 0; square < most; ++square) {
      if (square < squares) {
        uint32_t left[4];
        load_left_transposed(left, weights + row * weights_stride + 16 * square, weights_stride);
#pragma unroll
        for (int i = 0; i < size; ++i) {
          multiply<T>(sums[square][i], left, right[i / 2][i % 2]);
        }
      }
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

  __device__ SumPlace(int index, int columns) {
    const int e = index % 4;
    const int lane = index / 4 % warp_size;
    const int half = index / (4 * warp_size) % 2;
    const int square = index / (4 * sum_pieces);
    region = square / columns * 16 + lane / 4 + 8 * (e / 2);
    channel = square % columns * 16 + 8 * half + 2 * (lane % 4) + e % 2;
  }
};

}  // namespace openseg
