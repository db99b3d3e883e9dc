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

// Whether pieces of 16 bytes can be copied: each is aligned, and all of the map or none of it.
template <typename T>
__device__ bool has_pieces(const Map& map) {
  constexpr int size = 16 / sizeof(T);
  const int64_t multiples = map.channels | map.stride_pixel | map.stride_batch;
  return map.stride_channel == 1 && multiples % size == 0 && (uintptr_t)map.data % 16 == 0;
}

template <typename T>
__device__ T* element(const Map& map, const TileStart& start) {
  return static_cast<T*>(map.data) + start.batch * map.stride_batch +
         start.pixel * map.stride_pixel + start.channel * map.stride_channel;
}

// The piece of a tile that a thread copies in its turn. Where channels are neighbours, so are the
// pieces of a row; else neighbouring threads have those of `rows` rows, the same channels.
template <typename T, int rows>
struct PiecePlace {
  static constexpr int size = 16 / sizeof(T);
  static constexpr int of_row = tile_channels<T> / size;
  int row, channel;

  __device__ PiecePlace(const Map& map, int turn)
      : row(map.stride_channel == 1 ? turn / of_row : turn / (rows * of_row) * rows + turn % rows),
        channel((map.stride_channel == 1 ? turn % of_row : turn / rows % of_row) * size) {}

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
      : rows(at_most(map.pixels - start.pixel, rows)),
        channels(at_most(map.channels - start.channel, channels)) {}

  // Of a piece, at least as many.
  template <typename Place>
  __device__ int of(const Place& place) const {
    return place.row < rows ? channels - place.channel : 0;
  }

 private:
  __device__ static int at_most(int64_t value, int most) {
    return value < most ? (int)value : most;
  }
};

// Fills `rows` rows of a tile, with zeros beyond the map; they are there after wait_for_copies and
// a barrier. The copies are not yet committed.
template <typename T>
__device__ void load_tile(T* tile, const Map& map, const TileStart& start, int rows) {
  using Place = PiecePlace<T, warp_size>;
  const T* const from = element<T>(map, start);
  const bool pieces = has_pieces<T>(map);
  const TileInside inside(map, start, rows, tile_channels<T>);
  const int turns = (int)ceil_div(rows, warp_size) * warp_size * Place::of_row;
#pragma unroll 1
  for (int turn = threadIdx.x; turn < turns; turn += blockDim.x) {
    const Place place(map, turn);
    if (place.row >= rows) {
      continue;
    }
    const int numbers = inside.of(place);
    const T* at = numbers > 0 ? from + place.offset(map) : from;
    if (pieces) {
      copy_async(place.in(tile), at, numbers > 0);
      continue;
    }
    MapPiece<T> piece = {};
#pragma unroll
    for (int i = 0; i < Place::size; ++i) {
      if (i < numbers) {
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
  using Place = PiecePlace<T, rows>;
  T* const to = element<T>(map, start);
  const bool pieces = has_pieces<T>(map);
  const TileInside inside(map, start, rows, tile_channels<T>);
#pragma unroll 1
  for (int turn = lane_index(); turn < rows * Place::of_row; turn += warp_size) {
    const Place place(map, turn);
    const int numbers = inside.of(place);
    const MapPiece<T> piece = *place.in(tile);
    T* const at = to + place.offset(map);
    if (pieces && numbers > 0) {
      store_whole(reinterpret_cast<MapPiece<T>*>(at), piece);
      continue;
    }
#pragma unroll
    for (int i = 0; i < Place::size; ++i) {
      if (i < numbers) {
        at[i * map.stride_channel] = piece.values[i];
      }
    }
  }
}

}  // namespace openseg
