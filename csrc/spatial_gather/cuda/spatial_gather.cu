// SPDX-License-Identifier: MIT
// Forward: the pixels of an image are split among blocks. The first kernel finds for each split and
// region the greatest logit and the sum of exponentials below it, the second sums up the features
// times these exponentials, the third merges the splits in their order. Logits are few beside
// features, so that reading them once more costs less than a softmax that is not yet complete.
//
// Backward: one pass over the pixels. What a softmax subtracts from its gradient is a mean over all
// pixels, but here it is the scalar product of a region with its gradient.
//
// Weights are multiplied as 2^15 times what they are: float16 then has those of 2^-29 in full.
#include "spatial_gather/cuda/spatial_gather.h"

#include <algorithm>

#include "common/region_products.cuh"

namespace openseg {
namespace {

constexpr int threads = 256;
constexpr int warps = threads / warp_size;
constexpr int blocks_per_multiprocessor = 2;
constexpr int group_channels = warps * 16;  // that a block sums up
constexpr float lowest = -3.4e38f;  // finite, so that a split of logits at -inf counts as nothing
constexpr float weight_unit = 1.0f / (1 << 15);

struct ForwardCall : SpatialGather {
  SumPiece* sums;           // [batch, splits, groups, …]
  float* split_statistics;  // [batch, splits, 2, K]
  int64_t splits;
  int64_t split_pixels;
  int64_t groups;      // of channels
  int64_t group_sums;  // pieces of one
};

struct BackwardCall : SpatialGatherBackward {
  float* means;  // [batch, K]
};

__device__ float scaled_logit(const Map& logits, float scale, const TileStart& at) {
  float value = 0;
  OPENSEG_DISPATCH_FLOATING(logits.dtype, value = to_float(*element<scalar_t>(logits, at)))
  return scale * value;
}

// The greatest value so far, and the sum of exp(value - greatest).
struct Exponentials {
  float greatest = lowest;
  float sum = 0;

  __device__ void add(float value) {
    if (value > greatest) {
      sum = sum * exp_fast(greatest - value) + 1.0f;
      greatest = value;
    } else {
      sum += exp_fast(value - greatest);
    }
  }

  __device__ void add(float other_greatest, float other_sum) {
    const float both = fmaxf(greatest, other_greatest);
    sum = sum * exp_fast(greatest - both) + other_sum * exp_fast(other_greatest - both);
    greatest = both;
  }
};

// Several threads, its parts, share a region; neighbours in memory go to neighbouring threads.
__global__ void __launch_bounds__(threads) spatial_gather_statistics_kernel(ForwardCall call) {
  SharedMemory shared;
  float* const greatest = shared.take<float>(threads);
  float* const sums = shared.take<float>(threads);
  const int64_t batch = blockIdx.y;
  const int64_t count = call.logits.channels;
  const int64_t begin = blockIdx.x * call.split_pixels;
  const int64_t end = begin + call.split_pixels < call.logits.pixels ? begin + call.split_pixels
                                                                     : call.logits.pixels;
  float* const statistics = call.split_statistics + (batch * call.splits + blockIdx.x) * 2 * count;

  const bool side_by_side = call.logits.stride_channel == 1;
  int width = warps;  // regions at a time
  while (side_by_side && width < count && width < threads) {
    width *= 2;
  }
  const int parts = threads / width;
  const int part = side_by_side ? threadIdx.x / width : threadIdx.x % parts;
  const int own = side_by_side ? threadIdx.x % width : threadIdx.x / parts;
  for (int64_t first = 0; first < count; first += width) {
    const int64_t region = first + own;
    Exponentials mine;
    for (int64_t pixel = begin + part; region < count && pixel < end; pixel += parts) {
      mine.add(scaled_logit(call.logits, call.scale, {batch, pixel, region}));
    }
    greatest[own * parts + part] = mine.greatest;
    sums[own * parts + part] = mine.sum;
    sync_block();
    if (part == 0 && region < count) {
      for (int other = 1; other < parts; ++other) {
        mine.add(greatest[own * parts + other], sums[own * parts + other]);
      }
      statistics[region] = mine.greatest;
      statistics[count + region] = mine.sum;
    }
    sync_block();  // the parts have been read
  }
}

// weights[row, region] = exp(logit - greatest) * factors[region] / weight_unit, 0 where there is no
// pixel or no region. Without factors they are 1.
template <typename T>
__device__ void fill_weights(T* weights, int stride, const Map& logits, float scale,
                             const TileStart& start, int rows, const float* greatest,
                             const float* factors) {
  const int regions = padded_regions(logits.channels);
  for (int turn = threadIdx.x; turn < rows * regions; turn += blockDim.x) {
    const TilePlace place(logits, turn, rows, regions);
    float weight = 0;
    if (place.inside(logits, start)) {
      const float value =
          scaled_logit(logits, scale, {start.batch, start.pixel + place.row, place.channel});
      weight = exp_fast(value - greatest[place.channel]) * (1.0f / weight_unit);
      weight *= factors ? factors[place.channel] : 1.0f;
    }
    store(&weights[place.row * stride + place.channel], weight);
  }
}

// The tiles of `group_channels` channels in two stages, and the weights of their pixels.
template <typename T, int regions>
class GatherBlock {
 public:
  static constexpr int rows = tile_channels<T>;  // pixels at a time: tiles are square
  static constexpr int tiles = group_channels / tile_channels<T>;
  static constexpr int tile_size = rows * tile_stride<T>;
  static constexpr int weights_stride = regions + 16 / sizeof(T);

  __host__ __device__ explicit GatherBlock(SharedMemory& shared)
      : features_{shared.take<T>(tiles * tile_size), shared.take<T>(tiles * tile_size)},
        weights_(shared.take<T>(rows * weights_stride)) {}

  __device__ T* features(int stage) const { return stage == 0 ? features_[0] : features_[1]; }
  __device__ T* weights() const { return weights_; }

  // The columns of the tiles that this warp sums up.
  __device__ const T* own_features(int stage) const {
    const int channel = warp_index() * 16;
    return features(stage) + channel / tile_channels<T> * tile_size + channel % tile_channels<T>;
  }

 private:
  T* features_[2];
  T* weights_;
};

template <typename T, int regions>
__global__ void __launch_bounds__(threads) spatial_gather_sums_kernel(ForwardCall call) {
  using Block = GatherBlock<T, regions>;
  SharedMemory shared;
  const Block block(shared);
  const int64_t batch = blockIdx.z;
  const int64_t split = blockIdx.y;
  const int64_t count = call.logits.channels;
  const int64_t begin = split * call.split_pixels;
  const int64_t left = call.features.pixels - begin;
  const int steps = (int)ceil_div(left < call.split_pixels ? left : call.split_pixels, Block::rows);
  const int64_t part = batch * call.splits + split;
  const float* const greatest = call.split_statistics + part * 2 * count;

  float sums[regions / 16][2][4] = {};
  for (int step = -1; step < steps; ++step) {
    wait_for_copies<0>();
    sync_block();
    if (step + 1 < steps) {
#pragma unroll 1
      for (int tile = 0; tile < Block::tiles; ++tile) {
        const int64_t channel = (int64_t)blockIdx.x * group_channels + tile * tile_channels<T>;
        load_tile(block.features((step + 1) % 2) + tile * Block::tile_size, call.features,
                  {batch, begin + (step + 1) * Block::rows, channel}, Block::rows);
      }
      commit_copies();
    }
    if (step < 0) {
      continue;
    }
    fill_weights<T>(block.weights(), Block::weights_stride, call.logits, call.scale,
                    {batch, begin + step * Block::rows, 0}, Block::rows, greatest, nullptr);
    sync_block();
    const T* const features = block.own_features(step % 2);
#pragma unroll 1
    for (int row = 0; row < Block::rows; row += step_depth<T>) {
      uint32_t right[2][2];
      load_right(right, features + row * tile_stride<T>, tile_stride<T>);
#pragma unroll
      for (int i = 0; i < regions / 16; ++i) {
        if (16 * i < count) {
          uint32_t weights[4];
          load_left_transposed(weights, block.weights() + row * Block::weights_stride + 16 * i,
                               Block::weights_stride);
          multiply<T>(sums[i][0], weights, right[0]);
          multiply<T>(sums[i][1], weights, right[1]);
        }
      }
    }
  }

  SumPiece* const pieces = call.sums + (part * call.groups + blockIdx.x) * call.group_sums +
                           warp_index() * sum_pieces + lane_index();
#pragma unroll
  for (int i = 0; i < regions / 16; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (16 * i < count) {
        const float (&sum)[4] = sums[i][half];
        pieces[i * warps * sum_pieces + half * warp_size] = {{sum[0], sum[1], sum[2], sum[3]}};
      }
    }
  }
}

// A thread merges one number of all splits.
__global__ void __launch_bounds__(threads) spatial_gather_merge_kernel(ForwardCall call) {
  const int64_t group_numbers = 4 * call.group_sums;
  const int64_t numbers = call.groups * group_numbers;
  const int64_t index = (int64_t)blockIdx.x * threads + threadIdx.x;
  const int64_t batch = blockIdx.y;
  const int64_t count = call.logits.channels;
  const SumPlace place(index % group_numbers, warps);
  const int64_t channel = index / group_numbers * group_channels + place.channel;
  if (index >= numbers || place.region >= count || channel >= call.features.channels) {
    return;
  }
  const float* const statistics =
      call.split_statistics + batch * call.splits * 2 * count + place.region;
  Exponentials all;
  for (int64_t split = 0; split < call.splits; ++split) {
    all.add(statistics[split * 2 * count], statistics[split * 2 * count + count]);
  }
  const float* const sums =
      reinterpret_cast<const float*>(call.sums) + batch * call.splits * numbers + index;
  float sum = 0;
  for (int64_t split = 0; split < call.splits; ++split) {
    sum += exp_fast(statistics[split * 2 * count] - all.greatest) * sums[split * numbers];
  }
  *element<float>(call.out, {batch, place.region, channel}) = sum * weight_unit / all.sum;
  if (channel == 0) {
    call.statistics[batch * 2 * count + place.region] = all.greatest;
    call.statistics[batch * 2 * count + count + place.region] = 1.0f / all.sum;
  }
}

// A warp takes one region: the mean of its gradient over pixels is <region, gradient of region>.
template <typename T>
__global__ void __launch_bounds__(threads) spatial_gather_means_kernel(BackwardCall call) {
  const int64_t count = call.grad_out.pixels;
  const int64_t index = (int64_t)blockIdx.x * warps + warp_index();
  const TileStart at{index / count, index % count, 0};
  float sum = 0;
  if (index < call.grad_out.batch * count) {
    for (int64_t channel = lane_index(); channel < call.grad_out.channels; channel += warp_size) {
      sum += *element<float>(call.forward.out, {at.batch, at.pixel, channel}) *
             to_float(*element<T>(call.grad_out, {at.batch, at.pixel, channel}));
    }
  }
  sum = warp_sum(sum);
  if (lane_index() == 0 && index < call.grad_out.batch * count) {
    call.means[index] = sum;
  }
}

// From the scalar products of the warp's pixels with the gradients of regions, by way of a tile of
// pixels that is free: 16 regions at a time, neighbours in memory in neighbouring lanes.
template <typename Logit, typename T, int size>
__device__ void write_logit_gradients(const BackwardCall& call, const TileStart& start,
                                      const T* weights, int stride, T* tile,
                                      const float (&products)[size][4]) {
  constexpr int staged_stride = tile_stride<T> * sizeof(T) / sizeof(float);
  float* const staged = reinterpret_cast<float*>(tile);
  const Map& map = call.grad_logits;
#pragma unroll
  for (int i = 0; i < size; i += 2) {
    sync_warp();  // the tile has been read
    const TileStart part{start.batch, start.pixel, 8 * i};
    for (int half = 0; half < 2; ++half) {
      const float piece[1][4] = {{products[i + half][0], products[i + half][1],
                                  products[i + half][2], products[i + half][3]}};
      put_rows(staged + 8 * half, staged_stride, piece);
    }
    sync_warp();
#pragma unroll 1
    for (int turn = lane_index(); turn < 16 * 16; turn += warp_size) {
      const TilePlace place(map, turn, 16, 16);
      if (place.inside(map, part)) {
        const int region = 8 * i + place.channel;
        const float weight = weight_unit * to_float(weights[place.row * stride + region]);
        const float mean = call.means[start.batch * map.channels + region];
        store(element<Logit>(map, {start.batch, start.pixel + place.row, region}),
              call.forward.scale * weight *
                  (staged[place.row * staged_stride + place.channel] - mean));
      }
    }
  }
}

template <typename T, int regions>
__global__ void __launch_bounds__(PixelBlock<T, regions>::threads)
    spatial_gather_backward_kernel(BackwardCall call) {
  using Block = PixelBlock<T, regions>;
  constexpr int channels = tile_channels<T>;
  SharedMemory shared;
  const Block block(shared);
  const int64_t batch = blockIdx.y;
  const int64_t first = (int64_t)blockIdx.x * Block::pixels;
  const int64_t own = first + warp_index() * warp_pixels;
  const Map& logits = call.forward.logits;
  const int64_t count = logits.channels;
  const int tiles = (int)ceil_div(call.grad_out.channels, channels);
  const float* const statistics = call.forward.statistics + batch * 2 * count;

  float products[regions / 8][4] = {};
  for (int step = -1; step < 2 * tiles; ++step) {
    wait_for_copies<0>();
    sync_block();
    if (step + 1 < 2 * tiles) {
      const int64_t channel = (int64_t)((step + 1) % tiles) * channels;
      const int stage = (step + 1) % 2;
      if (step + 1 < tiles) {
        load_tile(block.pixel_tile(stage), call.forward.features, {batch, first, channel},
                  Block::pixels);
      }
      load_tile(block.vector_tile(stage), call.grad_out, {batch, 0, channel},
                padded_regions(count));
      commit_copies();
    }
    if (step < 0) {
      fill_weights<T>(block.weights(), Block::weights_stride, logits, call.forward.scale,
                      {batch, first, 0}, Block::pixels, statistics, statistics + count);
      continue;
    }
    T* const pixels = block.own_pixels(step % 2);
    const T* const vectors = block.vector_tile(step % 2);
    if (step < tiles) {
      add_scores(products, pixels, vectors, count);
      if (step == tiles - 1) {
        OPENSEG_DISPATCH_FLOATING(logits.dtype, write_logit_gradients<scalar_t>(
                                                    call, {batch, own, 0}, block.own_weights(),
                                                    Block::weights_stride, pixels, products))
      }
      continue;
    }
    float mixed[channels / 8][4];
    mix(mixed, block.own_weights(), Block::weights_stride, vectors, count);
    scale_rows(mixed, weight_unit, weight_unit);
    write_rows(call.grad_features, {batch, own, (int64_t)(step - tiles) * channels}, pixels, mixed);
  }
}

// The call with the sizes of its splits; `scratch` may be null.
template <typename T>
ForwardCall with_splits(const SpatialGather& call, float* scratch) {
  constexpr int rows = tile_channels<T>;
  const int64_t groups = ceil_div(call.features.channels, group_channels);
  const int64_t blocks = (int64_t)multiprocessor_count() * blocks_per_multiprocessor;
  const int64_t others = std::max<int64_t>(1, groups * call.features.batch);
  const int64_t tiles = ceil_div(call.features.pixels, rows);
  const int64_t splits = std::min(tiles, std::max<int64_t>(1, blocks / others));
  const int64_t split_pixels = ceil_div(tiles, splits) * rows;
  ForwardCall result{call,
                     reinterpret_cast<SumPiece*>(scratch),
                     nullptr,
                     ceil_div(call.features.pixels, split_pixels),
                     split_pixels,
                     groups,
                     ceil_div(call.logits.channels, 16) * warps * sum_pieces};
  const int64_t pieces = call.features.batch * result.splits * groups * result.group_sums;
  result.split_statistics = scratch ? scratch + 4 * pieces : nullptr;
  return result;
}

template <typename T, int regions>
void run_sums(const ForwardCall& call, void* stream) {
  SharedMemory measure(nullptr);
  GatherBlock<T, regions> block(measure);
  launch(spatial_gather_sums_kernel<T, regions>,
         dim3(call.groups, call.splits, call.features.batch), threads, measure.bytes(), stream,
         call);
}

template <typename T>
void run_forward(const ForwardCall& call, void* stream) {
  const int64_t batch = call.features.batch;
  launch(spatial_gather_statistics_kernel, dim3(call.splits, batch), threads,
         2 * threads * sizeof(float), stream, call);
  OPENSEG_DISPATCH_REGIONS(call.logits.channels, run_sums<T, regions>(call, stream))
  launch(spatial_gather_merge_kernel,
         dim3(ceil_div(4 * call.groups * call.group_sums, threads), batch), threads, 0, stream,
         call);
}

template <typename T, int regions>
void run_backward(const BackwardCall& call, void* stream) {
  using Block = PixelBlock<T, regions>;
  SharedMemory measure(nullptr);
  Block block(measure);
  const Map& features = call.grad_features;
  launch(spatial_gather_backward_kernel<T, regions>,
         dim3(ceil_div(features.pixels, Block::pixels), features.batch), Block::threads,
         measure.bytes(), stream, call);
}

template <typename T>
void run_means(const BackwardCall& call, void* stream) {
  launch(spatial_gather_means_kernel<T>,
         ceil_div(call.grad_out.batch * call.grad_out.pixels, warps), threads, 0, stream, call);
}

void check(const SpatialGather& call) {
  OPENSEG_CHECK(call.logits.channels <= most_regions, "spatial_gather: logits have ",
                call.logits.channels, " regions, the kernel for GPUs serves up to ", most_regions);
}

}  // namespace

void spatial_gather_cuda(const SpatialGather& call, bool allow_tf32, float* scratch, void* stream) {
  check(call);
  OPENSEG_DISPATCH_PRODUCTS(call.features.dtype, allow_tf32,
                            run_forward<scalar_t>(with_splits<scalar_t>(call, scratch), stream))
}

int64_t spatial_gather_scratch(const SpatialGather& call, bool allow_tf32) {
  OPENSEG_DISPATCH_PRODUCTS(call.features.dtype, allow_tf32, {
    const ForwardCall with = with_splits<scalar_t>(call, nullptr);
    return call.features.batch * with.splits *
           (4 * with.groups * with.group_sums + 2 * call.logits.channels);
  })
}

void spatial_gather_backward_cuda(const SpatialGatherBackward& call, bool allow_tf32, float* means,
                                  void* stream) {
  check(call.forward);
  const BackwardCall with{call, means};
  OPENSEG_DISPATCH_FLOATING(call.grad_out.dtype, run_means<scalar_t>(with, stream))
  OPENSEG_DISPATCH_PRODUCTS(call.grad_out.dtype, allow_tf32,
                            OPENSEG_DISPATCH_REGIONS(call.grad_logits.channels,
                                                     run_backward<scalar_t, regions>(with, stream)))
}

}  // namespace openseg
