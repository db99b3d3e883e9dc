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

#include "common/region_products.cuh"

namespace openseg {
namespace {

constexpr int threads = 256;
constexpr int warps = threads / warp_size;
constexpr float lowest = -3.4e38f;  // finite, so that a split of logits at -inf counts as nothing
constexpr float weight_unit = 1.0f / (1 << 15);

// That a block sums up: as many as the registers of its warps suffice for.
__host__ __device__ constexpr int group_channels(int64_t regions) {
  return warps * (regions <= 176 ? 32 : 16);
}

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
  PixelShares shares;
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
// pixel or no region. Without factors they are 1. `workers` warps share the work; neighbours in
// memory go to neighbouring lanes.
template <typename T>
__device__ void fill_weights(T* weights, int stride, const Map& logits, float scale,
                             const TileStart& start, int rows, int worker, int workers,
                             const float* greatest, const float* factors) {
  constexpr int at_once = 4;  // loads under way in each thread
  const bool side_by_side = logits.stride_channel == 1;
  const int regions = padded_regions(logits.channels);
  const int inner = side_by_side ? regions : rows;
  const int outer = side_by_side ? rows : regions;
  for (int i = lane_index(); i < inner; i += warp_size) {
    for (int first = worker; first < outer; first += at_once * workers) {
      const auto place = [&](int j) {
        const int o = first + j * workers;
        return TileStart{start.batch, start.pixel + (side_by_side ? o : i), side_by_side ? i : o};
      };
      const auto inside = [&](const TileStart& at) {
        return at.pixel < logits.pixels && at.channel < logits.channels;
      };
      float values[at_once];
#pragma unroll
      for (int j = 0; j < at_once; ++j) {
        values[j] = inside(place(j)) ? scaled_logit(logits, scale, place(j)) : 0;
      }
#pragma unroll
      for (int j = 0; j < at_once; ++j) {
        const TileStart at = place(j);
        float weight = 0;
        if (inside(at)) {
          weight = exp_fast(values[j] - greatest[at.channel]) * (1.0f / weight_unit);
          weight *= factors ? factors[at.channel] : 1.0f;
        }
        if (first + j * workers < outer) {
          store(&weights[(at.pixel - start.pixel) * stride + at.channel], weight);
        }
      }
    }
  }
}

// Two stages of the tiles of some pixels, for all channels of a group, and of their weights.
template <typename T, int regions>
class GatherBlock {
 public:
  static constexpr int channels = group_channels(regions);
  static constexpr int warp_channels = channels / warps;
  static constexpr int rows = tile_channels<T> / 2;  // pixels at a time
  static constexpr int tiles = channels / tile_channels<T>;
  static constexpr int tile_size = rows * tile_stride<T>;

  __host__ __device__ GatherBlock(SharedMemory& shared, int64_t count)
      : weights_stride_(padded_regions(count) + 16 / sizeof(T)),
        features_(shared.take<T>(2 * tiles * tile_size)),
        weights_(shared.take<T>(2 * rows * weights_stride_)) {}

  __device__ T* tile(int stage, int index) const {
    return features_ + (stage * tiles + index) * tile_size;
  }
  __device__ T* weights(int stage) const { return weights_ + stage * rows * weights_stride_; }
  __device__ int weights_stride() const { return weights_stride_; }

  // The columns of the tiles that this warp sums up.
  __device__ const T* own_features(int stage) const {
    const int channel = warp_index() * warp_channels;
    return tile(stage, channel / tile_channels<T>) + channel % tile_channels<T>;
  }

 private:
  int weights_stride_;
  T* features_;
  T* weights_;
};

template <typename T, int regions>
__global__ void __launch_bounds__(threads, blocks_per_multiprocessor<regions>)
    spatial_gather_sums_kernel(ForwardCall call) {
  using Block = GatherBlock<T, regions>;
  SharedMemory shared;
  const int count = (int)call.logits.channels;
  const Block block(shared, count);
  const int batch = blockIdx.z;
  const int split = blockIdx.y;
  const int64_t begin = split * call.split_pixels;
  const int64_t left = call.features.pixels - begin;
  const int steps = (int)ceil_div(left < call.split_pixels ? left : call.split_pixels, Block::rows);
  const int64_t part = batch * call.splits + split;
  const float* const greatest = call.split_statistics + part * 2 * count;

  float sums[regions / 16][Block::warp_channels / 8][4] = {};
  for (int step = -1; step < steps; ++step) {
    wait_for_copies<0>();
    sync_block();
    if (step + 1 < steps) {
      const int stage = (step + 1) % 2;
      const int64_t pixel = begin + (step + 1) * Block::rows;
#pragma unroll 1
      for (int tile = 0; tile < Block::tiles; ++tile) {
        const int64_t channel = (int64_t)blockIdx.x * Block::channels + tile * tile_channels<T>;
        load_tile(block.tile(stage, tile), call.features, {batch, pixel, channel}, Block::rows);
      }
      commit_copies();
      fill_weights<T>(block.weights(stage), block.weights_stride(), call.logits, call.scale,
                      {batch, pixel, 0}, Block::rows, warp_index(), warps, greatest, nullptr);
    }
    if (step >= 0) {
      add_squares(sums, (int)ceil_div(count, 16), block.weights(step % 2), block.weights_stride(),
                  block.own_features(step % 2), Block::rows);
    }
  }

  constexpr int columns = Block::warp_channels / 16;
  SumPiece* const pieces = call.sums + (part * call.groups + blockIdx.x) * call.group_sums +
                           warp_index() * columns * sum_pieces + lane_index();
#pragma unroll
  for (int i = 0; i < regions / 16; ++i) {
#pragma unroll
    for (int j = 0; j < 2 * columns; ++j) {
      if (16 * i < count) {
        const float (&sum)[4] = sums[i][j];
        pieces[i * warps * columns * sum_pieces + j * warp_size] = {
            {sum[0], sum[1], sum[2], sum[3]}};
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
  const int channels = group_channels(count);
  const SumPlace place(index % group_numbers, channels / 16);
  const int64_t channel = index / group_numbers * channels + place.channel;
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

// From the scalar products of 16 pixels with the gradients of regions, by way of a tile of pixels
// that is free: 16 regions at a time, neighbours in memory in neighbouring lanes.
template <typename T, int size>
__device__ void write_logit_gradients(const BackwardCall& call, const TileStart& start,
                                      const T* weights, int stride, T* tile,
                                      const float (&products)[size][4]) {
  constexpr int staged_stride = tile_stride<T> * sizeof(T) / sizeof(float);
  float* const staged = reinterpret_cast<float*>(tile);
  const Map& map = call.grad_logits;
  const bool side_by_side = map.stride_channel == 1;
#pragma unroll
  for (int i = 0; i < size; i += 2) {
    if (8 * i < map.channels) {
      sync_warp();  // the tile has been read
      const float pair[2][4] = {
          {products[i][0], products[i][1], products[i][2], products[i][3]},
          {products[i + 1][0], products[i + 1][1], products[i + 1][2], products[i + 1][3]}};
      put_rows(staged, staged_stride, pair, 16);
      sync_warp();
#pragma unroll 1
      for (int turn = lane_index(); turn < 16 * 16; turn += warp_size) {
        const int row = side_by_side ? turn / 16 : turn % 16;
        const int column = side_by_side ? turn % 16 : turn / 16;
        const TileStart at{start.batch, start.pixel + row, 8 * i + column};
        if (at.pixel < map.pixels && at.channel < map.channels) {
          const float weight = weight_unit * to_float(weights[row * stride + at.channel]);
          const float mean = call.means[start.batch * map.channels + at.channel];
          const float gradient =
              call.forward.scale * weight * (staged[row * staged_stride + column] - mean);
          OPENSEG_DISPATCH_FLOATING(map.dtype, store(element<scalar_t>(map, at), gradient))
        }
      }
    }
  }
}

template <typename T, int regions>
__global__ void __launch_bounds__(block_threads, blocks_per_multiprocessor<regions>)
    spatial_gather_backward_kernel(BackwardCall call) {
  constexpr int rows = most_row_tiles<T, regions>;
  using Block = PixelBlock<T, regions, rows>;
  constexpr int channels = tile_channels<T>;
  SharedMemory shared;
  const Map& logits = call.forward.logits;
  const int count = (int)logits.channels;
  const Block block(shared, call.shares.tile, count, true);
  const int batch = blockIdx.y;
  const int begin = call.shares.begin();
  const int end = call.shares.end(logits);
  const int tiles = (int)ceil_div(call.grad_out.channels, channels);
  const float* const statistics = call.forward.statistics + batch * 2 * count;

  const int steps = 2 * tiles;
  const auto send = [&](int stage, int first, int step) {
    const int64_t channel = (int64_t)(step % tiles) * channels;
    if (step < tiles) {
      load_tile(block.pixel_tile(stage), call.forward.features, {batch, first, channel},
                block.rows(first, end));
    }
    load_tile(block.vector_tile(stage), call.grad_out, {batch, 0, channel}, padded_regions(count));
  };
  Turns turns(steps, call.shares.tile, end, send);
  turns.start(begin, -1);
  for (int first = begin; first < end; first += call.shares.tile) {
    const int tile_rows = block.rows(first, end);
    const bool has_pixels = block.own_row() < tile_rows;
    const int64_t own = first + block.own_row();
    T* const weights = block.own_weights();
    if (has_pixels) {
      sync_warp();  // the weights before have been read
      fill_weights<T>(weights, block.weights_stride(), logits, call.forward.scale, {batch, own, 0},
                      Block::warp_pixels, 0, 1, statistics, statistics + count);
    }
    float products[rows][regions / 8][4] = {};
    for (int step = 0; step < tiles; ++step) {
      turns.start(first, step);
      if (has_pixels) {
        add_scores(products, block.own_pixels(turns.stage()), block.vector_tile(turns.stage()),
                   count);
      }
    }
    uint32_t factors[rows][regions / step_depth<T>][4];
    if (has_pixels) {
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        T* const part = weights + 16 * r * block.weights_stride();
        write_logit_gradients(call, {batch, own + 16 * r, 0}, part, block.weights_stride(),
                              block.own_pixels(turns.stage()), products[r]);
        get_rows(products[r], part, block.weights_stride(), count);
      }
    }
    float units[rows][2];
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      left_factors<T>(factors[r], products[r]);
      units[r][0] = units[r][1] = weight_unit;
    }
    for (int step = tiles; step < 2 * tiles; ++step) {
      turns.start(first, step);
      if (has_pixels) {
        write_mixed(call.grad_features, {batch, own, (int64_t)(step - tiles) * channels},
                    block.own_pixels(turns.stage()), factors, units,
                    block.vector_tile(turns.stage()), count);
      }
    }
  }
}

// The call with the sizes of its splits; `scratch` may be null.
template <typename T, int regions>
ForwardCall with_splits(const SpatialGather& call, float* scratch) {
  constexpr int rows = GatherBlock<T, regions>::rows;
  const int64_t groups = ceil_div(call.features.channels, group_channels(regions));
  const int64_t blocks = (int64_t)multiprocessor_count() * blocks_per_multiprocessor<regions>;
  const int64_t others = std::max<int64_t>(1, groups * call.features.batch);
  const int64_t tiles = ceil_div(call.features.pixels, rows);
  const int64_t splits = std::min(tiles, std::max<int64_t>(1, blocks / others));
  const int64_t split_pixels = ceil_div(tiles, splits) * rows;
  ForwardCall result{
      call,
      reinterpret_cast<SumPiece*>(scratch),
      nullptr,
      ceil_div(call.features.pixels, split_pixels),
      split_pixels,
      groups,
      ceil_div(call.logits.channels, 16) * (group_channels(regions) / 16) * sum_pieces};
  const int64_t pieces = call.features.batch * result.splits * groups * result.group_sums;
  result.split_statistics = scratch ? scratch + 4 * pieces : nullptr;
  return result;
}

template <typename T, int regions>
void run_forward(const ForwardCall& call, void* stream) {
  const int64_t batch = call.features.batch;
  launch(spatial_gather_statistics_kernel, dim3(call.splits, batch), threads,
         2 * threads * sizeof(float), stream, call);
  SharedMemory measure(nullptr);
  GatherBlock<T, regions> block(measure, call.logits.channels);
  launch(spatial_gather_sums_kernel<T, regions>, dim3(call.groups, call.splits, batch), threads,
         measure.bytes(), stream, call);
  launch(spatial_gather_merge_kernel,
         dim3(ceil_div(4 * call.groups * call.group_sums, threads), batch), threads, 0, stream,
         call);
}

template <typename T, int regions>
void run_backward(const SpatialGatherBackward& call, float* means, void* stream) {
  using Block = PixelBlock<T, regions, most_row_tiles<T, regions>>;
  const int64_t count = call.grad_logits.channels;
  const BackwardCall with{call, means, Block::share(call.grad_logits, count, true)};
  launch(spatial_gather_backward_kernel<T, regions>,
         dim3(with.shares.blocks, call.grad_logits.batch), block_threads,
         Block::bytes(with.shares.tile, count, true), stream, with);
}

template <typename T>
void run_means(const SpatialGatherBackward& call, float* means, void* stream) {
  launch(spatial_gather_means_kernel<T>,
         ceil_div(call.grad_out.batch * call.grad_out.pixels, warps), threads, 0, stream,
         BackwardCall{call, means, {}});
}

void check(const SpatialGather& call) {
  OPENSEG_CHECK(call.logits.channels <= most_regions, "spatial_gather: logits have ",
                call.logits.channels, " regions, the kernel for GPUs serves up to ", most_regions);
  OPENSEG_CHECK(call.features.pixels <= most_pixels, "spatial_gather: features has ",
                call.features.pixels, " pixels an image, the kernel for GPUs serves up to ",
                most_pixels);
}

}  // namespace

void spatial_gather_cuda(const SpatialGather& call, bool allow_tf32, float* scratch, void* stream) {
  check(call);
  OPENSEG_DISPATCH_PRODUCTS(
      call.features.dtype, allow_tf32,
      OPENSEG_DISPATCH_REGIONS(
          call.logits.channels,
          run_forward<scalar_t, regions>(with_splits<scalar_t, regions>(call, scratch), stream)))
}

int64_t spatial_gather_scratch(const SpatialGather& call, bool allow_tf32) {
  OPENSEG_DISPATCH_PRODUCTS(
      call.features.dtype, allow_tf32, OPENSEG_DISPATCH_REGIONS(call.logits.channels, {
        const ForwardCall with = with_splits<scalar_t, regions>(call, nullptr);
        return call.features.batch * with.splits *
               (4 * with.groups * with.group_sums + 2 * call.logits.channels);
      }))
}

void spatial_gather_backward_cuda(const SpatialGatherBackward& call, bool allow_tf32, float* means,
                                  void* stream) {
  check(call.forward);
  OPENSEG_DISPATCH_FLOATING(call.grad_out.dtype, run_means<scalar_t>(call, means, stream))
  OPENSEG_DISPATCH_PRODUCTS(
      call.grad_out.dtype, allow_tf32,
      OPENSEG_DISPATCH_REGIONS(call.grad_logits.channels,
                               run_backward<scalar_t, regions>(call, means, stream)))
}

}  // namespace openseg
