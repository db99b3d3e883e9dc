// SPDX-License-Identifier: MIT
// Blocks share the pixels, however few regions there are. The scores of a pixel for all regions are
// in registers at once: its softmax is complete, and nothing of it is kept for the backward pass.
//
// Forward: key and query come in tiles of channels, then value in tiles of the result's channels.
//
// Backward: the scores are computed again, then for each pixel p = softmax and g = grad · value,
// the gradient p (g - Σ p g) of its scores. p goes to shared memory for the gradient of value, the
// gradient of scores after it for those of query and key. A block goes over many pixels and sums
// the latter up in memory of its own.
#include "object_attention/cuda/object_attention.h"

#include <algorithm>

#include "common/region_products.cuh"

namespace openseg {
namespace {

constexpr int blocks_per_multiprocessor = 2;
constexpr int sum_threads = 256;

// In place: exp(scale * score - greatest), 0 beyond the regions. Its sum for each row of the lane.
template <int size>
__device__ void exponentials(float (&scores)[size][4], int64_t count, float scale,
                             float (&sums)[2]) {
  const float infinity = float_from_bits(0x7f800000);
  float greatest[2] = {-infinity, -infinity};
#pragma unroll
  for (int i = 0; i < size; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[i][e] = column_of(i, e) < count ? scale * scores[i][e] : -infinity;
      greatest[e / 2] = fmaxf(greatest[e / 2], scores[i][e]);
    }
  }
  greatest[0] = row_max(greatest[0]);
  greatest[1] = row_max(greatest[1]);
  sums[0] = sums[1] = 0;
#pragma unroll
  for (int i = 0; i < size; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[i][e] = exp_fast(scores[i][e] - greatest[e / 2]);
      sums[e / 2] += scores[i][e];
    }
  }
  sums[0] = row_sum(sums[0]);
  sums[1] = row_sum(sums[1]);
}

// Both kernels go through their steps in one loop, in which the tiles of a step are on their way
// while the step before is computed.
template <typename T, int regions>
__global__ void __launch_bounds__(PixelBlock<T, regions>::threads)
    object_attention_forward_kernel(ObjectAttention call) {
  using Block = PixelBlock<T, regions>;
  constexpr int channels = tile_channels<T>;
  SharedMemory shared;
  const Block block(shared);
  const int64_t batch = blockIdx.y;
  const int64_t first = (int64_t)blockIdx.x * Block::pixels;
  const int64_t count = call.key.pixels;
  const int key_tiles = (int)ceil_div(call.key.channels, channels);
  const int steps = key_tiles + (int)ceil_div(call.value.channels, channels);

  const auto start = [&](int step) {
    const bool values = step >= key_tiles;
    const int64_t channel = (int64_t)(values ? step - key_tiles : step) * channels;
    if (!values) {
      load_tile(block.pixel_tile(step % 2), call.query, {batch, first, channel}, Block::pixels);
    }
    load_tile(block.vector_tile(step % 2), values ? call.value : call.key, {batch, 0, channel},
              padded_regions(count));
    commit_copies();
  };

  float scores[regions / 8][4] = {};
  float sums[2];
  for (int step = -1; step < steps; ++step) {
    wait_for_copies<0>();
    sync_block();
    if (step + 1 < steps) {
      start(step + 1);
    }
    if (step < 0) {
      continue;
    }
    T* const pixels = block.own_pixels(step % 2);
    const T* const vectors = block.vector_tile(step % 2);
    if (step < key_tiles) {
      add_scores(scores, pixels, vectors, count);
      if (step == key_tiles - 1) {
        exponentials(scores, count, call.scale, sums);
        put_rows(block.own_weights(), Block::weights_stride, scores);
      }
      continue;
    }
    float mixed[channels / 8][4];
    mix(mixed, block.own_weights(), Block::weights_stride, vectors, count);
    scale_rows(mixed, 1.0f / sums[0], 1.0f / sums[1]);
    write_rows(call.out,
               {batch, first + warp_index() * warp_pixels, (int64_t)(step - key_tiles) * channels},
               pixels, mixed);
  }
}

struct BackwardCall : ObjectAttentionBackward {
  SumPiece* sums;  // [batch, splits, tiles of channels of key, then of value, …]
  int64_t splits;
  int64_t tile_sums;  // pieces of one tile of channels
};

// The gradient of scores, from that of their softmax, takes the place of the weights in shared
// memory. A lane meets its own numbers alone, other warps may be reading the weights.
template <typename T, int size>
__device__ void softmax_gradient(const float (&grads)[size][4], T* weights, int stride) {
  float mean[2] = {};
#pragma unroll
  for (int i = 0; i < size; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      mean[e / 2] += to_float(weights[row_of(e) * stride + column_of(i, e)]) * grads[i][e];
    }
  }
  mean[0] = row_sum(mean[0]);
  mean[1] = row_sum(mean[1]);
  sync_block();  // the weights have been read
#pragma unroll
  for (int i = 0; i < size; ++i) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      T* const pair = &weights[row_of(e) * stride + column_of(i, e)];
      store_pair(pair, to_float(pair[0]) * (grads[i][e] - mean[e / 2]),
                 to_float(pair[1]) * (grads[i][e + 1] - mean[e / 2]));
    }
  }
}

template <typename T, int regions>
__global__ void __launch_bounds__(PixelBlock<T, regions>::threads)
    object_attention_backward_kernel(BackwardCall call) {
  using Block = PixelBlock<T, regions>;
  constexpr int channels = tile_channels<T>;
  SharedMemory shared;
  const Block block(shared);
  const ObjectAttention& maps = call.forward;
  const int64_t batch = blockIdx.y;
  const int64_t count = maps.key.pixels;
  const int key_tiles = (int)ceil_div(maps.key.channels, channels);
  const int value_tiles = (int)ceil_div(maps.value.channels, channels);
  const int steps = 2 * key_tiles + value_tiles;
  const int64_t tiles = ceil_div(maps.query.pixels, Block::pixels);
  SumPiece* const sums =
      call.sums + (batch * gridDim.x + blockIdx.x) * (key_tiles + value_tiles) * call.tile_sums;

  // The key is needed twice: for the scores, and for the gradients of query and key.
  const auto start = [&](int64_t tile, int step, int stage) {
    const bool values = step >= key_tiles && step < key_tiles + value_tiles;
    const int before = values ? key_tiles : step < key_tiles ? 0 : key_tiles + value_tiles;
    const int64_t channel = (int64_t)(step - before) * channels;
    load_tile(block.pixel_tile(stage), values ? maps.out : maps.query,
              {batch, tile * Block::pixels, channel}, Block::pixels);
    load_tile(block.vector_tile(stage), values ? maps.value : maps.key, {batch, 0, channel},
              padded_regions(count));
    commit_copies();
  };

  float scores[regions / 8][4] = {};  // then the gradients of their softmax
  int64_t tile = blockIdx.x;
  int stage = 1;
  for (int step = -1; tile < tiles;) {
    wait_for_copies<0>();
    sync_block();
    const bool last = step + 1 == steps;
    const int64_t next_tile = last ? tile + gridDim.x : tile;
    const int next_step = last ? 0 : step + 1;
    if (next_tile < tiles) {
      start(next_tile, next_step, 1 - stage);
    }
    const bool is_first = tile == blockIdx.x;
    T* const pixels = block.pixel_tile(stage);
    const T* const vectors = block.vector_tile(stage);
    if (step >= 0 && step < key_tiles + value_tiles) {
      add_scores(scores, block.own_pixels(stage), vectors, count);
    }
    if (step >= key_tiles) {
      const int channel_tile =
          step < key_tiles + value_tiles ? step : step - key_tiles - value_tiles;
      add_sums(sums + channel_tile * call.tile_sums, is_first, block.weights(),
               Block::weights_stride, pixels, Block::pixels, count);
    }
    if (step == key_tiles - 1) {
      float norms[2];
      exponentials(scores, count, maps.scale, norms);
      scale_rows(scores, 1.0f / norms[0], 1.0f / norms[1]);
      put_rows(block.own_weights(), Block::weights_stride, scores);
      clear(scores);
    } else if (step == key_tiles + value_tiles - 1) {
      softmax_gradient(scores, block.own_weights(), Block::weights_stride);
      clear(scores);
    } else if (step >= key_tiles + value_tiles) {
      float mixed[channels / 8][4];
      mix(mixed, block.own_weights(), Block::weights_stride, vectors, count);
      scale_rows(mixed, maps.scale, maps.scale);
      sync_block();  // the query has been read
      const int64_t channel = (int64_t)(step - key_tiles - value_tiles) * channels;
      write_rows(call.grad_query,
                 {batch, tile * Block::pixels + warp_index() * warp_pixels, channel},
                 block.own_pixels(stage), mixed);
    }
    tile = next_tile;
    step = next_step;
    stage = 1 - stage;
  }
}

// A thread adds up one number of all splits.
template <typename T>
__global__ void __launch_bounds__(sum_threads) object_attention_sum_kernel(BackwardCall call) {
  constexpr int channels = tile_channels<T>;
  const int64_t tile_numbers = 4 * call.tile_sums;
  const int64_t key_tiles = ceil_div(call.grad_key.channels, channels);
  const int64_t value_tiles = ceil_div(call.grad_value.channels, channels);
  const int64_t numbers = (key_tiles + value_tiles) * tile_numbers;
  const int64_t index = (int64_t)blockIdx.x * sum_threads + threadIdx.x;
  if (index >= numbers) {
    return;
  }
  const int64_t batch = blockIdx.y;
  const float* const sums =
      reinterpret_cast<const float*>(call.sums) + batch * call.splits * numbers + index;
  float sum = 0;
  for (int64_t split = 0; split < call.splits; ++split) {
    sum += sums[split * numbers];
  }
  const bool is_key = index < key_tiles * tile_numbers;
  const Map& map = is_key ? call.grad_key : call.grad_value;
  const SumPlace place(index % tile_numbers, channels / 16);
  const int64_t tile = index / tile_numbers - (is_key ? 0 : key_tiles);
  const int64_t channel = tile * channels + place.channel;
  if (place.region < map.pixels && channel < map.channels) {
    store(element<T>(map, {batch, place.region, channel}), is_key ? call.forward.scale * sum : sum);
  }
}

template <typename T, int regions>
int64_t shared_bytes() {
  SharedMemory measure(nullptr);
  PixelBlock<T, regions> block(measure);
  return measure.bytes();
}

// Blocks that share the pixels of one image.
int64_t splits_of(const ObjectAttentionBackward& call, int pixels) {
  const Map& query = call.forward.query;
  const int64_t blocks = (int64_t)multiprocessor_count() * blocks_per_multiprocessor;
  const int64_t wanted = std::max<int64_t>(1, blocks / std::max<int64_t>(1, query.batch));
  return std::min(wanted, ceil_div(query.pixels, pixels));
}

template <typename T, int regions>
BackwardCall with_sums(const ObjectAttentionBackward& call, float* sums) {
  return {
      call,
      reinterpret_cast<SumPiece*>(sums),
      splits_of(call, PixelBlock<T, regions>::pixels),
      ceil_div(call.grad_key.pixels, 16) * (tile_channels<T> / 16) * sum_pieces,
  };
}

template <typename T>
int64_t sums_of_block(const BackwardCall& call) {
  return (ceil_div(call.grad_key.channels, tile_channels<T>) +
          ceil_div(call.grad_value.channels, tile_channels<T>)) *
         4 * call.tile_sums;
}

template <typename T, int regions>
void run_forward(const ObjectAttention& call, void* stream) {
  using Block = PixelBlock<T, regions>;
  launch(object_attention_forward_kernel<T, regions>,
         dim3(ceil_div(call.query.pixels, Block::pixels), call.query.batch), Block::threads,
         shared_bytes<T, regions>(), stream, call);
}

template <typename T, int regions>
void run_backward(const BackwardCall& call, void* stream) {
  const int64_t batch = call.forward.query.batch;
  launch(object_attention_backward_kernel<T, regions>, dim3(call.splits, batch),
         PixelBlock<T, regions>::threads, shared_bytes<T, regions>(), stream, call);
  launch(object_attention_sum_kernel<T>, dim3(ceil_div(sums_of_block<T>(call), sum_threads), batch),
         sum_threads, 0, stream, call);
}

void check(const ObjectAttention& call) {
  OPENSEG_CHECK(call.key.pixels <= most_regions, "object_attention: key has ", call.key.pixels,
                " regions, the kernel for GPUs serves up to ", most_regions);
}

}  // namespace

void object_attention_cuda(const ObjectAttention& call, bool allow_tf32, void* stream) {
  check(call);
  OPENSEG_DISPATCH_PRODUCTS(
      call.query.dtype, allow_tf32,
      OPENSEG_DISPATCH_REGIONS(call.key.pixels, run_forward<scalar_t, regions>(call, stream)))
}

void object_attention_backward_cuda(const ObjectAttentionBackward& call, bool allow_tf32,
                                    float* sums, void* stream) {
  check(call.forward);
  OPENSEG_DISPATCH_PRODUCTS(
      call.forward.query.dtype, allow_tf32,
      OPENSEG_DISPATCH_REGIONS(
          call.grad_key.pixels,
          run_backward<scalar_t, regions>(with_sums<scalar_t, regions>(call, sums), stream)))
}

int64_t object_attention_sums(const ObjectAttentionBackward& call, bool allow_tf32) {
  OPENSEG_DISPATCH_PRODUCTS(
      call.forward.query.dtype, allow_tf32, OPENSEG_DISPATCH_REGIONS(call.grad_key.pixels, {
        const BackwardCall with = with_sums<scalar_t, regions>(call, nullptr);
        return call.forward.query.batch * with.splits * sums_of_block<scalar_t>(with);
      }))
}

}  // namespace openseg
