// SPDX-License-Identifier: MIT
// Products of small integers, exact in every format, by multiply_async: the first thing to run on a
// new GPU of this kind, for the layouts of its factors are wrong together or right together.
#include "common/warpgroup.cuh"
#include "message_of.h"

namespace openseg {
namespace {

constexpr int size = 64;  // rows and depth of a, rows of b
constexpr int short_side = 32;
constexpr int long_side = 128;  // columns of b

struct GroupProducts {
  const void* a;    // [64, 64]
  const void* b;    // [64, 128]
  float* by_rows;   // [64, 32]: a times the transpose of the last 32 rows of b, its first columns
  float* by_depth;  // [64, 128]: twice a b
};

template <typename T>
__device__ void copy_rows(T* to, const void* from, int columns) {
  constexpr int piece = 8;
  for (int i = (int)threadIdx.x; i < size * columns / piece; i += warpgroup_size) {
    const int row = i / (columns / piece);
    const int column = i % (columns / piece) * piece;
    T* const block = to + column / block_columns * size * block_columns;
    copy_async(&block[swizzled(row, column % block_columns)],
               static_cast<const T*>(from) + row * columns + column, true);
  }
}

template <int tiles>
__device__ void write(float* to, const float (&d)[tiles][4]) {
  for (int i = 0; i < 4 * tiles; ++i) {
    const int row = warp_index() * 16 + lane_index() / 4 + i % 4 / 2 * 8;
    to[row * 8 * tiles + i / 4 * 8 + lane_index() % 4 * 2 + i % 2] = d[i / 4][i % 4];
  }
}

template <typename T>
__global__ void __launch_bounds__(warpgroup_size) group_products_kernel(GroupProducts call) {
  SharedMemory shared;
  T* const a = shared.take<T>(size * size, block_bytes);
  T* const b = shared.take<T>(size * long_side, block_bytes);
  copy_rows(a, call.a, size);
  copy_rows(b, call.b, long_side);
  commit_copies();
  wait_for_copies<0>();
  show_to_products();
  sync_block();
  float by_rows[short_side / 8][4];
  float by_depth[long_side / 8][4];
  const Factor left(a);
  const Factor rows(b + short_side * block_columns);
  const Factor depth(b, size * block_columns * (int)sizeof(T));
  start_products();
#pragma unroll
  for (int step = 0; step < size / product_depth; ++step) {
    multiply_async<T, false>(by_rows, left.advanced(step * row_step),
                             rows.advanced(step * row_step), step > 0);
  }
  commit_products();
#pragma unroll
  for (int step = 0; step < 2 * size / product_depth; ++step) {
    const int at = step % (size / product_depth);
    multiply_async<T, true>(by_depth, left.advanced(at * row_step), depth.advanced(at * depth_step),
                            step > 0);
  }
  commit_products();
  wait_for_products<1>(by_rows);
  write(call.by_rows, by_rows);
  wait_for_products<0>(by_depth);
  write(call.by_depth, by_depth);
}

template <typename T>
void run(const GroupProducts& call) {
  launch(group_products_kernel<T>, 1, warpgroup_size, (size + long_side) * size * sizeof(T),
         nullptr, call);
}

}  // namespace
}  // namespace openseg

extern "C" const char* group_products(const void* a, const void* b, float* by_rows, float* by_depth,
                                      bool is_bfloat16) {
  using namespace openseg;
  const GroupProducts call{a, b, by_rows, by_depth};
  return message_of([&] { is_bfloat16 ? run<bfloat16>(call) : run<float16>(call); });
}
