// SPDX-License-Identifier: MIT
// Blocks share the pixels, however few regions there are. The scores of a pixel for all regions are
// in registers at once: its softmax is complete, and nothing of it is kept for the backward pass.
//
// Forward: key and query come in tiles of channels, then value in tiles of the result's channels.
// The weights stay in registers, where they are left factors.
//
// Backward: the scores are computed again, then for each pixel p = softmax and g = grad · value,
// the gradient p (g - Σ p g) of its scores. p goes to shared memory for the gradient of value, the
// gradient of scores after it for that of key. A block sums these up over all of its pixels, in
// registers where they suffice, else in memory of its own.
#include "object_attention/cuda/object_attention.h"

#include "common/region_products.cuh"

namespace openseg {
namespace {

constexpr int sum_threads = 128;

// In place: exp(scale * score - greatest), 0 beyond the regions. Its sum for each row of the lane.
template <int size>
__device__ void exponentials(float (&scores)[size][4], int count, float scale, float (&sums)[2]) {
  float greatest[2] = {-infinity(), -infinity()};
  const int left = count - column_of(0, 0);
#pragma unroll
  for (int i = 0; i < size; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[i][e] = 8 * i + e % 2 < left ? scale * scores[i][e] : -infinity();
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

struct ForwardCall : ObjectAttention {
  PixelShares shares;
};

template <typename T, int regions>
__global__ void __launch_bounds__(block_threads, blocks_per_multiprocessor<regions>)
    object_attention_forward_kernel(ForwardCall call) {
  constexpr int rows = most_row_tiles<T, regions>;
  using Block = PixelBlock<T, regions, rows>;
  constexpr int channels = tile_channels<T>;
  SharedMemory shared;
  const int count = (int)call.key.pixels;
  const Block block(shared, call.shares.tile, count, false);
  const int batch = blockIdx.y;
  const int begin = call.shares.begin();
  const int end = call.shares.end(call.query);
  const int key_tiles = (int)ceil_div(call.key.channels, channels);
  const int steps = key_tiles + (int)ceil_div(call.value.channels, channels);

  const auto send = [&](int stage, int first, int step) {
    const bool values = step >= key_tiles;
    const int64_t channel = (int64_t)(values ? step - key_tiles : step) * channels;
    if (!values) {
      load_tile(block.pixel_tile(stage), call.query, {batch, first, channel},
                block.rows(first, end));
    }
    load_tile(block.vector_tile(stage), values ? call.value : call.key, {batch, 0, channel},
              padded_regions(count));
  };
  Turns turns(steps, call.shares.tile, end, send);
  turns.start(begin, -1);
  for (int first = begin; first < end; first += call.shares.tile) {
    const int tile_rows = block.rows(first, end);
    const bool has_pixels = block.own_row() < tile_rows;
    float scores[rows][regions / 8][4] = {};
    for (int step = 0; step < key_tiles; ++step) {
      turns.start(first, step);
      if (has_pixels) {
        add_scores(scores, block.own_pixels(turns.stage()), block.vector_tile(turns.stage()),
                   count);
      }
    }
    uint32_t weights[rows][regions / step_depth<T>][4];
    float norms[rows][2];
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      exponentials(scores[r], count, call.scale, norms[r]);
      norms[r][0] = 1.0f / norms[r][0];
      norms[r][1] = 1.0f / norms[r][1];
      left_factors<T>(weights[r], scores[r]);
    }
    for (int step = key_tiles; step < steps; ++step) {
      turns.start(first, step);
      if (has_pixels) {
        write_mixed(call.out,
                    {batch, first + block.own_row(), (int64_t)(step - key_tiles) * channels},
                    block.own_pixels(turns.stage()), weights, norms,
                    block.vector_tile(turns.stage()), count);
      }
    }
  }
}

struct BackwardCall : ObjectAttentionBackward {
  PixelShares shares;
  SumPiece* sums;  // [batch, blocks, tiles of channels of key, then of value, …]
  int key_tiles, value_tiles;
  int64_t tile_sums;  // pieces of one
};

// The sums of a block over its pixels, for every tile of channels 16 regions x 16 channels at a
// time. A warp always has the same ones: of a column of them its share.
template <typename T, int regions>
class BlockSums {
  static constexpr int columns = tile_channels<T> / 16;
  static constexpr int column_shares = block_warps / columns;

 public:
  // With few regions and channels there is one such square for each warp and tile.
  static constexpr bool in_registers = sizeof(T) == 2 && regions == 16 * column_shares;
  static constexpr int most_tiles = 8;
  // At once, and where there are few registers.
  static constexpr int most_squares = std::min((int)ceil_div(regions, 16 * column_shares), 6);
  static constexpr int few_squares = std::min(most_squares, 2);
  static constexpr int row_tiles = in_registers ? 1 : most_row_tiles<T, regions>;
  using Block = PixelBlock<T, regions, row_tiles>;

  __device__ explicit BlockSums(const BackwardCall& call) : call_(call) {
    const int squares = (int)ceil_div(call.grad_key.pixels, 16);
    const int share = warp_index() / columns;
    begin_ = squares * share / column_shares;
    end_ = squares * (share + 1) / column_shares;
  }

  // Adds weightsT pixels over the rows of the block, `most` squares at once; where `first`, there
  // were no sums before.
  template <int most>
  __device__ void add(int tile, bool first, const Block& block, const T* pixels, int rows) {
    const T* const own = pixels + warp_index() % columns * 16;
    for (int square = begin_; square < end_; square += most) {
      float sums[most][2][4] = {};
      add_squares(sums, end_ - square, block.weights() + 16 * square, block.weights_stride(), own,
                  rows);
      if constexpr (in_registers) {
        keep(tile, sums[0]);
      } else {
#pragma unroll
        for (int i = 0; i < most; ++i) {
          if (square + i < end_) {
            add_to_memory(pieces(tile, square + i), first, sums[i]);
          }
        }
      }
    }
  }

  // What is in registers.
  __device__ void write() const {
    if constexpr (in_registers) {
#pragma unroll
      for (int tile = 0; tile < most_tiles; ++tile) {
        if (tile < (call_.key_tiles + call_.value_tiles) && begin_ < end_) {
          add_to_memory(pieces(tile, begin_), true, kept_[tile]);
        }
      }
    }
  }

 private:
  __device__ SumPiece* pieces(int tile, int square) const {
    const int64_t block = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
    return call_.sums + (block * (call_.key_tiles + call_.value_tiles) + tile) * call_.tile_sums +
           (square * columns + warp_index() % columns) * sum_pieces + lane_index();
  }

  __device__ static void add_to_memory(SumPiece* pieces, bool first, const float (&sums)[2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      SumPiece piece = {};
      if (!first) {
        piece = pieces[half * warp_size];
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        piece.values[e] += sums[half][e];
      }
      pieces[half * warp_size] = piece;
    }
  }

  __device__ void keep(int tile, const float (&sums)[2][4]) {
#pragma unroll
    for (int i = 0; i < most_tiles; ++i) {
      if (i == tile) {
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          kept_[i][e / 4][e % 4] += sums[e / 4][e % 4];
        }
      }
    }
  }

  const BackwardCall& call_;
  int begin_, end_;
  float kept_[in_registers ? most_tiles : 1][2][4] = {};
};

// For each row of the lane the mean of what `grads` are, the gradient of the softmax.
template <typename T, int size>
__device__ void weighted_means(const float (&grads)[size][4], const T* weights, int stride,
                               int count, float (&means)[2]) {
#pragma unroll
  for (int i = 0; i < size; ++i) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      float weight[2] = {};
      if (8 * i < count) {
        get_pair(&weights[row_of(e) * stride + column_of(i, 0)], weight[0], weight[1]);
      }
      means[e / 2] += weight[0] * grads[i][e] + weight[1] * grads[i][e + 1];
    }
  }
  means[0] = row_sum(means[0]);
  means[1] = row_sum(means[1]);
}

// In place, and in place of the weights: the gradient of scores.
template <typename T, int size>
__device__ void softmax_gradient(float (&grads)[size][4], T* weights, int stride, int count,
                                 const float (&means)[2]) {
#pragma unroll
  for (int i = 0; i < size; ++i) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      T* const pair = &weights[row_of(e) * stride + column_of(i, 0)];
      float weight[2] = {};
      if (8 * i < count) {
        get_pair(pair, weight[0], weight[1]);
      }
      grads[i][e] = weight[0] * (grads[i][e] - means[e / 2]);
      grads[i][e + 1] = weight[1] * (grads[i][e + 1] - means[e / 2]);
      if (8 * i < count) {
        put_pair(pair, grads[i][e], grads[i][e + 1]);
      }
    }
  }
}

template <typename T, int regions>
__global__ void __launch_bounds__(block_threads, blocks_per_multiprocessor<regions>)
    object_attention_backward_kernel(BackwardCall call) {
  using Sums = BlockSums<T, regions>;
  using Block = typename Sums::Block;
  constexpr int rows = Sums::row_tiles;
  constexpr int channels = tile_channels<T>;
  SharedMemory shared;
  const ObjectAttention& maps = call.forward;
  const int count = (int)maps.key.pixels;
  const int padded = padded_regions(count);
  const Block block(shared, call.shares.tile, count, true);
  const int batch = blockIdx.y;
  const int begin = call.shares.begin();
  const int end = call.shares.end(maps.query);
  const int& key_tiles = call.key_tiles;
  const int& value_tiles = call.value_tiles;
  Sums sums(call);

  // The key is needed twice: for the scores, and for the gradients of query and key.
  const int steps = 2 * key_tiles + value_tiles;
  const auto send = [&](int stage, int first, int step) {
    const bool values = step >= key_tiles && step < key_tiles + value_tiles;
    const int before = values ? key_tiles : step < key_tiles ? 0 : key_tiles + value_tiles;
    const int64_t channel = (int64_t)(step - before) * channels;
    load_tile(block.pixel_tile(stage), values ? maps.out : maps.query, {batch, first, channel},
              block.rows(first, end));
    load_tile(block.vector_tile(stage), values ? maps.value : maps.key, {batch, 0, channel},
              padded);
  };
  Turns turns(steps, call.shares.tile, end, send);
  turns.start(begin, -1);
  for (int first = begin; first < end; first += call.shares.tile) {
    const int tile_rows = block.rows(first, end);
    const bool has_pixels = block.own_row() < tile_rows;
    const bool is_first = first == begin;
    float scores[rows][regions / 8][4] = {};  // then the gradients of their softmax
    for (int step = 0; step < key_tiles; ++step) {
      turns.start(first, step);
      if (has_pixels) {
        add_scores(scores, block.own_pixels(turns.stage()), block.vector_tile(turns.stage()),
                   count);
      }
    }
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      float norms[2];
      exponentials(scores[r], count, maps.scale, norms);
      scale_rows(scores[r], 1.0f / norms[0], 1.0f / norms[1]);
      if (has_pixels) {
        put_rows(block.own_weights() + 16 * r * block.weights_stride(), block.weights_stride(),
                 scores[r], padded);
      }
    }
    for (int tile = 0; tile < value_tiles; ++tile) {
      turns.start(first, key_tiles + tile);
      if (tile == 0) {
        clear(scores);  // no earlier: till here their registers are free
      }
      if (has_pixels) {
        add_scores(scores, block.own_pixels(turns.stage()), block.vector_tile(turns.stage()),
                   count);
      }
      sums.template add<Sums::few_squares>(key_tiles + tile, is_first, block,
                                           block.pixel_tile(turns.stage()), tile_rows);
    }
    const int own_count = has_pixels ? count : 0;
    float means[rows][2] = {};
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      weighted_means(scores[r], block.own_weights() + 16 * r * block.weights_stride(),
                     block.weights_stride(), own_count, means[r]);
    }
    sync_block();  // the weights have been read
    uint32_t grads[rows][regions / step_depth<T>][4];
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      softmax_gradient(scores[r], block.own_weights() + 16 * r * block.weights_stride(),
                       block.weights_stride(), own_count, means[r]);
      left_factors<T>(grads[r], scores[r]);
    }
    float scales[rows][2];
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      scales[r][0] = scales[r][1] = maps.scale;
    }
    for (int tile = 0; tile < key_tiles; ++tile) {
      turns.start(first, key_tiles + value_tiles + tile);
      sums.template add<Sums::most_squares>(tile, is_first, block, block.pixel_tile(turns.stage()),
                                            tile_rows);
      sync_block();  // the query has been read
      if (has_pixels) {
        write_mixed(call.grad_query, {batch, first + block.own_row(), (int64_t)tile * channels},
                    block.own_pixels(turns.stage()), grads, scales,
                    block.vector_tile(turns.stage()), count);
      }
    }
  }
  sums.write();
}

// A thread adds up one piece of all blocks.
template <typename T>
__global__ void __launch_bounds__(sum_threads) object_attention_sum_kernel(BackwardCall call) {
  const int tile_sums = (int)call.tile_sums;
  const int pieces = (call.key_tiles + call.value_tiles) * tile_sums;
  const int index = (int)blockIdx.x * sum_threads + (int)threadIdx.x;
  if (index >= pieces) {
    return;
  }
  const int batch = blockIdx.y;
  const int blocks = (int)call.shares.blocks;
  const SumPiece* from = call.sums + (int64_t)batch * blocks * pieces + index;
  SumPiece sum = {};
#pragma unroll 4
  for (int block = 0; block < blocks; ++block) {
    const SumPiece piece = *from;
    from += pieces;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sum.values[e] += piece.values[e];
    }
  }
  const bool is_key = index < call.key_tiles * tile_sums;
  const Map& map = is_key ? call.grad_key : call.grad_value;
  const float scale = is_key ? call.forward.scale : 1.0f;
  const SumPlace place(4 * (index % tile_sums), tile_channels<T> / 16);
  const int tile = index / tile_sums - (is_key ? 0 : call.key_tiles);
  const int channel = tile * tile_channels<T> + place.channel;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int region = place.region + 8 * row;
    T* to = element<T>(map, {batch, region, channel});
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (region < map.pixels && channel + i < map.channels) {
        store(to, scale * sum.values[2 * row + i]);
      }
      to += map.stride_channel;
    }
  }
}

template <typename T>
int tiles_of(const Map& map) {
  return (int)ceil_div(map.channels, tile_channels<T>);
}

// As many as have sums in registers are dispatched as more where these do not suffice.
template <typename T>
int64_t dispatched_regions(const ObjectAttentionBackward& call) {
  using Sums = BlockSums<T, 32>;
  const int tiles = tiles_of<T>(call.grad_key) + tiles_of<T>(call.grad_value);
  const bool too_many = Sums::in_registers && tiles > Sums::most_tiles;
  return std::max<int64_t>(call.grad_key.pixels, too_many ? 33 : 0);
}

template <typename T, int regions>
BackwardCall with_sums(const ObjectAttentionBackward& call, float* sums) {
  const int64_t count = call.grad_key.pixels;
  return {
      call,
      BlockSums<T, regions>::Block::share(call.forward.query, count, true),
      reinterpret_cast<SumPiece*>(sums),
      tiles_of<T>(call.grad_key),
      tiles_of<T>(call.grad_value),
      ceil_div(count, 16) * (tile_channels<T> / 16) * sum_pieces,
  };
}

template <typename T, int regions>
void run_forward(const ObjectAttention& call, void* stream) {
  using Block = PixelBlock<T, regions, most_row_tiles<T, regions>>;
  const int64_t count = call.key.pixels;
  const ForwardCall with{call, Block::share(call.query, count, false)};
  launch(object_attention_forward_kernel<T, regions>, dim3(with.shares.blocks, call.query.batch),
         block_threads, Block::bytes(with.shares.tile, count, false), stream, with);
}

template <typename T, int regions>
void run_backward(const BackwardCall& call, void* stream) {
  const int64_t batch = call.forward.query.batch;
  launch(object_attention_backward_kernel<T, regions>, dim3(call.shares.blocks, batch),
         block_threads,
         BlockSums<T, regions>::Block::bytes(call.shares.tile, call.grad_key.pixels, true), stream,
         call);
  launch(object_attention_sum_kernel<T>,
         dim3(ceil_div((call.key_tiles + call.value_tiles) * call.tile_sums, sum_threads), batch),
         sum_threads, 0, stream, call);
}

void check(const ObjectAttention& call) {
  OPENSEG_CHECK(call.key.pixels <= most_regions, "object_attention: key has ", call.key.pixels,
                " regions, the kernel for GPUs serves up to ", most_regions);
  OPENSEG_CHECK(call.query.pixels <= most_pixels, "object_attention: query has ", call.query.pixels,
                " pixels an image, the kernel for GPUs serves up to ", most_pixels);
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
          dispatched_regions<scalar_t>(call),
          run_backward<scalar_t, regions>(with_sums<scalar_t, regions>(call, sums), stream)))
}

int64_t object_attention_sums(const ObjectAttentionBackward& call, bool allow_tf32) {
  OPENSEG_DISPATCH_PRODUCTS(call.forward.query.dtype, allow_tf32,
                            OPENSEG_DISPATCH_REGIONS(dispatched_regions<scalar_t>(call), {
                              const BackwardCall with = with_sums<scalar_t, regions>(call, nullptr);
                              return call.forward.query.batch * with.shares.blocks * 4 *
                                     (with.key_tiles + with.value_tiles) * with.tile_sums;
                            }))
}

}  // namespace openseg
