// SPDX-License-Identifier: MIT
#include "common/cuda/whole_sets.cuh"
#include "common/cuda/whole_sets.h"

namespace openseg {
namespace {

struct SetsForward {
  SetProgram program;  // query and key, then values
  Source out;
  float* most;  // the statistics of Attention
  float* inverse;
  float scale;
};

template <typename Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks)
    whole_sets_forward_kernel(const __grid_constant__ SetsForward call) {
  SharedMemory shared;
  SetBlock<Shape> block(call.program, shared);

  typename SetBlock<Shape>::Scores scores = {};
  RowValues most;
  RowValues inverse;
  block.weigh(scores, call.scale, most, inverse);
  block.store_weights(scores);
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int n = block.row(m, half);
      if (block.column_warp() == 0 && lane_index() % 4 == 0 && n < block.place().length()) {
        const int at = block.place().number(n);
        call.most[at] = most[m][half];
        call.inverse[at] = inverse[m][half];
      }
    }
  }

  const TilePairs& pairs = call.program.pairs[1];
#pragma unroll 1
  while (block.next(pairs)) {
    const int tile = block.column_warp();
    float out[2][Shape::channels / 8][4] = {};
    block.template mix<false>(out, block.tile(tile));
    block.write(call.out, block.channel(pairs, tile), out, inverse);
  }
}

template <typename T>
bool launch_forward(SetsForward call, void* stream) {
  return start_with_shape<T, 192>(call.program, [&](auto shape, int64_t shared_bytes) {
    using Shape = decltype(shape);
    launch(whole_sets_forward_kernel<Shape>, dim3(call.program.sets.count(), call.out.map.batch),
           Shape::threads, shared_bytes, stream, call);
  });
}

}  // namespace

bool whole_sets_forward_cuda(const Attention& attention, bool allow_tf32, void* stream) {
  SetsForward call{
      .program = {{}, attention.sets, 1, 0},
      .out = source_of(attention.out),
      .most = attention.statistics,
      .inverse = attention.statistics + statistics_count(attention),
      .scale = attention.scale,
  };
  TilePairs* const pairs = call.program.pairs;
  pairs[0] = tile_pairs({}, attention.query, attention.key, attention.shared);
  pairs[1] = tile_pairs(pairs[0], attention.value, attention.value, true);
  OPENSEG_DISPATCH_PRODUCTS(attention.query.dtype, allow_tf32,
                            return launch_forward<scalar_t>(call, stream))
  return false;
}

}  // namespace openseg
