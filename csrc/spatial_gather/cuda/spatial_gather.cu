// SPDX-License-Identifier: MIT
// Forward: the pixels of an image are split among blocks. The first kernel finds for each split and
// region the greatest logit and the sum of exponentials below it, the second sums up the features
// times these exponentials, the third merges the splits in their order. Logits are few beside
// features, so that reading them once more costs less than a softmax that is not yet complete.
//
// Backward: one pass over the pixels. What a softmax subtracts from its gradient is a mean over all
// pixels, but here it is the scalar product of a region with its gradient.
#include "spatial_gather/cuda/spatial_gather.h"

#include "common/region_products.cuh"
#include "spatial_gather/cuda/exponentials.cuh"

namespace openseg {
namespace {

constexpr int threads = 256;
constexpr int warps = threads / warp_size;

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

// Of which one block finds the statistics.
__host__ __device__ inline int regions_at_once(const Map& logits) {
  return logits.stride_channel == 1 ? warp_size : warps;
}

// Several threads, its parts, share a region; neighbours in memory go to neighbouring threads.
__global__ void __launch_bounds__(threads) spatial_gather_statistics_kernel(ForwardCall call) {
  SharedMemory shared;
  float* const greatest = shared.take<float>(threads);
  float* const sums = shared.take<float>(threads);
  const int64_t batch = blockIdx.z;
  const int count = (int)call.logits.channels;
  const int64_t begin = blockIdx.x * call.split_pixels;
  const int64_t end = begin + call.split_pixels < call.logits.pixels ? begin + call.split_pixels
                                                                     : call.logits.pixels;

  const bool side_by_side = call.logits.stride_channel == 1;
  const int parts = threads / regions_at_once(call.logits);
  const int part = side_by_side ? warp_index() : lane_index();
  const int own = side_by_side ? lane_index() : warp_index();
  const int region = blockIdx.y * regions_at_once(call.logits) + own;
  Exponentials mine;
  if (region < count) {
    const TileStart start{batch, begin + part, region};
    OPENSEG_DISPATCH_FLOATING(call.logits.dtype, mine = exponentials<scalar_t>(
                                                     call.logits, call.scale, start, parts, end))
  }
  greatest[own * parts + part] = mine.greatest;
  sums[own * parts + part] = mine.sum;
  sync_block();
  if (part == 0 && region < count) {
    for (int other = 1; other < parts; ++other) {
      mine.add(greatest[own * parts + other], sums[own * parts + other]);
    }
    float* const statistics =
        call.split_statistics + (batch * call.splits + blockIdx.x) * 2 * count;
    statistics[region] = mine.greatest;
    statistics[count + region] = mine.sum;
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
  static constexpr int weights_stride = regions + 16 / sizeof(T);

  __host__ __device__ explicit GatherBlock(SharedMemory& shared)
      : features_(shared.take<T>(2 * tiles * tile_size)),
        weights_(shared.take<T>(2 * rows * weights_stride)),
        greatest_(shared.take<float>(regions)) {}

  __device__ T* features(int stage) const { return features_ + stage * tiles * tile_size; }
  __device__ T* weights(int stage) const { return weights_ + stage * rows * weights_stride; }
  __device__ float* greatest() const { return greatest_; }  // logit of each region

  // The columns of the tiles that this warp sums up.
  __device__ const T* own_features(int stage) const {
    const int channel = warp_index() * warp_channels;
    return features(stage) + channel / tile_channels<T> * tile_size + channel % tile_channels<T>;
  }

 private:
  T* features_;
  T* weights_;
  float* greatest_;
};

template <typename T, int regions>
__global__ void __launch_bounds__(threads, blocks_per_multiprocessor<regions>)
    spatial_gather_sums_kernel(ForwardCall call) {
  using Block = GatherBlock<T, regions>;
  SharedMemory shared;
  const int count = (int)call.logits.channels;
  const Block block(shared);
  const int batch = blockIdx.z;
  const int split = blockIdx.y;
  const int64_t begin = split * call.split_pixels;
  const int64_t left = call.features.pixels - begin;
  const int steps = (int)ceil_div(left < call.split_pixels ? left : call.split_pixels, Block::rows);
  const int64_t part = batch * call.splits + split;
  const float* const greatest = call.split_statistics + part * 2 * count;
  for (int region = threadIdx.x; region < count; region += threads) {
    block.greatest()[region] = greatest[region];
  }
  TileRowLoader<T, Block::tiles, Block::rows> features(
      call.features, {batch, begin, (int64_t)blockIdx.x * Block::channels});

  float sums[regions / 16][Block::warp_channels / 8][4] = {};
  for (int step = -1; step < steps; ++step) {
    wait_for_copies<0>();
    sync_block();
    if (step + 1 < steps) {
      const int stage = (step + 1) % 2;
      features.load(block.features(stage));
      commit_copies();
      const TileStart start{batch, begin + (step + 1) * Block::rows, 0};
      const Weights weights{call.logits, call.scale, block.greatest(), nullptr};
      weights.fill<Block::rows, warps>(block.weights(stage), Block::weights_stride, start,
                                       warp_index());
    }
    if (step >= 0) {
      add_squares(sums, (int)ceil_div(count, 16), block.weights(step % 2), Block::weights_stride,
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

// A thread merges a piece of all splits: two channels of two regions.
template <int channels>
__global__ void __launch_bounds__(threads) spatial_gather_merge_kernel(ForwardCall call) {
  const int index = blockIdx.x * threads + threadIdx.x;
  const int64_t batch = blockIdx.z;
  const int count = (int)call.logits.channels;
  const SumPlace place(4 * index, channels / 16);
  const int64_t channel = (int64_t)blockIdx.y * channels + place.channel;
  if (index >= call.group_sums || place.region >= count || channel >= call.features.channels) {
    return;
  }
  const int other = place.region + 8 < count ? 8 : 0;  // from the first region to the second
  const float* const statistics =
      call.split_statistics + batch * call.splits * 2 * count + place.region;
  float greatest[2] = {lowest, lowest};
  const float* at = statistics;
  for (int split = 0; split < call.splits; ++split, at += 2 * count) {
    for (int i = 0; i < 2; ++i) {
      greatest[i] = fmaxf(greatest[i], at[i * other]);
    }
  }
  const SumPiece* pieces =
      call.sums + (batch * call.splits * call.groups + blockIdx.y) * call.group_sums + index;
  float exponentials[2] = {};
  float merged[4] = {};
  at = statistics;
  for (int split = 0; split < call.splits; ++split, at += 2 * count) {
    const SumPiece piece = *pieces;
    pieces += call.groups * call.group_sums;
    for (int i = 0; i < 2; ++i) {
      const float factor = exp_fast(at[i * other] - greatest[i]);
      exponentials[i] += factor * at[i * other + count];
      merged[2 * i] += factor * piece.values[2 * i];
      merged[2 * i + 1] += factor * piece.values[2 * i + 1];
    }
  }
  float* const first_out = element<float>(call.out, {batch, place.region, channel});
  for (int i = 0; i < 2; ++i) {
    const int region = place.region + 8 * i;
    if (region < count) {
      const float norm = 1.0f / exponentials[i];
      const float first = merged[2 * i] * (weight_unit * norm);
      const float second = merged[2 * i + 1] * (weight_unit * norm);
      float* const out = first_out + 8 * i * call.out.stride_pixel;
      if (channel + 1 < call.features.channels && (uintptr_t)out % 8 == 0) {
        store_pair(out, first, second);
      } else {
        out[0] = first;
        if (channel + 1 < call.features.channels) {
          out[1] = second;
        }
      }
      if (channel == 0) {
        call.statistics[batch * 2 * count + region] = greatest[i];
        call.statistics[batch * 2 * count + count + region] = norm;
      }
    }
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

// Of a tile that holds floats, in floats.
template <typename T>
constexpr int staged_stride = tile_stride<T> * sizeof(T) / sizeof(float);

// The gradients of the logits of 16 pixels and 32 regions or fewer, from scalar products in
// `staged`. Neighbours in memory go to neighbouring lanes. Products fill the registers here: hence
// a type that is looked up where it is stored, and places that are not kept.
template <bool side_by_side, typename T>
__device__ void write_logit_gradients(const BackwardCall& call, const TileStart& start,
                                      const T* weights, int stride, const float* staged) {
  const Map& map = call.grad_logits;
  const TileInside inside(map, start, 16, 32);
  const float* const means = call.means + start.batch * map.channels + start.channel;
  const float factor = call.forward.scale * weight_unit;
  constexpr int inner_size = side_by_side ? 32 : 16;
  constexpr int step = warp_size / inner_size;
  const int lane = thread_anew() % warp_size;
  const int inner = lane % inner_size;
  const int first = lane / inner_size;
  const int row = side_by_side ? first : inner;
  const int column = side_by_side ? inner : first;
  if (inner < (side_by_side ? inside.channels : inside.rows)) {
    int64_t to = start.batch * map.stride_batch + (start.pixel + row) * map.stride_pixel +
                 (start.channel + column) * map.stride_channel;
    weights += row * stride + start.channel + column;
    staged += row * staged_stride<T> + column;
#pragma unroll 1
    for (int outer = first; outer < (side_by_side ? inside.rows : inside.channels); outer += step) {
      const float mean = means[side_by_side ? inner : outer];
      const float gradient = factor * to_float(*weights) * (*staged - mean);
      OPENSEG_DISPATCH_FLOATING(map.dtype, store(static_cast<scalar_t*>(map.data) + to, gradient))
      to += step * (side_by_side ? map.stride_pixel : map.stride_channel);
      weights += side_by_side ? step * stride : step;
      staged += side_by_side ? step * staged_stride<T> : step;
    }
  }
}

// From the scalar products of 16 pixels with the gradients of regions, by way of a tile of pixels
// that is free: 32 regions at a time.
template <typename T, int size>
__device__ void write_logit_gradients(const BackwardCall& call, const TileStart& start,
                                      const T* weights, int stride, T* tile,
                                      const float (&products)[size][4]) {
  float* const staged = reinterpret_cast<float*>(tile);
  const Map& map = call.grad_logits;
#pragma unroll
  for (int i = 0; i < size; i += 4) {
    if (8 * i < map.channels) {
      sync_warp();  // the tile has been read
      float part[4][4] = {};
#pragma unroll
      for (int j = 0; j < 4 && i + j < size; ++j) {
        for (int e = 0; e < 4; ++e) {
          part[j][e] = products[i + j][e];
        }
      }
      put_rows(staged, staged_stride<T>, part, 32);
      sync_warp();
      const TileStart square{start.batch, start.pixel, 8 * i};
      if (map.stride_channel == 1) {
        write_logit_gradients<true>(call, square, weights, stride, staged);
      } else {
        write_logit_gradients<false>(call, square, weights, stride, staged);
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
    const int channel = (step < tiles ? step : step - tiles) * channels;
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
      const Weights of{logits, call.forward.scale, statistics, statistics + count};
      of.fill<Block::warp_pixels, 1>(weights, block.weights_stride(), {batch, own, 0}, 0);
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
  launch(spatial_gather_statistics_kernel,
         dim3(call.splits, ceil_div(call.logits.channels, regions_at_once(call.logits)), batch),
         threads, 2 * threads * sizeof(float), stream, call);
  SharedMemory measure(nullptr);
  GatherBlock<T, regions> block(measure);
  launch(spatial_gather_sums_kernel<T, regions>, dim3(call.groups, call.splits, batch), threads,
         measure.bytes(), stream, call);
  launch(spatial_gather_merge_kernel<group_channels(regions)>,
         dim3(ceil_div(call.group_sums, threads), call.groups, batch), threads, 0, stream, call);
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
