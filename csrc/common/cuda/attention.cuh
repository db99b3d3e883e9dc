// SPDX-License-Identifier: MIT
// What the passes of attention share. A block owns some pixels of one set and meets all pixels of
// the set, a tile of 64 at a time. Maps come in pieces, 128 bytes of channels of the 64 pixels,
// through a ring in shared memory, in the order of use, while earlier pieces are being multiplied:
//
// * for products over channels, with a piece of the own pixels: kept from the start where there is
//   room, else beside that of the tile;
// * for products over pixels, each of which gives the same channels of the sums. A map that the
//   tile has met in a product over channels is kept until then where there is room.
//
// Pieces have the channels of a pixel side by side whatever the map has, and zeros beyond its
// pixels and channels. So nothing else depends on the layout of maps or on sets.
#pragma once

#include "common/cuda/set_maps.cuh"

namespace openseg {

constexpr int attention_threads = 256;
constexpr int tile_pixels = 64;
constexpr int ring_stages = 3;
constexpr int max_phases = 5;

constexpr int not_kept = -1;

// One product of every tile.
struct Phase {
  Source streamed;
  Source own;  // the other factor of a product over channels
  bool over_channels;
  int pieces;  // of each tile; 0: no such product
  // Where in pieces the first is, among those of own pixels and those of a tile that are kept.
  int own_at = not_kept;
  int tile_at = not_kept;
};

struct Program {
  Phase phases[max_phases];
  PixelSets sets;
  int tiles;        // of a set
  int row_blocks;   // of a set
  int own_pieces;   // that are kept
  int tile_pieces;  // of a tile that are kept

  __host__ __device__ bool keeps_own() const { return own_pieces > 0; }
};

// How a block of own_rows pixels, with `sum_maps` sums of up to `width` channels for each, shares
// the work and the shared memory. The rows are divided among row_warps warps, and each of these
// parts' columns among the others.
template <typename T, int own_rows, int width, int row_warps_, int sum_maps>
struct Shape {
  using Number = T;
  static constexpr int rows = own_rows;
  static constexpr int row_warps = row_warps_;
  static constexpr int row_tiles = rows / row_warps / 16;  // of a warp, 16 rows each
  static constexpr int column_warps = attention_threads / warp_size / row_warps;
  // That the registers of a multiprocessor suffice for.
  static constexpr int blocks = sizeof(T) == 2 && rows * width * sum_maps <= 64 * 256 ? 2 : 1;
  static constexpr int chunk = 128 / sizeof(T);  // channels of a piece
  static constexpr int chunks = width / chunk;
  // Columns of a warp's share of scores and of the channels of a piece, in tiles of 8.
  static constexpr int score_tiles = tile_pixels / 8 / column_warps;
  static constexpr int value_tiles = chunk / 8 / column_warps;
  // Steps at a time of products over channels and over pixels: registers do not suffice for more
  // where each is three mma.
  static constexpr bool few_steps = std::is_same_v<T, float>;
  static constexpr int channel_steps = few_steps ? 1 : chunk / step_depth<T>;
  static constexpr int pixel_steps = few_steps ? 2 : tile_pixels / step_depth<T>;

  static constexpr int chunk_stride = chunk + 16 / sizeof(T);
  static constexpr int weights_stride = tile_pixels + 16 / sizeof(T);
  static constexpr int own_piece = rows * chunk_stride;
  static constexpr int streamed_piece = tile_pixels * chunk_stride;

  __host__ __device__ static constexpr int slot(bool keeps_own) {
    return streamed_piece + (keeps_own ? 0 : own_piece);
  }
};

// The part of a warp in the products of its block, and where a lane's numbers lie in them: number e
// of row tile r and column tile i is in row row(r, e) and column score_column(i, e).
template <typename Shape>
struct WarpShare {
  using T = typename Shape::Number;
  using Scores = float[Shape::row_tiles][Shape::score_tiles][4];
  using Sums = float[Shape::row_tiles][Shape::value_tiles][4];  // the channels of one piece

  int row_warp = warp_index() % Shape::row_warps;
  int column_warp = warp_index() / Shape::row_warps;

  __device__ int row(int row_tile, int e) const {
    return (row_warp * Shape::row_tiles + row_tile) * 16 + lane_index() / 4 + e / 2 * 8;
  }
  __device__ int score_column(int tile, int e = 0) const {
    return (column_warp * Shape::score_tiles + tile) * 8 + lane_index() % 4 * 2 + e % 2;
  }

  // scores += own streamedT, over the channels of one piece.
  __device__ void add_scores(Scores& scores, const T* own, const T* streamed) const {
    own += row(0, 0) / 16 * 16 * Shape::chunk_stride;
    streamed += column_warp * Shape::score_tiles * 8 * Shape::chunk_stride;
#pragma unroll(Shape::channel_steps)
    for (int channel = 0; channel < Shape::chunk; channel += step_depth<T>) {
      uint32_t left[Shape::row_tiles][4];
#pragma unroll
      for (int r = 0; r < Shape::row_tiles; ++r) {
        load_left(left[r], own + r * 16 * Shape::chunk_stride + channel, Shape::chunk_stride);
      }
#pragma unroll
      for (int tile = 0; tile < Shape::score_tiles; tile += 2) {
        uint32_t right[2][2];
        load_right_transposed(right, streamed + tile * 8 * Shape::chunk_stride + channel,
                              Shape::chunk_stride);
#pragma unroll
        for (int r = 0; r < Shape::row_tiles; ++r) {
          multiply<T>(scores[r][tile], left[r], right[0]);
          multiply<T>(scores[r][tile + 1], left[r], right[1]);
        }
      }
    }
  }

  __device__ void store_scores(T* to, const Scores& scores) const {
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) {
#pragma unroll
      for (int tile = 0; tile < Shape::score_tiles; ++tile) {
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
          store_left(&to[row(r, e) * Shape::weights_stride], score_column(tile), scores[r][tile][e],
                     scores[r][tile][e + 1]);
        }
      }
    }
  }
};

// The left factor of products over the pixels of a tile: the rows of a warp, 64 columns. In
// registers as far as those suffice, for it meets all pieces.
template <typename Shape>
class Weights {
 public:
  using T = typename Shape::Number;
  static constexpr int steps = tile_pixels / step_depth<T>;

  __device__ void start(const T* weights, const WarpShare<Shape>& share) {
    rows_ = weights + share.row_warp * Shape::row_tiles * 16 * Shape::weights_stride;
#pragma unroll
    for (int step = 0; step < held; ++step) {
      load(step, step);
    }
  }

  // sums += weights values, for the channels of one piece.
  __device__ void multiply_piece(typename WarpShare<Shape>::Sums& sums, const T* values,
                                 const WarpShare<Shape>& share) {
    values += share.column_warp * Shape::value_tiles * 8;
#pragma unroll(Shape::pixel_steps)
    for (int step = 0; step < steps; ++step) {
      const int at = step < held ? step : held;
      if (at == held) {
        load(at, step);
      }
      const uint32_t (&left)[Shape::row_tiles][4] = factors_[at];
#pragma unroll
      for (int tile = 0; tile < Shape::value_tiles; tile += together) {
        const T* const rows = values + step * step_depth<T> * Shape::chunk_stride + 8 * tile;
        uint32_t right[together][2];
        if constexpr (together == 2) {
          load_right(right, rows, Shape::chunk_stride);
        } else {
          load_right_alone(right[0], rows, Shape::chunk_stride);
        }
#pragma unroll
        for (int r = 0; r < Shape::row_tiles; ++r) {
#pragma unroll
          for (int i = 0; i < together; ++i) {
            multiply<T>(sums[r][tile + i], left[r], right[i]);
          }
        }
      }
    }
  }

 private:
  static constexpr int held = sizeof(T) == 4 ? 0 : Shape::blocks == 1 ? steps : steps / 2;
  static constexpr int together = Shape::value_tiles == 1 ? 1 : 2;  // column tiles

  __device__ void load(int at, int step) {
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) {
      load_left(factors_[at][r], rows_ + r * 16 * Shape::weights_stride + step * step_depth<T>,
                Shape::weights_stride);
    }
  }

  uint32_t factors_[held == steps ? held : held + 1][Shape::row_tiles][4];
  const T* rows_;
};

// A piece of a tile, in the order of tiles, phases and pieces.
struct Cursor {
  int tile = 0, phase = 0, piece = -1;

  __device__ explicit Cursor(const Program& program) { advance(program); }

  __device__ void advance(const Program& program) {
    ++piece;
    while (piece >= program.phases[phase].pieces) {
      piece = 0;
      phase = (phase + 1) % max_phases;
      tile += phase == 0;
    }
  }
};

// What has always the same size comes first: those addresses take no registers.
template <typename Shape>
struct StreamMemory {
  using T = typename Shape::Number;
  int* pixels;  // of two tiles and, where they are not kept, the own ones: as Place::pixel has them
  T* ring;
  T* tile;  // the pieces of a tile that are kept
  T* own;   // those of own pixels

  __host__ __device__ StreamMemory(SharedMemory& shared, const Program& program)
      : pixels(shared.take<int>(2 * tile_pixels + (program.keeps_own() ? 0 : Shape::rows))),
        ring(shared.take<T>(ring_stages * Shape::slot(program.keeps_own()))),
        tile(shared.take<T>(program.tile_pieces * Shape::streamed_piece)),
        own(shared.take<T>(program.own_pieces * Shape::own_piece)) {}
};

// The pieces of a block, each of which is on its way ring_stages - 1 pieces before its use.
template <typename Shape>
class Stream {
 public:
  using T = typename Shape::Number;

  __device__ Stream(const Program& program, const Place<Shape::rows>& place,
                    const StreamMemory<Shape>& memory)
      : program_(program), place_(place), memory_(memory), loaded_(program) {
    for (int i = 0; program.keeps_own() && i < max_phases; ++i) {
      const Phase& phase = program.phases[i];
      for (int piece = 0; phase.over_channels && piece < phase.pieces; ++piece) {
        copy_piece<T, attention_threads, Shape::rows, Shape::chunk, Shape::chunk_stride>(
            memory.own + (phase.own_at + piece) * Shape::own_piece, phase.own, place.image(),
            place.own_pixels(), piece * Shape::chunk, (int)threadIdx.x);
      }
    }
    if (!program.keeps_own() && threadIdx.x < Shape::rows) {
      own_pixels()[threadIdx.x] = place.pixel(place.own((int)threadIdx.x));
    }
    find_pixels(0);
    sync_block();
    for (int stage = 0; stage < ring_stages - 1; ++stage) {
      load(stage);
    }
  }

  // The next piece, which is this one of a phase. That of the call before may be overwritten; what
  // threads wrote to shared memory before the call is there for all.
  __device__ const T* next(int phase, int piece) {
    wait_for_copies<ring_stages - 2>();
    sync_block();
    load((stage_ + ring_stages - 1) % ring_stages);
    const T* const next = where(program_.phases[phase], piece, stage_);
    stage_ = (stage_ + 1) % ring_stages;
    return next;
  }

  // The channels of the own pixels that go with `streamed`, this piece of a phase.
  __device__ const T* own(const T* streamed, int phase, int piece) const {
    return program_.keeps_own()
               ? memory_.own + (program_.phases[phase].own_at + piece) * Shape::own_piece
               : streamed + Shape::streamed_piece;
  }

 private:
  __device__ T* where(const Phase& phase, int piece, int stage) const {
    return phase.tile_at == not_kept
               ? memory_.ring + stage * Shape::slot(program_.keeps_own())
               : memory_.tile + (phase.tile_at + piece) * Shape::streamed_piece;
  }

  __device__ int* own_pixels() const { return memory_.pixels + 2 * tile_pixels; }

  template <int rows>
  __device__ void copy(T* to, const Source& source, const int* pixels, int piece) const {
    copy_piece<T, attention_threads, rows, Shape::chunk, Shape::chunk_stride>(
        to, source, place_.image(), [pixels](int row) { return pixels[row]; }, piece * Shape::chunk,
        thread_anew());
  }

  // There after the next barrier.
  __device__ void find_pixels(int tile) {
    const int thread = thread_anew();
    if (thread < tile_pixels) {
      memory_.pixels[tile % 2 * tile_pixels + thread] = place_.pixel(tile * tile_pixels + thread);
    }
  }

  __device__ void load(int stage) {
    if (loaded_.tile < program_.tiles) {
      const Phase& phase = program_.phases[loaded_.phase];
      T* const to = where(phase, loaded_.piece, stage);
      if (phase.over_channels || phase.tile_at == not_kept) {
        copy<tile_pixels>(to, phase.streamed, memory_.pixels + loaded_.tile % 2 * tile_pixels,
                          loaded_.piece);
      }
      if (phase.over_channels && !program_.keeps_own()) {
        copy<Shape::rows>(to + Shape::streamed_piece, phase.own, own_pixels(), loaded_.piece);
      }
      const int tile = loaded_.tile;
      loaded_.advance(program_);
      if (loaded_.tile != tile) {
        find_pixels(loaded_.tile);
      }
    }
    commit_copies();
  }

  const Program& program_;
  const Place<Shape::rows> place_;
  const StreamMemory<Shape> memory_;
  int stage_ = 0;  // of the next piece
  Cursor loaded_;
};

// Products over the pixels of a tile with the pieces that come next.
template <typename Shape>
__device__ void multiply_values(typename WarpShare<Shape>::Sums (&sums)[Shape::chunks], int phase,
                                int pieces, const typename Shape::Number* weights,
                                Stream<Shape>& stream, const WarpShare<Shape>& share) {
  Weights<Shape> left;
#pragma unroll 1
  for (int piece = 0; piece < pieces; ++piece) {
    const typename Shape::Number* const values = stream.next(phase, piece);
    if (piece == 0) {
      left.start(weights, share);
    }
#pragma unroll
    for (int chunk = 0; chunk < Shape::chunks; ++chunk) {
      if (chunk == piece) {
        left.multiply_piece(sums[chunk], values, share);
      }
    }
  }
}

// Writes factors * sums to the own pixels of a map; a lane has two rows of each row tile, and a
// factor for each.
template <typename Shape>
__device__ void write_own(const Source& to, const Place<Shape::rows>& place,
                          const WarpShare<Shape>& share,
                          const typename WarpShare<Shape>::Sums (&sums)[Shape::chunks],
                          const float (&factors)[Shape::row_tiles][2]) {
#pragma unroll
  for (int r = 0; r < Shape::row_tiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel = place.pixel(place.own(share.row(r, 2 * half)));
#pragma unroll
      for (int chunk = 0; chunk < Shape::chunks; ++chunk) {
        const int channel = chunk * Shape::chunk + share.column_warp * Shape::value_tiles * 8;
        write_row<typename Shape::Number>(to, place.image(), pixel, channel, sums[chunk][r], half,
                                          factors[r][half]);
      }
    }
  }
}

inline int pieces_of(const Map& map) {
  return (int)ceil_div(map.channels, map.dtype == DType::float32 ? 32 : 64);
}

inline Phase over_channels(const Map& own, const Map& streamed) {
  return {source_of(streamed), source_of(own), true, pieces_of(own)};
}

inline Phase over_pixels(const Map& streamed) {
  return {source_of(streamed), {}, false, pieces_of(streamed)};
}

inline Program make_program(const PixelSets& sets) {
  Program program{};
  program.sets = sets;
  program.tiles = (int)ceil_div(sets.lines * sets.columns, tile_pixels);
  return program;
}

inline bool same(const Map& a, const Map& b) {
  return a.data == b.data && a.channels == b.channels && a.stride_batch == b.stride_batch &&
         a.stride_channel == b.stride_channel && a.stride_pixel == b.stride_pixel;
}

// Keeps maps of a tile from a product over channels to one over pixels. The last use of a piece has
// to be over before the copy for the next tile starts.
inline void keep_tile(Program& program) {
  const auto pieces_before = [&](int end) {
    int pieces = 0;
    for (int phase = 0; phase < end; ++phase) {
      pieces += program.phases[phase].pieces;
    }
    return pieces;
  };
  for (int last = 0; last < max_phases; ++last) {
    for (int first = 0; first < last; ++first) {
      Phase& from = program.phases[first];
      Phase& to = program.phases[last];
      const int later = pieces_before(max_phases) - (pieces_before(last) - pieces_before(first));
      if (from.pieces > 0 && from.over_channels && to.pieces > 0 && !to.over_channels &&
          to.tile_at == not_kept && from.tile_at == not_kept && later >= ring_stages &&
          same(from.streamed.map, to.streamed.map)) {
        from.tile_at = to.tile_at = program.tile_pieces;
        program.tile_pieces += to.pieces;
      }
    }
  }
}

// Keeps what there is room for in the shared memory of a block, and returns how much that is.
template <typename Memory>
int64_t plan_memory(Program& program) {
  const auto bytes = [&] {
    SharedMemory shared(nullptr);
    Memory(shared, program);
    return shared.bytes();
  };
  const Program none = program;
  for (Phase& phase : program.phases) {
    if (phase.over_channels) {
      phase.own_at = program.own_pieces;
      program.own_pieces += phase.pieces;
    }
  }
  const Program own = program;
  keep_tile(program);
  for (const Program& less : {own, none}) {
    if (bytes() > shared_memory_limit()) {
      program = less;
    }
  }
  return bytes();
}

// Returns the blocks, of `rows` pixels each.
inline dim3 plan_blocks(Program& program, int rows, int64_t batch) {
  const PixelSets& sets = program.sets;
  program.row_blocks = (int)ceil_div(sets.lines * sets.columns, rows);
  return dim3(program.row_blocks * sets.count(), batch);
}

}  // namespace openseg
