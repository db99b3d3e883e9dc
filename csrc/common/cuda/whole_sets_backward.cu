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

// Two neighbours in one access.
template <typename T>
struct alignas(2 * sizeof(T)) NumberPair {
  T first, second;
};

// Turns the gradients of weights into those of scores, and puts them in the place of the weights.
template <typename Shape>
__device__ void store_grad_scores(SetBlock<Shape>& block, typename SetBlock<Shape>::Scores& grads) {
  using T = typename Shape::Number;
  const auto for_each_pair = [&](const auto& f) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < Shape::score_tiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          T* const at = block.weights(m, i, half);
          const NumberPair<T> weights = *reinterpret_cast<const NumberPair<T>*>(at);
          f(m, half, grads[m][i] + 2 * half, to_float(weights.first), to_float(weights.second), at);
        }
      }
    }
  };
  RowValues mean = {};
  for_each_pair([&](int m, int half, const float* grad, float first, float second, T*) {
    mean[m][half] += first * grad[0] + second * grad[1];
  });
  block.combine(mean, [](float a, float b) { return a + b; });
  for_each_pair([&](int m, int half, const float* grad, float first, float second, T* at) {
    store_pair(at, first * (grad[0] - mean[m][half]), second * (grad[1] - mean[m][half]));
  });
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks)
    whole_sets_backward_kernel(const __grid_constant__ SetsBackward call) {
  using T = typename Shape::Number;
  using Scores = typename SetBlock<Shape>::Scores;
  SharedMemory shared;
  SetBlock<Shape> block(call.program, shared);
  RowValues factors;
  {
    Scores scores = {};
    RowValues most;
    block.weigh(scores, call.scale, most, factors);
    block.for_each([&](int m, int i, int e) { scores[m][i][e] /= factors[m][e / 2]; });
    block.store_weights(scores);
  }

  Scores grads = {};
  block.fill(factors, 1);
#pragma unroll 1
  for (int step = 0; step < call.program.pairs[1].steps; ++step) {
    const T* const tiles = block.next_tiles();
    block.add_scores(grads, tiles, tiles + Shape::tile);
    constexpr int share = Shape::channels / 2;
    float sums[2][share / 8][4] = {};
    block.template mix<true>(sums, tiles + block.column_warp() * share);
    block.write(call.grad_value, step * Shape::channels + block.column_warp() * share, sums,
                factors);
  }
  store_grad_scores(block, grads);

  block.fill(factors, call.scale);
  const TilePairs& pairs = call.program.pairs[2];
  const bool as_query = pairs.one_map || block.column_warp() == 0;
  const bool as_key = pairs.one_map || block.column_warp() == 1;
#pragma unroll 1
  for (int step = 0; step < pairs.steps; ++step) {
    const T* const tile = block.next_tiles() + block.column_warp() * Shape::tile;
    float sums[2][Shape::channels / 8][4] = {};
    if (as_query) {
      block.template mix<false>(sums, tile);
    }
    if (as_key) {
      block.template mix<true>(sums, tile);
    }
    const int index = pairs.one_map ? 2 * step + block.column_warp() : step;
    block.write(as_query ? call.grad_query : call.grad_key, index * Shape::channels, sums, factors);
  }
}

template <typename T>
bool launch_backward(SetsBackward call, void* stream) {
  // Of 32-bit numbers, the registers of a multiprocessor do not suffice for more.
  constexpr int most = sizeof(T) == 2 ? 192 : 128;
  return start_with_shape<T, most>(call.program, [&](auto shape, int64_t shared_bytes) {
    using Shape = decltype(shape);
    launch(whole_sets_backward_kernel<Shape>, call.program.sets.count() * call.grad_query.map.batch,
           Shape::threads, shared_bytes, stream, call);
  });
}

}  // namespace

bool whole_sets_backward_cuda(const AttentionBackward& call, bool allow_tf32, void* stream) {
  const Attention& forward = call.forward;
  SetsBackward sets{
      .program = {{}, forward.sets, 0},
      .grad_query = source_of(call.grad_query),
      .grad_key = source_of(call.grad_key),
      .grad_value = source_of(call.grad_value),
      .scale = forward.scale,
  };
  sets.program.pairs[0] = tile_pairs(forward.query, forward.key, forward.shared);
  sets.program.pairs[1] = tile_pairs(call.grad_out, forward.value, false);
  sets.program.pairs[2] = tile_pairs(forward.key, forward.query, forward.shared);
  OPENSEG_DISPATCH_PRODUCTS(forward.query.dtype, allow_tf32,
                            return launch_backward<scalar_t>(sets, stream))
  return false;
}

}  // namespace openseg
