// SPDX-License-Identifier: MIT
// What the passes of attention share. A block owns some pixels of one set and meets all pixels of
// the set, 64 at a time. What it needs of maps comes through a ring of small pieces in
// shared memory, in the order of use, while earlier pieces are being multiplied:
//
// * for products over channels, 128 bytes of channels of the 64 pixels, and of the own pixels too
//   unless the block keeps those from the start;
// * for products over pixels, all channels of as many pixels as one product has depth.
//
// Pieces have the channels of a pixel side by side whatever the map has, and zeros beyond its
// pixels and channels. So nothing else depends on the layout of maps or on sets.
#pragma once

#include "common/attention.h"
#include "common/check.h"
#include "common/fragments.cuh"

namespace openseg {

constexpr int attention_threads = 256;
constexpr int tile_pixels = 64;
constexpr int ring_stages = 3;
constexpr int max_phases = 5;

struct Source {
  Map map;
  bool in_vectors;  // all pixels have their channels in aligned vectors of 16 bytes
};

// One product of every tile.
struct Phase {
  Source streamed;
  Source own;  // the other factor of a product over channels
  bool over_channels;
  int pieces;  // of each tile; 0: no such product
};

struct Program {
  Phase phases[max_phases];
  PixelSets sets;
  int tiles;       // of a set
  int row_blocks;  // of a set
  bool keeps_own;
};

// How a block of own_rows pixels and products of up to `width` channels lie in shared memory.
template <typename T, int own_rows, int width>
struct Shape {
  using Number = T;
  static constexpr int rows = own_rows;
  static constexpr int row_warps = rows / 16;
  static constexpr int column_warps = attention_threads / warp_size / row_warps;
  // Columns of a warp's share of a product, in tiles of 8.
  static constexpr int score_tiles = tile_pixels / 8 / column_warps;
  static constexpr int out_tiles = width / 8 / column_warps;

  static constexpr int out_width = width;
  static constexpr int chunk = 128 / sizeof(T);  // channels of a piece
  static constexpr int chunk_stride = chunk + 16 / sizeof(T);
  static constexpr int out_stride = width + 8;
  static constexpr int weights_stride = tile_pixels + 16 / sizeof(T);

  static constexpr int own_piece = rows * chunk_stride;
  static constexpr int streamed_piece = tile_pixels * chunk_stride;
  static constexpr int out_piece = step_depth<T> * out_stride;

  __host__ __device__ static constexpr int slot(bool keeps_own) {
    const int over_channels = streamed_piece + (keeps_own ? 0 : own_piece);
    return over_channels > out_piece ? over_channels : out_piece;
  }
};

// The part of a warp in the products of its block, and where a lane's numbers lie in them: number e
// of tile i is in row row(e) and column `tiles` * 8 * column_warp + column(i, e).
template <typename Shape>
struct WarpShare {
  int row_warp = warp_index() % Shape::row_warps;
  int column_warp = warp_index() / Shape::row_warps;

  __device__ int row(int e) const { return row_warp * 16 + lane_index() / 4 + e / 2 * 8; }
  __device__ int score_column(int tile, int e = 0) const {
    return (column_warp * Shape::score_tiles + tile) * 8 + lane_index() % 4 * 2 + e % 2;
  }

  // scores += own streamedT, over the channels of one piece.
  __device__ void add_scores(float (&scores)[Shape::score_tiles][4],
                             const typename Shape::Number* own,
                             const typename Shape::Number* streamed) const {
    using T = typename Shape::Number;
    own += row_warp * 16 * Shape::chunk_stride;
    streamed += column_warp * Shape::score_tiles * 8 * Shape::chunk_stride;
#pragma unroll
    for (int channel = 0; channel < Shape::chunk; channel += step_depth<T>) {
      uint32_t left[4];
      load_left(left, own + channel, Shape::chunk_stride);
#pragma unroll
      for (int tile = 0; tile < Shape::score_tiles; tile += 2) {
        uint32_t right[2][2];
        load_right_transposed(right, streamed + tile * 8 * Shape::chunk_stride + channel,
                              Shape::chunk_stride);
        multiply<T>(scores[tile], left, right[0]);
        multiply<T>(scores[tile + 1], left, right[1]);
      }
    }
  }

  __device__ void store_scores(typename Shape::Number* to,
                               const float (&scores)[Shape::score_tiles][4]) const {
#pragma unroll
    for (int tile = 0; tile < Shape::score_tiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        store_pair(&to[row(e) * Shape::weights_stride + score_column(tile)], scores[tile][e],
                   scores[tile][e + 1]);
      }
    }
  }

  // out += weights values, over the pixels of one piece.
  __device__ void add_values(float (&out)[Shape::out_tiles][4],
                             const typename Shape::Number* weights,
                             const typename Shape::Number* values) const {
    using T = typename Shape::Number;
    uint32_t left[4];
    load_left(left, weights + row_warp * 16 * Shape::weights_stride, Shape::weights_stride);
#pragma unroll
    for (int tile = 0; tile < Shape::out_tiles; tile += 2) {
      uint32_t right[2][2];
      load_right(right, values + (column_warp * Shape::out_tiles + tile) * 8, Shape::out_stride);
      multiply<T>(out[tile], left, right[0]);
      multiply<T>(out[tile + 1], left, right[1]);
    }
  }
};

// The pixels that a block owns, and their set.
struct Place {
  int64_t image;
  int64_t set;  // of all images
  int first;    // pixel of the set
  int length;   // of the set
  int origin, columns, line, column;

  __device__ Place(const Program& program, int rows)
      : Place(program.sets, program.row_blocks, rows) {}

  // Of a block that has `rows` pixels, as one of `row_blocks` of its set.
  __device__ Place(const PixelSets& sets, int row_blocks, int rows)
      : set(blockIdx.x / row_blocks),
        first(blockIdx.x % row_blocks * rows),
        columns((int)sets.columns),
        line((int)sets.stride_line),
        column((int)sets.stride_column) {
    const int across = (int)sets.across;
    const int down = (int)sets.down;
    length = columns * (int)sets.lines;
    origin = (int)set / across % down * (int)sets.stride_down +
             (int)set % across * (int)sets.stride_across;
    image = (int)set / (across * down);
  }

  // Where pixel n of the set lies in the map.
  __device__ int64_t pixel(int n) const {
    const int lines = n < columns ? 0 : n / columns;
    return origin + lines * line + (n - lines * columns) * column;
  }
};

// Pixels `first` … of the set and channels `first_channel` … of a map.
template <typename T, int pixels, int channels, int stride, typename Place>
__device__ void copy_piece(T* to, const Source& source, const Place& place, int first,
                           int first_channel) {
  const Map& map = source.map;
  const int threads = blockDim.x;
  const T* const from = static_cast<const T*>(map.data) + place.image * map.stride_batch;
  if (source.in_vectors) {
    constexpr int vector = 16 / sizeof(T);
    constexpr int vectors = channels / vector;
#pragma unroll 1
    for (int i = threadIdx.x; i < pixels * vectors; i += threads) {
      const int n = first + i / vectors;
      const int channel = first_channel + i % vectors * vector;
      const bool valid = n < place.length && channel < map.channels;
      const int64_t offset = valid ? place.pixel(n) * map.stride_pixel + channel : 0;
      copy_async(&to[i / vectors * stride + i % vectors * vector], from + offset, valid);
    }
    return;
  }
  const bool along_channels = map.stride_channel == 1;
#pragma unroll 1
  for (int i = threadIdx.x; i < pixels * channels; i += threads) {
    const int row = along_channels ? i / channels : i % pixels;
    const int column = along_channels ? i % channels : i / pixels;
    const int n = first + row;
    const int channel = first_channel + column;
    T value{};
    if (n < place.length && channel < map.channels) {
      value = from[place.pixel(n) * map.stride_pixel + channel * map.stride_channel];
    }
    to[row * stride + column] = value;
  }
}

// The pieces of a block, in the order of tiles, phases and pieces.
template <typename Shape>
class Stream {
 public:
  using T = typename Shape::Number;

  __device__ Stream(const Program& program, const Place& place, T* kept, T* ring)
      : program_(program), place_(place), kept_(kept), ring_(ring) {
    for (int phase = 0; program.keeps_own && phase < max_phases; ++phase) {
      const Phase& product = program.phases[phase];
      for (int piece = 0; product.over_channels && piece < product.pieces; ++piece) {
        copy_own(kept, product, piece);
        kept += Shape::own_piece;
      }
    }
    for (int stage = 0; stage < ring_stages - 1; ++stage) {
      load(ring_ + stage * Shape::slot(program.keeps_own));
    }
  }

  // The next piece. That of the call before may be overwritten; what threads wrote to shared memory
  // before the call is there for all.
  __device__ const T* next() {
    const int slot = Shape::slot(program_.keeps_own);
    wait_for_copies<ring_stages - 2>();
    sync_block();
    load(ring_ + (stage_ + ring_stages - 1) % ring_stages * slot);
    const T* const piece = ring_ + stage_ * slot;
    stage_ = (stage_ + 1) % ring_stages;
    return piece;
  }

  // The channels of the own pixels that go with `piece`, the number `index` of all kept pieces.
  __device__ const T* own(const T* piece, int index) const {
    return program_.keeps_own ? kept_ + index * Shape::own_piece : piece + Shape::streamed_piece;
  }

 private:
  __device__ void copy_own(T* to, const Phase& phase, int piece) {
    copy_piece<T, Shape::rows, Shape::chunk, Shape::chunk_stride>(
        to, phase.own, place_, place_.first, piece * Shape::chunk);
  }

  __device__ void load(T* slot) {
    if (tile_ < program_.tiles) {
      const Phase& phase = program_.phases[phase_];
      const int first = tile_ * tile_pixels;
      if (!phase.over_channels) {
        copy_piece<T, step_depth<T>, Shape::out_width, Shape::out_stride>(
            slot, phase.streamed, place_, first + piece_ * step_depth<T>, 0);
      } else {
        copy_piece<T, tile_pixels, Shape::chunk, Shape::chunk_stride>(slot, phase.streamed, place_,
                                                                      first, piece_ * Shape::chunk);
        if (!program_.keeps_own) {
          copy_own(slot + Shape::streamed_piece, phase, piece_);
        }
      }
      advance();
    }
    commit_copies();
  }

  __device__ void advance() {
    if (++piece_ < program_.phases[phase_].pieces) {
      return;
    }
    piece_ = 0;
    do {
      phase_ = (phase_ + 1) % max_phases;
      tile_ += phase_ == 0;
    } while (program_.phases[phase_].pieces == 0);
  }

  const Program& program_;
  const Place place_;
  const T* kept_;
  T* ring_;
  int stage_ = 0;                         // of the next piece
  int tile_ = 0, phase_ = 0, piece_ = 0;  // to load
};

__device__ inline float infinity() {
  return float_from_bits(0x7f800000);
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

// Writes factor * sums to channels of pixel n, unless it is beyond the set. They are one row of
// results of mma side by side, of which a lane has numbers 2 * half and 2 * half + 1.
template <typename T, int tiles, typename Place>
__device__ void write_row(const Source& to, const Place& place, int n, int first_channel,
                          const float (&sums)[tiles][4], int half, float factor) {
  const Map& map = to.map;
  const bool inside = n < place.length;
  T* const pixel = static_cast<T*>(map.data) + place.image * map.stride_batch +
                   (inside ? place.pixel(n) : 0) * map.stride_pixel;
  const int position = lane_index() % 4;
  if constexpr (sizeof(T) == 2) {
    if (to.in_vectors) {  // whole ones for each lane
      static_assert(tiles % 4 == 0);
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
          *reinterpret_cast<Vector*>(&pixel[channel]) = vector;
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

// Writes factors * sums to the own pixels of a map; a lane has two rows, and a factor for each.
template <typename Shape>
__device__ void write_own(const Source& to, const Place& place, const WarpShare<Shape>& share,
                          const float (&sums)[Shape::out_tiles][4], float first_factor,
                          float second_factor) {
  const int channel = share.column_warp * Shape::out_tiles * 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    write_row<typename Shape::Number>(to, place, place.first + share.row(2 * half), channel, sums,
                                      half, half == 0 ? first_factor : second_factor);
  }
}

inline Source source_of(const Map& map) {
  const int64_t size = map.dtype == DType::float32 ? 4 : 2;
  const int64_t misalignment = ((int64_t)map.data | map.stride_batch * size |
                                map.stride_pixel * size | map.channels * size) %
                               16;
  return {map, map.stride_channel == 1 && misalignment == 0};
}

inline Phase over_channels(const Map& own, const Map& streamed) {
  const int64_t chunk = 128 / (own.dtype == DType::float32 ? 4 : 2);
  return {source_of(streamed), source_of(own), true, (int)ceil_div(own.channels, chunk)};
}

inline Phase over_pixels(const Map& streamed) {
  const int64_t depth = streamed.dtype == DType::float32 ? step_depth<float> : step_depth<float16>;
  return {source_of(streamed), {}, false, (int)(tile_pixels / depth)};
}

inline Program make_program(const PixelSets& sets) {
  Program program{};
  program.sets = sets;
  program.tiles = (int)ceil_div(sets.lines * sets.columns, tile_pixels);
  return program;
}

// Own pixels are kept where there is room. Returns the shared memory of a block.
template <typename Memory>
int64_t plan_memory(Program& program) {
  for (const bool keeps_own : {true, false}) {
    program.keeps_own = keeps_own;
    SharedMemory shared(nullptr);
    Memory(shared, program);
    if (!keeps_own || shared.bytes() <= shared_memory_limit()) {
      return shared.bytes();
    }
  }
  return 0;
}

// Returns the number of blocks, of `rows` pixels each.
inline int64_t plan_blocks(Program& program, int rows, int64_t batch) {
  const PixelSets& sets = program.sets;
  program.row_blocks = (int)ceil_div(sets.lines * sets.columns, rows);
  return program.row_blocks * sets.down * sets.across * batch;
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
