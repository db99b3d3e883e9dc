// SPDX-License-Identifier: MIT
// How blocks go over a map of either layout, and add up what their threads found.
#pragma once

#include "common/check.h"
#include "common/device.cuh"
#include "common/map.h"

namespace openseg {
namespace {

constexpr int threads = 256;
constexpr int many_slabs = 512;  // of all images, which are not to be many more

struct Split {
  int lanes;      // threads of a row
  int slab;       // pixels of a slab, at most
  int slabs;      // of an image
  int all_slabs;  // of all images
};

// Whether a pass goes over a map from its end. The second of two does: what the first has read
// last is what L2 still holds, and blocks start in the order of their indices. It lets go of what
// it has read, so that what it writes does not displace what it is still to read.
enum class Order { from_start, from_end };

// The part of a thread: of the `pixels` of a slab every `rows`-th from `row` on, in `width`
// channels.
template <int width>
struct Place {
  Order order;
  int lane, row, rows;
  int slab, group;  // of all images; of channels
  int pixels;
  int64_t image, begin, channel;
  bool inside;

  __device__ Place(const Split& split, const Map& map, Order order)
      : order(order),
        lane(threadIdx.x % split.lanes),
        row(threadIdx.x / split.lanes),
        rows(threads / split.lanes),
        slab(order == Order::from_end ? gridDim.x - 1 - blockIdx.x : blockIdx.x),
        group(order == Order::from_end ? gridDim.y - 1 - blockIdx.y : blockIdx.y),
        pixels(split.slab),
        image(slab / split.slabs),
        begin((int64_t)(slab % split.slabs) * split.slab),
        channel(((int64_t)group * split.lanes + lane) * width),
        inside(channel < map.channels) {
    if (begin + pixels > map.pixels) {
      pixels = (int)(map.pixels - begin);
    }
  }
};

// Channels side by side of one pixel.
template <typename T, int width>
struct alignas(sizeof(T) * width) Vector {
  T values[width];
};

// value(v) of each, rounded.
template <typename T, int width, typename Value>
__device__ Vector<T, width> rounded(const Value& value) {
  Vector<T, width> result;
  if constexpr (width == 1) {
    store(result.values, value(0));
  } else {
#pragma unroll
    for (int v = 0; v < width; v += 2) {
      store_pair(&result.values[v], value(v), value(v + 1));
    }
  }
  return result;
}

// Floats of a thread's channels that are moved together.
template <int width>
constexpr int float_piece = width < 4 ? width : 4;

// The pixels of a slab in a thread's channels; from the end, each stands for its mirror image.
template <typename T, int width>
class Column {
 public:
  __device__ Column(const Map& map, const Place<width>& place)
      : step_((int)map.stride_pixel * (int)sizeof(T)), order_(place.order) {
    const int64_t pixel = place.begin + (order_ == Order::from_end ? place.pixels - 1 : 0);
    start_ = reinterpret_cast<char*>(static_cast<T*>(map.data) + place.image * map.stride_batch +
                                     place.channel * map.stride_channel + pixel * map.stride_pixel);
    step_ = order_ == Order::from_end ? -step_ : step_;
  }

  __device__ Vector<T, width> read(int pixel) const {
    return order_ == Order::from_end ? read_last(at(pixel)) : *at(pixel);
  }
  __device__ void write(int pixel, const Vector<T, width>& values) const {
    store_whole(at(pixel), values);
  }

 private:
  // 32 bits times 32 bits plus 64 bits: one instruction.
  __device__ Vector<T, width>* at(int pixel) const {
    return reinterpret_cast<Vector<T, width>*>(start_ + (int64_t)pixel * step_);
  }

  char* start_;
  int step_;  // in bytes
  Order order_;
};

// Pixels of a thread that are loaded before any of them is worked on.
template <int width>
constexpr int batch = width == 1 ? 8 : 4;

// The sum of each number over the rows of a block, in the threads of row 0.
template <int count, int width>
__device__ void add_rows(float (&sums)[count], float* tree, const Place<width>& place) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    tree[i * threads + threadIdx.x] = sums[i];
  }
  for (int half = place.rows / 2; half > 0; half /= 2) {
    sync_block();
    if (place.row < half) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const int at = i * threads + threadIdx.x;
        tree[at] += tree[at + half * (threads / place.rows)];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < count; ++i) {
    sums[i] = tree[i * threads + threadIdx.x];
  }
}

// Slabs do not depend on the width of vectors.
inline Split split_of(const Map& map, int width = 1) {
  constexpr int64_t most = 1 << 28;  // for Column
  OPENSEG_CHECK(map.stride_pixel < most, "inplace_abn: pixels are ", map.stride_pixel,
                " elements apart, the kernel for GPUs serves less than ", most);
  const bool along_channels = channels_are_neighbours(map);
  Split split{};
  split.lanes = 1;
  while (along_channels && split.lanes < warp_size && split.lanes * width < map.channels) {
    split.lanes *= 2;
  }
  const int64_t least = along_channels ? 256 : 4096;
  const int64_t share = ceil_div(map.batch * map.pixels, many_slabs);
  split.slab = (int)(share > least ? share : least);
  split.slabs = (int)ceil_div(map.pixels, split.slab);
  split.all_slabs = (int)(split.slabs * map.batch);
  return split;
}

inline dim3 blocks_of(const Map& map, const Split& split, int width) {
  const int64_t groups = ceil_div(map.channels, split.lanes * width);
  OPENSEG_CHECK(groups < 1 << 16, "inplace_abn: the kernel serves no ", map.channels, " channels");
  return dim3(split.all_slabs, groups);
}

template <typename T>
constexpr int widest = 16 / sizeof(T);

// Whether all maps have their channels in whole and aligned vectors of 16 bytes.
template <typename T, typename... Maps>
bool in_vectors(const Maps&... maps) {
  const auto suits = [](const Map& map) {
    const int64_t multiples = map.channels | map.stride_pixel | map.stride_batch;
    return channels_are_neighbours(map) && multiples % widest<T> == 0 &&
           (uintptr_t)map.data % 16 == 0;
  };
  return (suits(maps) && ...);
}

}  // namespace
}  // namespace openseg
