// SPDX-License-Identifier: MIT
// Tiles of maps in shared memory: a row of 128 bytes holds some channels of a pixel or a region.
// Maps may lie either way, and at any address: the tiles that products see do not.
#pragma once

#include "common/device.cuh"
#include "common/map.h"

namespace openseg {

template <typename T>
constexpr int tile_channels = 128 / sizeof(T);

// Of rows, in elements: the 8 rows of a matrix are to start in different banks.
template <typename T>
constexpr int tile_stride = tile_channels<T> + 16 / sizeof(T);

struct TileStart {
  int64_t batch, pixel, channel;
};

// 16 bytes of a tile's row.
template <typename T>
struct alignas(16) MapPiece {
  T values[16 / sizeof(T)];
};

// Whether pieces of 16 bytes can be copied: each is aligned, and all of the map or none of it. The
// low halves of numbers tell.
template <typename T>
__device__ bool has_pieces(const Map& map) {
  constexpr uint32_t size = 16 / sizeof(T);
  const uint32_t multiples =
      (uint32_t)map.channels | (uint32_t)map.stride_pixel | (uint32_t)map.stride_batch;
  return map.stride_channel == 1 && multiples % size == 0 && (uintptr_t)map.data % 16 == 0;
}

template <typename T>
__device__ T* element(const Map& map, const TileStart& start) {
  return static_cast<T*>(map.data) + start.batch * map.stride_batch +
         start.pixel * map.stride_pixel + start.channel * map.stride_channel;
}

// The piece of a tile that a thread copies first. Where channels are neighbours, so are the pieces
// of a row; else neighbouring threads have those of `rows` rows, the same channels.
template <typename T, int rows>
struct PiecePlace {
  static constexpr int size = 16 / sizeof(T);
  static constexpr int of_row = tile_channels<T> / size;
  int row, channel;

  __device__ PiecePlace(const Map& map, int thread)
      : row(map.stride_channel == 1 ? thread / of_row : thread % rows),
        channel((map.stride_channel == 1 ? thread % of_row : thread / rows) * size) {}

  __device__ int64_t offset(const Map& map) const {
    return row * map.stride_pixel + channel * map.stride_channel;
  }
  __device__ MapPiece<T>* in(T* tile) const {
    return reinterpret_cast<MapPiece<T>*>(&tile[row * tile_stride<T> + channel]);
  }
};

// The numbers of a tile that are in the map.
struct TileInside {
  int rows, channels;

  __device__ TileInside(const Map& map, const TileStart& start, int rows, int channels)
      : rows(at_most((int)map.pixels - (int)start.pixel, rows)),
        channels(at_most((int)map.channels - (int)start.channel, channels)) {}

 private:
  __device__ static int at_most(int value, int most) { return value < most ? value : most; }
};

// The pieces of a tile that a thread of `threads` moves, where all pieces can be: those of one
// column, in every `step`th row from `row` on.
template <typename T>
struct PieceColumn {
  static constexpr int of_row = tile_channels<T> * (int)sizeof(T) / 16;
  int row, channel, step;

  __device__ PieceColumn(int thread, int threads)
      : row(thread / of_row),
        channel(thread % of_row * (16 / (int)sizeof(T))),
        step(threads / of_row) {}

  // Of its rows, where those end that are in the map.
  __device__ int end(const TileInside& inside) const {
    return channel < inside.channels ? inside.rows : 0;
  }
  __device__ T* in(T* tile) const { return &tile[row * tile_stride<T> + channel]; }
  __device__ T* in(const Map& map, const TileStart& start) const {
    return element<T>(map, {start.batch, start.pixel + row, 0}) + start.channel + channel;
  }
};

// Copies a piece of which the map has `numbers` or more, number by number: zeros are for the
// others.
template <typename T>
__device__ void load_numbers(MapPiece<T>* to, const T* at, const Map& map, int numbers) {
  MapPiece<T> piece = {};
#pragma unroll
  for (int i = 0; i < 16 / (int)sizeof(T); ++i) {
    if (i < numbers) {
      piece.values[i] = at[i * map.stride_channel];
    }
  }
  *to = piece;
}

// A block of 256 threads, a piece of 32 rows each, fills `rows` rows of a tile, with zeros beyond
// the map; they are there after wait_for_copies and a barrier. The copies are not yet committed.
template <typename T>
__device__ void load_tile(T* tile, const Map& map, const TileStart& start, int rows) {
  const TileInside inside(map, start, rows, tile_channels<T>);
  if (has_pieces<T>(map)) {
    const PieceColumn<T> column(thread_anew(), blockDim.x);
    const int end = column.end(inside);
    const T* from = column.in(map, start);
    T* to = column.in(tile);
#pragma unroll 1
    for (int row = column.row; row < rows; row += column.step) {
      copy_async(to, from, row < end);
      from += column.step * map.stride_pixel;
      to += column.step * tile_stride<T>;
    }
    return;
  }
  using Place = PiecePlace<T, warp_size>;
  const Place place(map, thread_anew());
  const int numbers = inside.channels - place.channel;
  const T* at = element<T>(map, start) + place.offset(map);
  MapPiece<T>* to = place.in(tile);
#pragma unroll 1
  for (int row = place.row; row < rows; row += warp_size) {
    load_numbers(to, at, map, row < inside.rows ? numbers : 0);
    at += warp_size * map.stride_pixel;
    to += warp_size * tile_stride<T> / Place::size;
  }
}

// The same for `tiles` tiles of up to 32 rows each that are side by side, and then for those of the
// pixels after them. What they start from is kept, not found anew for each of them.
template <typename T, int tiles, int rows>
class TileRowLoader {
  using Place = PiecePlace<T, warp_size>;
  static_assert(rows <= warp_size);

 public:
  __device__ TileRowLoader(const Map& map, const TileStart& start)
      : map_(map),
        place_(map, threadIdx.x),
        pieces_(has_pieces<T>(map)),
        rows_left_((int)(map.pixels - start.pixel) - place_.row),
        numbers_((int)(map.channels - start.channel) - place_.channel),
        at_(element<T>(map, start) + place_.offset(map)) {}

  // The tiles lie one after the other.
  __device__ void load(T* tile) {
    if (place_.row < rows) {
      MapPiece<T>* to = place_.in(tile);
      const T* at = at_;
      int numbers = rows_left_ > 0 ? numbers_ : 0;
#pragma unroll 1
      for (int i = 0; i < tiles; ++i) {
        if (pieces_) {
          copy_async(to, at, numbers > 0);
        } else {
          load_numbers(to, at, map_, numbers);
        }
        to += rows * tile_stride<T> / Place::size;
        at += tile_channels<T> * map_.stride_channel;
        numbers -= tile_channels<T>;
      }
    }
    at_ += rows * map_.stride_pixel;
    rows_left_ -= rows;
  }

 private:
  const Map& map_;
  const Place place_;
  const bool pieces_;
  int rows_left_;
  const int numbers_;
  const T* at_;
};

// A warp writes `rows` rows of a tile to where they belong in the map.
template <typename T, int rows>
__device__ void store_rows(const Map& map, const TileStart& start, T* tile) {
  const TileInside inside(map, start, rows, tile_channels<T>);
  if (has_pieces<T>(map)) {
    const PieceColumn<T> column(thread_anew() % warp_size, warp_size);
    const int end = column.end(inside);
    T* to = column.in(map, start);
    const T* from = column.in(tile);
#pragma unroll 1
    for (int row = column.row; row < end; row += column.step) {
      store_whole(reinterpret_cast<MapPiece<T>*>(to),
                  read_whole(reinterpret_cast<const MapPiece<T>*>(from)));
      to += column.step * map.stride_pixel;
      from += column.step * tile_stride<T>;
    }
    return;
  }
  using Place = PiecePlace<T, rows>;
  Place place(map, thread_anew() % warp_size);
  const int more_rows = map.stride_channel == 1 ? warp_size / Place::of_row : 0;
  const int more_channels = map.stride_channel == 1 ? 0 : warp_size / rows * Place::size;
  const int64_t more = more_rows * map.stride_pixel + more_channels * map.stride_channel;
  T* to = element<T>(map, start) + place.offset(map);
#pragma unroll 1
  for (int turn = 0; turn < rows * Place::of_row / warp_size; ++turn) {
    const MapPiece<T> piece = *place.in(tile);
    const int numbers = place.row < inside.rows ? inside.channels - place.channel : 0;
#pragma unroll
    for (int i = 0; i < Place::size; ++i) {
      if (i < numbers) {
        to[i * map.stride_channel] = piece.values[i];
      }
    }
    place.row += more_rows;
    place.channel += more_channels;
    to += more;
  }
}

}  // namespace openseg
