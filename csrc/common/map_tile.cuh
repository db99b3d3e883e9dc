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

// The position in a tile that a thread copies in its turn: neighbours in memory go to neighbouring
// threads.
struct TilePlace {
  int row, channel;

  __device__ TilePlace(const Map& map, int turn, int rows, int channels)
      : row(map.stride_channel == 1 ? turn / channels : turn % rows),
        channel(map.stride_channel == 1 ? turn % channels : turn / rows) {}

  __device__ bool inside(const Map& map, const TileStart& start) const {
    return start.pixel + row < map.pixels && start.channel + channel < map.channels;
  }
};

// Fills `rows` rows of a tile, with zeros beyond the map; they are there after wait_for_copies and
// a barrier. The copies are not yet committed.
template <typename T>
__device__ void load_tile(T* tile, const Map& map, const TileStart& start, int rows) {
  const T* const from = element<T>(map, start);
  const int threads = blockDim.x;
  if (has_pieces<T>(map)) {
    constexpr int size = 16 / sizeof(T);
    for (int turn = threadIdx.x; turn < rows * 8; turn += threads) {
      const int row = turn / 8;
      const int channel = turn % 8 * size;
      const bool inside = start.pixel + row < map.pixels && start.channel + channel < map.channels;
      copy_async(&tile[row * tile_stride<T> + channel],
                 inside ? from + row * map.stride_pixel + channel : from, inside);
    }
    return;
  }
  constexpr int at_once = 8;  // loads under way in each thread
  const int turns = rows * tile_channels<T>;
  for (int first = threadIdx.x; first < turns; first += at_once * threads) {
    T values[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const TilePlace place(map, first + i * threads, rows, tile_channels<T>);
      values[i] = {};
      if (first + i * threads < turns && place.inside(map, start)) {
        values[i] = from[place.row * map.stride_pixel + place.channel * map.stride_channel];
      }
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const TilePlace place(map, first + i * threads, rows, tile_channels<T>);
      if (first + i * threads < turns) {
        tile[place.row * tile_stride<T> + place.channel] = values[i];
      }
    }
  }
}

// A warp writes 16 rows of a tile to where they belong in the map.
template <typename T>
__device__ void store_rows(const Map& map, const TileStart& start, const T* tile) {
  constexpr int rows = 16;
  T* const to = element<T>(map, start);
  if (has_pieces<T>(map)) {
    using Piece = MapPiece<T>;
    constexpr int size = 16 / sizeof(T);
    for (int turn = lane_index(); turn < rows * 8; turn += warp_size) {
      const int row = turn / 8;
      const int channel = turn % 8 * size;
      if (start.pixel + row < map.pixels && start.channel + channel < map.channels) {
        *reinterpret_cast<Piece*>(to + row * map.stride_pixel + channel) =
            *reinterpret_cast<const Piece*>(&tile[row * tile_stride<T> + channel]);
      }
    }
    return;
  }
  for (int turn = lane_index(); turn < rows * tile_channels<T>; turn += warp_size) {
    const TilePlace place(map, turn, rows, tile_channels<T>);
    if (place.inside(map, start)) {
      to[place.row * map.stride_pixel + place.channel * map.stride_channel] =
          tile[place.row * tile_stride<T> + place.channel];
    }
  }
}

}  // namespace openseg
