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

// The numbers of a tile that are in the map.
struct TileInside {
  int rows, channels;

  __device__ TileInside(const Map& map, const TileStart& start, int rows, int channels)
      : rows(at_most(map.pixels - start.pixel, rows)),
        channels(at_most(map.channels - start.channel, channels)) {}

 private:
  __device__ static int at_most(int64_t value, int most) {
    return value < most ? (int)value : most;
  }
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

// The piece of a tile that a thread moves in its turn, one number at a time: neighbours have the
// same channels of neighbouring rows, or all channels of a row if these lie side by side.
template <typename T, int rows>
struct PiecePlace {
  static constexpr int size = 16 / sizeof(T);
  static constexpr int of_row = tile_channels<T> / size;
  int row, channel;

  __device__ PiecePlace(const Map& map, int turn)
      : row(map.stride_channel == 1 ? turn / of_row : turn / (rows * of_row) * rows + turn % rows),
        channel((map.stride_channel == 1 ? turn % of_row : turn / rows % of_row) * size) {}

  // How many of its numbers are in the map, or more.
  __device__ int count(const TileInside& inside) const {
    return row < inside.rows ? inside.channels - channel : 0;
  }
  __device__ int64_t offset(const Map& map) const {
    return row * map.stride_pixel + channel * map.stride_channel;
  }
  __device__ MapPiece<T>* in(T* tile) const {
    return reinterpret_cast<MapPiece<T>*>(&tile[row * tile_stride<T> + channel]);
  }
};

// Fills `rows` rows of a tile, with zeros beyond the map; they are there after wait_for_copies and
// a barrier. The copies are not yet committed.
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
  const T* const from = element<T>(map, start);
  const int turns = (int)ceil_div(rows, warp_size) * warp_size * Place::of_row;
#pragma unroll 1
  for (int turn = threadIdx.x; turn < turns; turn += blockDim.x) {
    const Place place(map, turn);
    if (place.row >= rows) {
      continue;
    }
    const int count = place.count(inside);
    const T* at = from + place.offset(map);
    MapPiece<T> piece = {};
#pragma unroll
    for (int i = 0; i < Place::size; ++i) {
      if (i < count) {
        piece.values[i] = *at;
        at += map.stride_channel;
      }
    }
    *place.in(tile) = piece;
  }
}

// A warp writes `rows` rows of a tile to where they belong in the map.
template <typename T, int rows>
__device__ void store_rows(const Map& map, const TileStart& start, T* tile) {
  const TileInside inside(map, start, rows, tile_channels<T>);
  if (has_pieces<T>(map)) {
    const PieceColumn<T> column(lane_index(), warp_size);
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
  T* const to = element<T>(map, start);
#pragma unroll 1
  for (int turn = lane_index(); turn < rows * Place::of_row; turn += warp_size) {
    const Place place(map, turn);
    const int count = place.count(inside);
    const MapPiece<T> piece = *place.in(tile);
    T* at = to + place.offset(map);
#pragma unroll
    for (int i = 0; i < Place::size; ++i) {
      if (i < count) {
        *at = piece.values[i];
        at += map.stride_channel;
      }
    }
  }
}

}  // namespace openseg
