// SPDX-License-Identifier: MIT
// All that a kernel may use of the machine. nvcc sees CUDA here; any other compiler sees
// tests/emulator, where the same kernels run on a CPU. Hence no `<<<>>>`, `__shared__`, `asm`,
// intrinsic or CUDA header in a kernel. The rules that are checked there:
//
// * Blocks are one-dimensional, of whole warps. What exchanges values between lanes is called by
// all
//   32 lanes from the same line; no thread returns before the last barrier.
// * Shared memory comes from SharedMemory alone, by the same calls in every thread, and is never
//   read before it was written. Only sync_block and sync_warp order accesses to it.
// * Sums of floats are taken in a fixed order: there are atomics for integers only.
#pragma once

#include <cstdint>

#include "common/dtype.h"

#if defined(__CUDACC__)
#include "common/device_cuda.cuh"
#else
#include "emulator.h"
#endif

namespace openseg {

constexpr int warp_size = 32;

__device__ inline int lane_index() {
  return threadIdx.x % warp_size;
}

__device__ inline int warp_index() {
  return threadIdx.x / warp_size;
}

__device__ inline float to_float(float value) {
  return value;
}

__device__ inline float to_float(bfloat16 value) {
  return float_from_bits((uint32_t)value.bits << 16);
}

__device__ inline float infinity() {
  return float_from_bits(0x7f800000);
}

__device__ inline float not_a_number() {
  return float_from_bits(0x7fc00000);
}

__device__ inline float warp_sum(float value) {
  for (int distance = warp_size / 2; distance > 0; distance /= 2) {
    value += shuffle_xor(value, distance);
  }
  return value;
}

__device__ inline float warp_max(float value) {
  for (int distance = warp_size / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, shuffle_xor(value, distance));
  }
  return value;
}

// The sum over a block, in every thread. `warps` is shared memory of 32 floats that may be used
// again after the next barrier.
__device__ inline float block_sum(float value, float* warps) {
  value = warp_sum(value);
  if (lane_index() == 0) {
    warps[warp_index()] = value;
  }
  sync_block();
  const bool filled = lane_index() < (int)blockDim.x / warp_size;
  return warp_sum(filled ? warps[lane_index()] : 0.0f);
}

__host__ __device__ constexpr int64_t ceil_div(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace openseg
