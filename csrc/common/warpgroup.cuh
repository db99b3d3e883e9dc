// SPDX-License-Identifier: MIT
// What sm_90a has beside device.cuh: products that four warps compute together, of factors that lie
// in shared memory, while their threads go on. For *_sm90.cu alone.
//
// A factor is made of blocks of 64 numbers of 16 bits in 8 rows, 1024 bytes that are aligned to as
// many; rows * 64 numbers are such blocks one after the other. Within a row, pieces of 16 bytes are
// in an order of its own, so that neither rows nor columns conflict in banks: see swizzled.
//
// * What threads write there is seen by products only after show_to_products in each of them, and
//   then a barrier; copies count as written once they have been waited for.
// * Products start in order, after start_products. Their results are there, and their factors may
//   be overwritten, once their group, closed by commit_products, has been waited for.
#pragma once

#include "common/device.cuh"

namespace openseg {

constexpr int warpgroup_size = 4 * warp_size;
constexpr int block_columns = 64;
constexpr int block_bytes = 1024;  // and how far it is to the next 8 rows
constexpr int product_depth = 16;
constexpr int row_step = 2 * product_depth;                  // bytes to the next depth along rows
constexpr int depth_step = product_depth / 8 * block_bytes;  // and to that over rows

// Where number `column` of a row lies, counted from the start of its rows.
__host__ __device__ constexpr int swizzled(int row, int column) {
  return row * block_columns + ((column / 8 ^ row % 8) * 8 | column % 8);
}

}  // namespace openseg

#if defined(__CUDACC__)
#include "common/warpgroup_cuda.cuh"
#else
#include "warpgroup.h"
#endif
