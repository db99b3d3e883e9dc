// SPDX-License-Identifier: MIT
// The primitives of device.cuh for nvcc; tests/emulator/emulator.h has the same names for a CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <string>
#include <type_traits>

#include "common/check.h"
#include "common/dtype.h"

namespace openseg {

// threadIdx.x, read anew each time: what is computed from it takes no registers between its uses.
__device__ inline int thread_anew() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

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

__device__ inline uint32_t bits_of(float value) {
  return __float_as_uint(value);
}

// The bits of a float rounded to those that TF32 has, ties away from zero; NaN may become any
// number. The compiler does not see that it is the same for the same float: it would keep factors
// of many products in registers thrice.
__device__ inline uint32_t round_to_tf32(uint32_t bits) {
  uint32_t result;
  asm("{.reg .b32 sum;\nadd.u32 sum, %1, 0x1000;\nand.b32 %0, sum, 0xffffe000;}"
      : "=r"(result)
      : "r"(bits));
  return result;
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

// Two neighbours in one access: `to` is aligned to both.
__device__ inline void store_pair(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = make_float2(first, second);
}

__device__ inline void store_pair(float16* to, float first, float second) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(pair) : "f"(first), "f"(second));
  *reinterpret_cast<uint32_t*>(to) = pair;
}

__device__ inline void store_pair(bfloat16* to, float first, float second) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(pair) : "f"(first), "f"(second));
  *reinterpret_cast<uint32_t*>(to) = pair;
}

template <typename T>
using Bits = std::conditional_t<sizeof(T) == 16, uint4,
                                std::conditional_t<sizeof(T) == 4, unsigned int, unsigned short>>;

// 2, 4 or 16 bytes that nothing else will read soon: they are to leave the caches first.
template <typename T>
__device__ T read_last(const T* from) {
  const Bits<T> bits = __ldcs(reinterpret_cast<const Bits<T>*>(from));
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// 2, 4 or 16 bytes in one access: an assignment may become one for each of their numbers.
template <typename T>
__device__ T read_whole(const T* from) {
  const Bits<T> bits = *reinterpret_cast<const Bits<T>*>(from);
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T>
__device__ void store_whole(T* to, const T& value) {
  Bits<T> bits;
  memcpy(&bits, &value, sizeof value);
  if constexpr (sizeof(T) == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(bits.x), "r"(bits.y),
                 "r"(bits.z), "r"(bits.w)
                 : "memory");
  } else {
    *reinterpret_cast<Bits<T>*>(to) = bits;
  }
}

// a b as a number of its own, which no sum takes in before it is rounded.
__device__ inline float rounded_product(float a, float b) {
  return __fmul_rn(a, b);
}

// Relative error about 2^-22 + 2^-24 |x|, 0 far below.
__device__ inline float exp_fast(float x) {
  return __expf(x);
}

// Relative error about 2^-22, 0 far below.
__device__ inline float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ inline float log_fast(float x) {
  return __logf(x);
}

// d += a b on the tensor cores: a is 16 x 16, b 16 x 8, of T = bfloat16 or float16; d is float32.
// With g = lane / 4 and t = lane % 4, a lane holds, two to a register and the lower column or row
// first:
//   a: rows g, g + 8, g, g + 8 of columns 2t, 2t + 1, the latter two of columns 2t + 8, 2t + 9
//   b: rows 2t, 2t + 1 and 2t + 8, 2t + 9 of column g
//   d: columns 2t, 2t + 1 of row g, then of row g + 8
// T = float stands for TF32: the low 13 bits do not count, a is 16 x 8, b 8 x 8, one to a register:
//   a: rows g, g + 8 of column t, then of column t + 4
//   b: rows t, t + 4 of column g
template <typename T>
__device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ inline void mma<bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ inline void mma<float16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ inline void mma<float>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit numbers from shared memory: lane 8m + r names row r of matrix m, 16
// aligned bytes. Register m becomes columns 2t, 2t + 1 of row g of matrix m, or, transposed, rows
// 2t, 2t + 1 of column g.
template <bool transposed>
__device__ void load_matrices(uint32_t (&to)[4], const void* row) {
  const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
}

// Starts a copy of 16 aligned bytes to shared memory; zeros where not `valid`, and nothing is read.
// They are there once their group, closed by commit_copies, has been waited for.
__device__ inline void copy_async(void* to, const void* from, bool valid) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
      "l"(from), "r"(valid ? 16 : 0)
      : "memory");
}

__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until no more than `groups` of this thread's last groups are under way.
template <int groups>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

__host__ __device__ constexpr int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Carves the dynamic shared memory of a block into arrays, each aligned to 16 bytes or as asked. On
// the host, the same calls on SharedMemory(nullptr) tell how much to ask for at the launch.
class SharedMemory {
 public:
  __device__ SharedMemory() {
    extern __shared__ __align__(1024) char openseg_shared_memory[];
    start_ = openseg_shared_memory;
  }
  __host__ __device__ explicit SharedMemory(char* start) : start_(start) {}

  template <typename T>
  __host__ __device__ T* take(int64_t count, int64_t alignment = 16) {
    const int64_t begin = round_up(bytes_, alignment);
    bytes_ = begin + round_up(count * (int64_t)sizeof(T), 16);
    return reinterpret_cast<T*>(start_ + begin);
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

// Whether the current device can run what is compiled for sm_90a.
inline bool has_warpgroups() {
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
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
    // Not `shared_bytes`: another thread may set the same kernel's before this one has started it.
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    (int)shared_memory_limit()));
  }
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(call);
  check_cuda(cudaGetLastError());
}

}  // namespace openseg
