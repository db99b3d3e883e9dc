// SPDX-License-Identifier: MIT
// The primitives of device.cuh for nvcc; tests/emulator/emulator.h has the same names for a CPU.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "common/check.h"
#include "common/dtype.h"

namespace openseg {

__device__ inline void sync_block() {
  __syncthreads();
}

__device__ inline void sync_warp() {
  __syncwarp();
}

__device__ inline float shuffle_xor(float value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}

__device__ inline void atomic_add(uint32_t* address, uint32_t value) {
  atomicAdd(address, value);
}

__device__ inline void atomic_add(uint64_t* address, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(address), (unsigned long long)value);
}

__device__ inline void atomic_max(uint64_t* address, uint64_t value) {
  atomicMax(reinterpret_cast<unsigned long long*>(address), (unsigned long long)value);
}

__device__ inline float float_from_bits(uint32_t bits) {
  return __uint_as_float(bits);
}

__device__ inline float to_float(float16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

// Rounded to the nearest, ties to even.
__device__ inline void store(float* to, float value) {
  *to = value;
}

__device__ inline void store(float16* to, float value) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(value));
}

__device__ inline void store(bfloat16* to, float value) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %1;" : "=r"(pair) : "f"(value));
  to->bits = (uint16_t)pair;
}

// Relative error about 2^-22 + 2^-24 |x|, 0 far below.
__device__ inline float exp_fast(float x) {
  return __expf(x);
}

__device__ inline float log_fast(float x) {
  return __logf(x);
}

// Carves the dynamic shared memory of a block into arrays, each aligned to 16 bytes. On the host,
// the same calls on SharedMemory(nullptr) tell how much to ask for at the launch.
class SharedMemory {
 public:
  __device__ SharedMemory() {
    extern __shared__ char openseg_shared_memory[];
    start_ = openseg_shared_memory;
  }
  __host__ __device__ explicit SharedMemory(char* start) : start_(start) {}

  template <typename T>
  __host__ __device__ T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(start_ + bytes_);
    bytes_ += (count * (int64_t)sizeof(T) + 15) / 16 * 16;
    return taken;
  }

  __host__ __device__ int64_t bytes() const { return bytes_; }

 private:
  char* start_;
  int64_t bytes_ = 0;
};

inline void check_cuda(cudaError_t error) {
  OPENSEG_CHECK(error == cudaSuccess, "openseg: CUDA: ", cudaGetErrorString(error));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// Bytes of shared memory that one block can have on the current device.
inline int64_t shared_memory_limit() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

inline int multiprocessor_count() {
  return device_attribute(cudaDevAttrMultiProcessorCount);
}

// Starts kernel(call) on `stream`, a cudaStream_t. Nothing is started for an empty grid.
template <typename Call>
void launch(void (*kernel)(Call), dim3 grid, int threads, int64_t shared_bytes, void* stream,
            const Call& call) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
    return;
  }
  constexpr int64_t without_asking = 48 << 10;
  if (shared_bytes > without_asking) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    (int)shared_bytes));
  }
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(call);
  check_cuda(cudaGetLastError());
}

}  // namespace openseg
