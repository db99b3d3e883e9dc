// SPDX-License-Identifier: MIT
// Backward: a block makes the weights P of its set anew, which takes less than to read what they
// could be made from. With G = dO vT, a set has
//
//   dv = PT dO    dS = P (G - Σ P G, over a row)    dq = scale dS k    dk = scale dST q
//
// where G stays in registers, and dS takes the place of P.
#include "common/cuda/whole_sets.cuh"
#include "common/cuda/whole_sets.h"

namespace openseg {
namespace {

struct SetsBackward {
  SetProgram program;  // query and key; gradient of out and value; key and query
  Source grad_query;   // of query and key together, where key is query
  Source grad_key;
  Source grad_value;
  float scale;
};

// Turns the gradients of weights into those of scores, and puts them in the place of the weights.
template <typename Shape>
__device__ void store_grad_scores(SetBlock<Shape>& block, typename SetBlock<Shape>::Scores& grads) {
  const auto for_each_pair = [&](const auto& f) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < Shape::score_tiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float first, second;
          read_left(block.weights(m, half), block.column(i), first, second);
          f(m, i, half, first, second);
        }
      }
    }
  };
  RowValues mean = {};
  for_each_pair([&](int m, int i, int half, float first, float second) {
    mean[m][half] += first * grads[m][i][2 * half] + second * grads[m][i][2 * half + 1];
  });
  block.combine(mean, [](float a, float b) { return a + b; });
  for_each_pair([&](int m, int i, int half, float first, float second) {
    store_left(block.weights(m, half), block.column(i),
               first * (grads[m][i][2 * half] - mean[m][half]),
               second * (grads[m][i][2 * half + 1] - mean[m][half]));
  });
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks)
    whole_sets_backward_kernel(const __grid_constant__ SetsBackward call) {
  using Scores = typename SetBlock<Shape>::Scores;
  SharedMemory shared;
  SetBlock<Shape> block(call.program, shared);
  RowValues factors;
  {
    Scores scores = {};
    RowValues most;
    block.weigh(scores, call.scale, most, factors);
    block.for_each([&](int m, int i, int e) { scores[m][i][e] *= factors[m][e / 2]; });
    block.store_weights(scores);
  }

  Scores grads = {};
  const TilePairs* const pairs = call.program.pairs;
  block.fill(factors, 1);
#pragma unroll 1
  while (block.next(pairs[1])) {
    block.add_scores(grads, block.tile(0), block.tile(1));
    constexpr int channels = Shape::channels / 2;
    const int first = block.column_warp() * channels;
    float sums[2][channels / 8][4] = {};
    block.template mix<true>(sums, block.tile(0) + first);
    block.write(call.grad_value, block.channel(pairs[1], 0) + first, sums, factors);
  }
  store_grad_scores(block, grads);

  block.fill(factors, call.scale);
  const int tile = block.column_warp();
  const bool as_query = pairs[2].one_map || tile == 0;
  const bool as_key = pairs[2].one_map || tile == 1;
#pragma unroll 1
  while (block.next(pairs[2])) {
    float sums[2][Shape::channels / 8][4] = {};
    if (as_query) {
      block.template mix<false>(sums, block.tile(tile));
    }
    if (as_key) {
      block.template mix<true>(sums, block.tile(tile));
    }
    block.write(as_query ? call.grad_query : call.grad_key, block.channel(pairs[2], tile), sums,
                factors);
  }
}

template <typename T>
bool launch_backward(SetsBackward call, void* stream) {
  // Where a product is three of halves of numbers, registers do not suffice for 192 rows.
  constexpr int most = std::is_same_v<T, float> ? 128 : 192;
  return start_with_shape<T, most>(call.program, [&](auto shape, int64_t shared_bytes) {
    using Shape = decltype(shape);
    launch(whole_sets_backward_kernel<Shape>,
           dim3(call.program.sets.count(), call.grad_query.map.batch), Shape::threads, shared_bytes,
           stream, call);
  });
}

}  // namespace

bool whole_sets_backward_cuda(const AttentionBackward& call, bool allow_tf32, void* stream) {
  const Attention& forward = call.forward;
  SetsBackward sets{
      .program = {{}, forward.sets, 1, 0},
      .grad_query = source_of(call.grad_query),
      .grad_key = source_of(call.grad_key),
      .grad_value = source_of(call.grad_value),
      .scale = forward.scale,
  };
  TilePairs* const pairs = sets.program.pairs;
  pairs[0] = tile_pairs({}, forward.query, forward.key, forward.shared);
  pairs[1] = tile_pairs(pairs[0], call.grad_out, forward.value, false);
  pairs[2] = tile_pairs(pairs[1], forward.key, forward.query, forward.shared);
  OPENSEG_DISPATCH_PRODUCTS(forward.query.dtype, allow_tf32,
                            return launch_backward<scalar_t>(sets, stream))
  return false;
}

}  // namespace openseg
