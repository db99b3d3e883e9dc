// SPDX-License-Identifier: MIT
// The backward pass where key is query, as in attention_backward.cu, by the products of sm_90a. A
// block owns 64 pixels and meets all pixels of their set, 64 at a time: five products of 64 x 64 x
// 256. Two groups of four warps share each: the first three by pixels of the tile, the others by
// channels.
//
// Products run on while threads compute weights. Maps of the tiles come in halves of their channels
// through a ring, in the order in which they are done with: values of the next tile, gradients and
// pixels of this one. Each half is loaded as soon as all have done with the seventh before it.
#include "common/cuda/attention_backward_sm90.h"
#include "common/cuda/set_maps.cuh"
#include "common/warpgroup.cuh"

namespace openseg {
namespace {

constexpr int threads = 2 * warpgroup_size;
constexpr int tile_pixels = 64;
constexpr int max_channels = 256;
constexpr int half_channels = max_channels / 2;
constexpr int half_numbers = tile_pixels * half_channels;
constexpr int block_numbers = tile_pixels * block_columns;  // of a half: it has two
constexpr int ring_halves = 7;
constexpr int group_columns = tile_pixels / 2;  // of scores

using Scores = float[group_columns / 8][4];
using Sums = float[half_channels / 8][4];

struct BackwardCall {
  Source map;  // query and key
  Source grad_out;
  Source value;
  Source grad_map;
  Source grad_value;
  PixelSets sets;
  int row_blocks;
  int tiles;
  const float* most;  // the statistics of Attention
  const float* inverse;
  const float* delta;
  float scale;
  float log2_scale;
};

// Of a pixel as a query: the weight of a product is exp2(product * scale - log_sum), both by log2.
// That loses some 1e-7 of a score, which does not show beside numbers of 16 bits.
struct alignas(8) Statistics {
  float log_sum, delta;
};

constexpr float log2_of_e = 1.44269504f;

enum OwnMap { own_map, own_grad_out, own_value, own_maps };

template <typename T>
struct Memory {
  T* own;           // [own_maps, 2 halves]
  T* ring;          // [ring_halves]
  T* weights;       // of own pixels as keys, by rows
  T* grad_weights;  // of scores, the roles of own pixels summed
  Statistics* owned;
  Statistics* others;  // of the pixels of the tile
  int* pixels;         // of three tiles, as Place::pixel has them

  __host__ __device__ explicit Memory(SharedMemory& shared)
      : own(shared.take<T>(own_maps * 2 * half_numbers, block_bytes)),
        ring(shared.take<T>(ring_halves * half_numbers, block_bytes)),
        weights(shared.take<T>(tile_pixels * tile_pixels, block_bytes)),
        grad_weights(shared.take<T>(tile_pixels * tile_pixels, block_bytes)),
        owned(shared.take<Statistics>(tile_pixels)),
        others(shared.take<Statistics>(tile_pixels)),
        pixels(shared.take<int>(3 * tile_pixels)) {}
};

template <typename T>
class Backward {
 public:
  __device__ Backward(const BackwardCall& call, SharedMemory& shared)
      : call_(call), memory_(shared), place_(call.sets, call.row_blocks) {}

  __device__ void run() {
    load_first();
    Scores query_products;  // of own gradients and values of a tile
    start_products();
    multiply_channels<0>(query_products, own_grad_out, ring(0));
    multiply_channels<1>(query_products, own_grad_out, ring(1));
    commit_products();
    wait_for_products<0>(query_products);
    at_ = 2;
    Sums grad_map = {};
    Sums grad_value = {};
#pragma unroll 1
    for (int tile = 0; tile < call_.tiles; ++tile) {
      Scores scores;
      Scores key_products;  // of own values and gradients of the tile
      Scores next_query_products;
      find_pixels(tile + 2);
      wait_for_copies<1>();
      meet();
      start_products();
      multiply_channels<0>(key_products, own_value, ring(2));
      commit_products();

      wait_for_copies<0>();
      wait_for_products<1>();
      meet();
      load(5, call_.map, tile, 1);
      load(6, call_.value, tile + 2, 0);
      commit_copies();
      start_products();
      multiply_channels<1>(key_products, own_value, ring(3));
      multiply_channels<0>(scores, own_map, ring(4));
      commit_products();
      note_others(tile);

      wait_for_copies<0>();
      meet();
      start_products();
      multiply_channels<1>(scores, own_map, ring(5));
      commit_products();
      multiply_channels<0>(next_query_products, own_grad_out, ring(0));
      multiply_channels<1>(next_query_products, own_grad_out, ring(1));
      commit_products();

      wait_for_products<1>(scores, key_products);
      weigh_as_keys(key_products, scores);
      meet();
      start_products();
      multiply_pixels(grad_value, memory_.weights, ring(2 + group_));
      commit_products();

      weigh_as_queries(key_products, query_products, scores, tile);
      wait_for_products<1>(next_query_products);
      meet();
      load(0, call_.value, tile + 2, 1);
      load(1, call_.grad_out, tile + 1, 0);
      commit_copies();
      start_products();
      multiply_pixels(grad_map, memory_.grad_weights, ring(4 + group_));
      commit_products();

      wait_for_products<1>();
      sync_block();
      load(2, call_.grad_out, tile + 1, 1);
      load(3, call_.map, tile + 1, 0);
      commit_copies();
      at_ = (at_ + 6) % ring_halves;
      for_scores([&](int i, int e) { query_products[i][e] = next_query_products[i][e]; });
    }
    wait_for_copies<0>();
    wait_for_products<0>(grad_map, grad_value);
    write(call_.grad_map, grad_map, call_.scale);
    write(call_.grad_value, grad_value, 1);
  }

 private:
  // body(column tile, number) for all scores of the lane.
  template <typename Body>
  __device__ static void for_scores(const Body& body) {
#pragma unroll
    for (int i = 0; i < 4 * group_columns / 8; ++i) {
      body(i / 4, i % 4);
    }
  }

  __device__ static int row(int e) { return warp_index() % 4 * 16 + lane_index() / 4 + e / 2 * 8; }
  __device__ int column(int i, int e) const {
    return group_ * group_columns + i * 8 + lane_index() % 4 * 2 + e % 2;
  }

  // Half `index` of six in the ring: two each of the next tile's values, gradients and pixels. 6
  // and more come later.
  __device__ T* ring(int index) const {
    return memory_.ring + (at_ + index) % ring_halves * half_numbers;
  }

  __device__ T* own(int map, int half) const {
    return memory_.own + (2 * map + half) * half_numbers;
  }

  // What all have written or copied is there for the products that follow, and what all have waited
  // for is over.
  __device__ static void meet() {
    show_to_products();
    sync_block();
  }

  // Pixels that are not there have no weights.
  __device__ Statistics statistics_of(int n) const {
    if (n >= place_.length()) {
      return {infinity(), 0};
    }
    const int at = place_.number(n);
    const float log_sum = call_.most[at] - log_fast(call_.inverse[at]);
    return {log_sum * log2_of_e, call_.delta[at]};
  }

  __device__ void note_others(int tile) {
    const int thread = thread_anew();
    if (thread < tile_pixels) {
      memory_.others[thread] = statistics_of(tile * tile_pixels + thread);
    }
  }

  // There after the next barrier.
  __device__ void find_pixels(int tile) {
    const int thread = thread_anew();
    if (thread < tile_pixels) {
      pixels_of(tile)[thread] = place_.pixel(tile * tile_pixels + thread);
    }
  }

  __device__ int* pixels_of(int tile) const { return memory_.pixels + tile % 3 * tile_pixels; }

  __device__ void load(int index, const Source& source, int tile, int half) {
    const int* const pixels = pixels_of(tile);
    copy_half(ring(index), source, [pixels](int row) { return pixels[row]; }, half);
  }

  // rows(i) names the pixel of row i, as Place::pixel does.
  template <typename Rows>
  __device__ void copy_half(T* to, const Source& source, const Rows& rows, int half) const {
    const Map& map = source.map;
    const unsigned thread = thread_anew();
    const int column = thread % 8 * 8;
    const int first = half * half_channels + column;
    const int left = (int)map.channels - first;
    const T* const start =
        static_cast<const T*>(map.data) + place_.image() * map.stride_batch + first;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = thread / 8 + i * tile_pixels / 2;
      const int pixel = rows(row);
      const T* const from = start + (int64_t)(pixel < 0 ? 0 : pixel) * (int)map.stride_pixel;
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        copy_async(to + block * block_numbers + swizzled(row, column), from + block * block_columns,
                   pixel >= 0 && block * block_columns < left);
      }
    }
  }

  // The own pixels, values of two tiles, and of the first tile all but the last half.
  __device__ void load_first() {
    for (int tile = 0; tile < 2; ++tile) {
      find_pixels(tile);
    }
    if (threadIdx.x < tile_pixels) {
      memory_.owned[threadIdx.x] = statistics_of(place_.own((int)threadIdx.x));
    }
    sync_block();
    for (int half = 0; half < 2; ++half) {
      copy_half(own(own_map, half), call_.map, place_.own_pixels(), half);
      copy_half(own(own_grad_out, half), call_.grad_out, place_.own_pixels(), half);
      copy_half(own(own_value, half), call_.value, place_.own_pixels(), half);
      load(half, call_.value, 0, half);
    }
    commit_copies();
    load(2, call_.value, 1, 0);
    load(3, call_.value, 1, 1);
    load(4, call_.grad_out, 0, 0);
    commit_copies();
    load(5, call_.grad_out, 0, 1);
    load(6, call_.map, 0, 0);
    commit_copies();
    wait_for_copies<2>();
    meet();
  }

  // products (+)= own streamedT over half of the channels, for the group's columns.
  template <int half>
  __device__ void multiply_channels(Scores& products, OwnMap map, const T* streamed) const {
    const Factor left(own(map, half));
    const Factor right(streamed + group_ * group_columns * block_columns);
#pragma unroll
    for (int block = 0; block < 2; ++block) {
#pragma unroll
      for (int step = 0; step < block_columns / product_depth; ++step) {
        const int bytes = block * block_numbers * (int)sizeof(T) + step * row_step;
        multiply_async<T, false>(products, left.advanced(bytes), right.advanced(bytes),
                                 half + block + step > 0);
      }
    }
  }

  // sums += weights values, over the pixels of a tile.
  __device__ void multiply_pixels(Sums& sums, const T* weights, const T* values) const {
    const Factor left(weights);
    const Factor right(values, block_numbers * (int)sizeof(T));
#pragma unroll
    for (int step = 0; step < tile_pixels / product_depth; ++step) {
      multiply_async<T, true>(sums, left.advanced(step * row_step),
                              right.advanced(step * depth_step), true);
    }
  }

  // Stores the weights of own pixels as keys, and makes gradients of scores of the products.
  __device__ void weigh_as_keys(Scores& products, const Scores& scores) const {
    float weights[2];
    for_scores([&](int i, int e) {
      const Statistics other = memory_.others[column(i, e)];
      const float weight = exp2_fast(scores[i][e] * call_.log2_scale - other.log_sum);
      products[i][e] = weight * (products[i][e] - other.delta);
      weights[e % 2] = weight;
      if (e % 2 == 1) {
        store_pair(&memory_.weights[swizzled(row(e), column(i, 0))], weights[0], weights[1]);
      }
    });
  }

  // Adds gradients of scores of own pixels as queries to those as keys, and stores the sums.
  __device__ void weigh_as_queries(Scores& grads, const Scores& products, const Scores& scores,
                                   int tile) const {
    const int columns = place_.length() - tile * tile_pixels;  // that count
    for_scores([&](int i, int e) {
      const Statistics own = memory_.owned[row(e)];
      const float weight = exp2_fast(scores[i][e] * call_.log2_scale - own.log_sum);
      grads[i][e] += column(i, e) < columns ? weight * (products[i][e] - own.delta) : 0;
      if (e % 2 == 1) {
        store_pair(&memory_.grad_weights[swizzled(row(e), column(i, 0))], grads[i][e - 1],
                   grads[i][e]);
      }
    });
  }

  __device__ void write(const Source& to, const Sums& sums, float factor) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      write_row<T>(to, place_.image(), place_.pixel(place_.own(row(2 * half))),
                   group_ * half_channels, sums, half, factor);
    }
  }

  const BackwardCall& call_;
  const Memory<T> memory_;
  const Place<tile_pixels> place_;
  const int group_ = warpgroup_index();
  int at_ = 0;  // of the first of six halves in the ring
};

template <typename T>
__global__ void __launch_bounds__(threads, 1)
    attention_backward_sm90_kernel(const __grid_constant__ BackwardCall call) {
  SharedMemory shared;
  Backward<T>(call, shared).run();
}

template <typename T>
void launch_backward(const BackwardCall& call, void* stream) {
  SharedMemory shared(nullptr);
  Memory<T>{shared};
  launch(attention_backward_sm90_kernel<T>,
         dim3(call.row_blocks * call.sets.count(), call.map.map.batch), threads, shared.bytes(),
         stream, call);
}

bool fits(const Source& source) {
  return source.in_vectors && source.map.channels > max_channels - block_columns &&
         source.map.channels <= max_channels;
}

}  // namespace

bool attention_backward_sm90(const AttentionBackward& call, const float* delta, void* stream) {
  const Attention& forward = call.forward;
  const PixelSets& sets = forward.sets;
  const int tiles = (int)ceil_div(sets.pixels(), tile_pixels);
  const BackwardCall backward{
      .map = source_of(forward.query),
      .grad_out = source_of(call.grad_out),
      .value = source_of(forward.value),
      .grad_map = source_of(call.grad_query),
      .grad_value = source_of(call.grad_value),
      .sets = sets,
      .row_blocks = tiles,
      .tiles = tiles,
      .most = forward.statistics,
      .inverse = forward.statistics + statistics_count(forward),
      .delta = delta,
      .scale = forward.scale,
      .log2_scale = forward.scale * log2_of_e,
  };
  if (!forward.shared || !has_warpgroups() || !fits(backward.map) || !fits(backward.value) ||
      !backward.grad_out.in_vectors || !backward.grad_map.in_vectors ||
      !backward.grad_value.in_vectors) {
    return false;
  }
  switch (forward.query.dtype) {
    OPENSEG_DISPATCH_CASE(bfloat16, bfloat16, launch_backward<scalar_t>(backward, stream))
    OPENSEG_DISPATCH_CASE(float16, float16, launch_backward<scalar_t>(backward, stream))
    default:
      return false;
  }
  return true;
}

}  // namespace openseg
