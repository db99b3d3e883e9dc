// SPDX-License-Identifier: MIT
// The primitives of csrc/common/device.cuh on a CPU: a CUDA thread is a fiber, blocks run one after
// the other, and what CUDA leaves undefined is an error or shows in the results.
//
// What is not modelled: time, registers, the order of sums in tensor cores, and any order of
// accesses other than by sync_block and sync_warp.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/check.h"
#include "common/dtype.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(int64_t x = 1, int64_t y = 1, int64_t z = 1)
      : x((unsigned)x), y((unsigned)y), z((unsigned)z) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace openseg {
namespace emulator {

// Blocks the calling thread until all lanes of its warp are here with the same name and line; the
// last one runs `combine`, which sees the operand of every lane.
void collective(const char* name, int line, void* operand, void (*combine)(void* const* lanes));

[[noreturn]] void fail(const char* why);  // in a kernel

void* shared_array(int64_t bytes, int64_t alignment);
void run(const void* kernel, dim3 grid, int threads, int64_t shared_bytes,
         void (*entry)(const void*), const void* call);

struct alignas(16) Piece {
  uint32_t words[4];
};

extern const Piece lost_piece;

struct Copy {
  Piece* to;
  Piece piece;
  int64_t group;
};

void set_last_use(bool last_use);
void issue_copy(const Copy& copy);
bool take_arrived_copy(int groups, Copy* copy);

// One lane's part of mma or load_matrices.
struct Fragments {
  uint32_t a[4];
  uint32_t b[2];
  float d[4];
  Piece row;
};

float number_of(uint16_t bits, bool is_bfloat16);

// Of a product on tensor cores: in double, and rounded once, towards zero as they do it. Their
// order is their own.
float rounded_sum(double sum);

void combine_mma_bfloat16(void* const* lanes);
void combine_mma_float16(void* const* lanes);
void combine_mma_tf32(void* const* lanes);
void combine_matrices(void* const* lanes);
void combine_transposed_matrices(void* const* lanes);

template <typename Operand>
Operand& operand_of(void* const* lanes, int lane) {
  return *static_cast<Operand*>(lanes[lane]);
}

}  // namespace emulator

inline int thread_anew() {
  return (int)threadIdx.x;
}

void sync_block(int line = __builtin_LINE());
void sync_warp(int line = __builtin_LINE());

inline float shuffle_xor(float value, int lane_mask, int line = __builtin_LINE()) {
  struct Operand {
    float value;
    int lane_mask;
    float result;
  } mine{value, lane_mask, 0};
  emulator::collective("shuffle_xor", line, &mine, [](void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      auto& operand = emulator::operand_of<Operand>(lanes, lane);
      operand.result = emulator::operand_of<Operand>(lanes, (lane ^ operand.lane_mask) % 32).value;
    }
  });
  return mine.result;
}

void atomic_add(uint32_t* address, uint32_t value);
void atomic_add(uint64_t* address, uint64_t value);
void atomic_max(uint64_t* address, uint64_t value);

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline uint32_t round_to_tf32(uint32_t bits) {
  return (bits + 0x1000) & 0xffffe000;
}

float to_float(float16 value);

float16 to_float16(float value);
bfloat16 to_bfloat16(float value);

inline void store(float* to, float value) {
  *to = value;
}

// Not the result of the call itself: the race detector does not see a call that writes to memory.
inline void store(float16* to, float value) {
  to->bits = to_float16(value).bits;
}

inline void store(bfloat16* to, float value) {
  to->bits = to_bfloat16(value).bits;
}

template <typename T>
void store_pair(T* to, float first, float second) {
  struct alignas(2 * sizeof(T)) Pair {
    T values[2];
  } pair;
  store(&pair.values[0], first);
  store(&pair.values[1], second);
  *reinterpret_cast<Pair*>(to) = pair;
}

// No compiler takes it apart.
using Words [[gnu::vector_size(16), gnu::may_alias]] = uint32_t;

template <typename T>
T read_whole(const T* from) {
  T value;
  if constexpr (sizeof(T) == 16) {
    const Words words = *reinterpret_cast<const Words*>(from);
    std::memcpy(&value, &words, sizeof words);
  } else {
    value = *from;
  }
  return value;
}

template <typename T>
void store_whole(T* to, const T& value) {
  if constexpr (sizeof(T) == 16) {
    Words words;
    std::memcpy(&words, &value, sizeof words);
    *reinterpret_cast<Words*>(to) = words;
  } else {
    *to = value;
  }
}

template <typename T>
T read_last(const T* from) {
  emulator::set_last_use(true);
  const T value = *from;
  emulator::set_last_use(false);
  return value;
}

inline float rounded_product(float a, float b) {
  return a * b;
}

inline float exp_fast(float x) {
  return std::exp(x);
}

inline float exp2_fast(float x) {
  return std::exp2(x);
}

inline float log_fast(float x) {
  return std::log(x);
}

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         int line = __builtin_LINE()) {
  emulator::Fragments mine;
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b, b, sizeof b);
  std::memcpy(mine.d, d, sizeof d);
  emulator::collective("mma", line, &mine,
                       std::is_same_v<T, float>      ? emulator::combine_mma_tf32
                       : std::is_same_v<T, bfloat16> ? emulator::combine_mma_bfloat16
                                                     : emulator::combine_mma_float16);
  std::memcpy(d, mine.d, sizeof d);
}

template <bool transposed>
void load_matrices(uint32_t (&to)[4], const void* row, int line = __builtin_LINE()) {
  emulator::Fragments mine;
  mine.row = *static_cast<const emulator::Piece*>(row);
  emulator::collective(
      "load_matrices", line, &mine,
      transposed ? emulator::combine_transposed_matrices : emulator::combine_matrices);
  std::memcpy(to, mine.a, sizeof to);
}

// Pessimistic: the old contents are lost at once, the new ones arrive when they are waited for.
inline void copy_async(void* to, const void* from, bool valid) {
  emulator::Copy copy{static_cast<emulator::Piece*>(to), {}, 0};
  if (valid) {
    copy.piece = *static_cast<const emulator::Piece*>(from);
  }
  *copy.to = emulator::lost_piece;
  emulator::issue_copy(copy);
}

void commit_copies();

template <int groups>
void wait_for_copies() {
  for (emulator::Copy copy; emulator::take_arrived_copy(groups, &copy);) {
    *copy.to = copy.piece;
  }
}

constexpr int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Every array is an allocation of its own, aligned to what was asked for and no more, and filled
// with NaN.
class SharedMemory {
 public:
  SharedMemory() : on_device_(true) {}
  explicit SharedMemory(char*) : on_device_(false) {}

  template <typename T>
  T* take(int64_t count, int64_t alignment = 16) {
    const int64_t size = count * (int64_t)sizeof(T);
    bytes_ = round_up(bytes_, alignment) + round_up(size, 16);
    return on_device_ ? static_cast<T*>(emulator::shared_array(size, alignment)) : nullptr;
  }

  int64_t bytes() const { return bytes_; }

 private:
  bool on_device_;
  int64_t bytes_ = 0;
};

int64_t shared_memory_limit();
int multiprocessor_count();
bool has_warpgroups();

template <typename Call>
void launch(void (*kernel)(Call), dim3 grid, int threads, int64_t shared_bytes, void* /*stream*/,
            const Call& call) {
  struct Packed {
    void (*kernel)(Call);
    const Call& call;
  } packed{kernel, call};
  emulator::run((const void*)kernel, grid, threads, shared_bytes,
                [](const void* pointer) {
                  const Packed& packed = *static_cast<const Packed*>(pointer);
                  packed.kernel(packed.call);
                },
                &packed);
}

}  // namespace openseg
