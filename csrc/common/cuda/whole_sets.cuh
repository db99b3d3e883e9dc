// SPDX-License-Identifier: MIT
// What the passes of attention in whole sets share. A block has all pixels of one set, and the
// weights of all pairs of them in shared memory: sums over pixels are complete in the block, and
// maps are read once for each product over their channels. These come in tiles, 128 bytes of
// channels of all pixels, two at a time: of two maps, or of one map twice as many channels.
//
// A warp has 32 rows of every product, so that what it loads of the right factor serves two mma.
#pragma once

#include "common/cuda/set_maps.cuh"
#include "common/map_tile.cuh"

namespace openseg {

// What steps `begin` … `end` - 1 of a block need. Where it is of one map, that is here twice.
struct TilePairs {
  Source maps[2];
  bool one_map;
  int begin, end;
};

constexpr int max_tile_pairs = 3;

struct SetProgram {
  TilePairs pairs[max_tile_pairs];
  PixelSets sets;
  int row_blocks;  // of a set: 1
  int stages;      // pairs of tiles in shared memory; with 2, one is loaded while the other is used
};

template <typename T, int size>
struct SetShape {
  using Number = T;
  static constexpr int rows = size;
  static constexpr int threads = 2 * rows;  // two warps for 32 rows: each has half of the columns
  static constexpr int blocks = rows == 64                      ? 4
                                : rows == 128 && sizeof(T) == 2 ? 2
                                                                : 1;  // of a multiprocessor
  static constexpr int score_tiles = rows / 16;                       // of 8 columns
  static constexpr int channels = tile_channels<T>;
  static constexpr int tile = rows * tile_stride<T>;
  static constexpr int weights_stride = rows + 16 / sizeof(T);
};

template <typename Shape>
struct SetMemory {
  using T = typename Shape::Number;
  T* weights;
  float* by_row;  // [2, rows]: of the two warps that share a row
  int* pixels;    // of the rows, as Place::pixel names them
  T* tiles;       // last: what lies before them has its place without a register

  __host__ __device__ SetMemory(SharedMemory& shared, const SetProgram& program)
      : weights(shared.take<T>(Shape::rows * Shape::weights_stride)),
        by_row(shared.take<float>(2 * Shape::rows)),
        pixels(shared.take<int>(Shape::rows)),
        tiles(shared.take<T>(program.stages * 2 * Shape::tile)) {}
};

// The tiles of a block, in the order of the program.
template <typename Shape>
class TileStream {
 public:
  using T = typename Shape::Number;

  // `pixels`: of all rows
  __device__ TileStream(const SetProgram& program, const int* pixels, T* tiles)
      : program_(program), pixels_(pixels), tiles_(tiles) {
    if (program.stages == 2) {
      load(0);
    }
  }

  // Goes on to the next two tiles, side by side, if they are of these. Those of the step before may
  // be overwritten; what threads wrote to shared memory before the call is there for all.
  __device__ bool next(const TilePairs& pairs) {
    if (taken_ == pairs.end) {
      return false;
    }
    if (program_.stages == 1) {
      sync_block();
      load(taken_);
    }
    wait_for_copies<0>();
    sync_block();
    if (program_.stages == 2) {
      load(taken_ + 1);
    }
    ++taken_;
    return true;
  }

  __device__ int step() const { return taken_ - 1; }
  __device__ const T* tiles() const { return stage(step()); }

 private:
  __device__ T* stage(int step) const {
    return tiles_ + (step & (program_.stages - 1)) * 2 * Shape::tile;
  }

  __device__ void load(int step) {
    T* const to = stage(step);
#pragma unroll 1
    for (int phase = 0; phase < max_tile_pairs; ++phase) {
      const TilePairs& pairs = program_.pairs[phase];
      if (step >= pairs.end) {
        continue;
      }
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {
        const int tile = pairs.one_map ? 2 * (step - pairs.begin) + i : step - pairs.begin;
        copy_piece<T, Shape::threads, Shape::rows, Shape::channels, tile_stride<T>>(
            to + i * Shape::tile, pairs.maps[i], Place<Shape::rows>::image(),
            [pixels = pixels_](int row) { return pixels[row]; }, tile * Shape::channels,
            (int)threadIdx.x);
      }
      commit_copies();
      return;
    }
  }

  const SetProgram& program_;
  const int* pixels_;
  T* tiles_;
  int taken_ = 0;
};

// Of the four rows that a lane has part in: row(m, 2 * half).
using RowValues = float[2][2];

template <typename Shape>
class SetBlock {
 public:
  using T = typename Shape::Number;
  using Scores = float[2][Shape::score_tiles][4];

  __device__ SetBlock(const SetProgram& program, SharedMemory& shared)
      : program_(program),
        memory_(shared, program),
        place_(program.sets, program.row_blocks),
        stream_(program, find_pixels(), memory_.tiles) {}

  __device__ const Place<Shape::rows>& place() const { return place_; }
  __device__ static int column_warp() { return warp_index() % 2; }
  // See TileStream.
  __device__ bool next(const TilePairs& pairs) { return stream_.next(pairs); }
  __device__ const T* tile(int i) const { return stream_.tiles() + i * Shape::tile; }
  // The first channel of tile i.
  __device__ int channel(const TilePairs& pairs, int i) const {
    const int step = stream_.step() - pairs.begin;
    return (pairs.one_map ? 2 * step + i : step) * Shape::channels;
  }

  // Where numbers 2 * half, 2 * half + 1 of products of the 16 rows m lie.
  __device__ int row(int m, int half) const {
    return row_warp() * 32 + m * 16 + half * 8 + lane_index() / 4;
  }
  // Of tile i of Scores. Two neighbours in turn belong to each of the two warps, so that both have
  // as many columns of a set that is shorter than the shape.
  __device__ int column(int i) const {
    return (i / 2 * 2 + column_warp()) * 16 + i % 2 * 8 + lane_index() % 4 * 2;
  }

  // scores += left rightT, over the channels of a tile.
  __device__ void add_scores(Scores& scores, const T* left, const T* right) const {
    left += row_warp() * 32 * tile_stride<T>;
    right += column_warp() * 16 * tile_stride<T>;
#pragma unroll 1
    for (int channel = has_rows() ? 0 : Shape::channels; channel < Shape::channels;
         channel += step_depth<T>) {
      uint32_t lefts[2][4];
      load_left(lefts[0], left + channel, tile_stride<T>);
      load_left(lefts[1], left + 16 * tile_stride<T> + channel, tile_stride<T>);
#pragma unroll
      for (int i = 0; i < Shape::score_tiles; i += 2) {
        if (has_columns(i)) {
          uint32_t rights[2][2];
          load_right_transposed(rights, right + i * 16 * tile_stride<T> + channel, tile_stride<T>);
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            multiply<T>(scores[m][i], lefts[m], rights[0]);
            multiply<T>(scores[m][i + 1], lefts[m], rights[1]);
          }
        }
      }
    }
  }

  // Turns the products of query and key, whose tiles are the first pairs, into the exponentials of
  // scaled scores less the greatest of a row, and says by what they are to be multiplied.
  __device__ void weigh(Scores& scores, float scale, RowValues& most, RowValues& inverse) {
    const TilePairs& pairs = program_.pairs[0];
#pragma unroll 1
    while (next(pairs)) {
#pragma unroll 1
      for (int i = 0; i < (pairs.one_map ? 2 : 1); ++i) {
        add_scores(scores, tile(i), tile(pairs.one_map ? i : 1));
      }
    }
    fill(most, -infinity());
    fill(inverse, 0);
    for_each([&](int m, int i, int e) {
      const bool counts = column(i) + e % 2 < place_.length();
      scores[m][i][e] = counts ? scores[m][i][e] * scale : -infinity();
      most[m][e / 2] = fmaxf(most[m][e / 2], scores[m][i][e]);
    });
    combine(most, [](float a, float b) { return fmaxf(a, b); });
    for_each([&](int m, int i, int e) {
      scores[m][i][e] = exp_fast(scores[m][i][e] - most[m][e / 2]);
      inverse[m][e / 2] += scores[m][i][e];
    });
    combine(inverse, [](float a, float b) { return a + b; });
    for (int i = 0; i < 4; ++i) {
      inverse[i / 2][i % 2] = 1.0f / inverse[i / 2][i % 2];
    }
  }

  // Calls f(m, i, e) for each number of Scores.
  template <typename F>
  __device__ static void for_each(const F& f) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < Shape::score_tiles; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          f(m, i, e);
        }
      }
    }
  }

  __device__ static void fill(RowValues& values, float value) {
    values[0][0] = values[0][1] = values[1][0] = values[1][1] = value;
  }

  // Over whole rows, from what each lane has of them.
  template <typename F>
  __device__ void combine(RowValues& values, const F& f) {
    sync_block();  // by_row has been read
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float value = f(values[m][half], shuffle_xor(values[m][half], 1));
        value = f(value, shuffle_xor(value, 2));
        if (lane_index() % 4 == 0) {
          memory_.by_row[column_warp() * Shape::rows + row(m, half)] = value;
        }
      }
    }
    sync_block();
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* const two = memory_.by_row + row(m, half);
        values[m][half] = f(two[0], two[Shape::rows]);
      }
    }
  }

  __device__ T* weights(int m, int half) const {
    return memory_.weights + row(m, half) * Shape::weights_stride;
  }

  __device__ void store_weights(const Scores& scores) const {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < Shape::score_tiles; ++i) {
        store_left(weights(m, 0), column(i), scores[m][i][0], scores[m][i][1]);
        store_left(weights(m, 1), column(i), scores[m][i][2], scores[m][i][3]);
      }
    }
  }

  // sums += weights tile, or with the weights transposed, for 8 * count channels of the tile.
  template <bool transposed, int count>
  __device__ void mix(float (&sums)[2][count][4], const T* tile) const {
    constexpr int along = transposed ? Shape::weights_stride : 1;
    constexpr int across = transposed ? 1 : Shape::weights_stride;
    const T* const left = memory_.weights + row_warp() * 32 * across;
#pragma unroll 1
    for (int n = has_rows() ? 0 : place_.length(); n < place_.length(); n += step_depth<T>) {
      uint32_t lefts[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const T* const part = left + n * along + m * 16 * across;
        if constexpr (transposed) {
          load_left_transposed(lefts[m], part, Shape::weights_stride, depth_position<T>);
        } else {
          load_left(lefts[m], part, Shape::weights_stride);
        }
      }
#pragma unroll
      for (int i = 0; i < count; i += 2) {
        uint32_t rights[2][2];
        load_right(rights, tile + n * tile_stride<T> + i * 8, tile_stride<T>);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply<T>(sums[m][i], lefts[m], rights[0]);
          multiply<T>(sums[m][i + 1], lefts[m], rights[1]);
        }
      }
    }
  }

  // Writes factors * sums to 8 * count channels of the pixels.
  template <int count>
  __device__ void write(const Source& to, int channel, const float (&sums)[2][count][4],
                        const RowValues& factors) const {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        write_row<T>(to, place_.image(), memory_.pixels[row(m, half)], channel, sums[m], half,
                     factors[m][half]);
      }
    }
  }

 private:
  __device__ const int* find_pixels() const {
    if (threadIdx.x < Shape::rows) {
      memory_.pixels[threadIdx.x] = place_.pixel((int)threadIdx.x);
    }
    sync_block();
    return memory_.pixels;
  }

  __device__ bool has_rows() const { return row_warp() * 32 < place_.length(); }
  __device__ bool has_columns(int i) const { return i * 16 < place_.length() - column_warp() * 16; }

  const SetProgram& program_;
  const SetMemory<Shape> memory_;
  const Place<Shape::rows> place_;
  TileStream<Shape> stream_;
  __device__ static int row_warp() { return warp_index() / 2; }
};

// The maps of the products that come after those of `before`.
inline TilePairs tile_pairs(const TilePairs& before, const Map& first, const Map& second,
                            bool one_map) {
  const int64_t tile = 128 / (first.dtype == DType::float32 ? 4 : 2);
  TilePairs pairs;
  pairs.maps[0] = source_of(first);
  pairs.maps[1] = source_of(second);
  pairs.one_map = one_map;
  pairs.begin = before.end;
  pairs.end = before.end + (int)ceil_div(first.channels, one_map ? 2 * tile : tile);
  return pairs;
}

// Calls start(shape, bytes of shared memory) for the smallest shape of at most `most` rows that has
// room for the sets, if there is one and it fits into shared memory.
template <typename T, int most, int rows = 64, typename Start>
bool start_with_shape(SetProgram& program, const Start& start) {
  using Shape = SetShape<T, rows>;
  if (program.sets.pixels() > rows) {
    if constexpr (rows < most) {
      return start_with_shape<T, most, rows + 64>(program, start);
    }
    return false;
  }
  for (program.stages = 2; program.stages > 0; --program.stages) {
    SharedMemory shared(nullptr);
    SetMemory<Shape>(shared, program);
    if (shared.bytes() <= shared_memory_limit()) {
      start(Shape(), shared.bytes());
      return true;
    }
  }
  return false;
}

}  // namespace openseg
