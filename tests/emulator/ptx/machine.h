// SPDX-License-Identifier: MIT
// A block of threads while it runs. What the machine would trap, or leave undefined, is an error.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "common/check.h"
#include "emulator.h"
#include "ptx/program.h"

namespace openseg::ptx {

struct Block {
  char* shared;  // the first byte has the address shared_start
  int64_t shared_bytes;
  const char* parameters;
  int64_t parameter_bytes;
};

struct Copy {
  char* to;
  char bytes[16];
  int64_t group;
};

// Lanes that are at the same instruction.
struct Group {
  int next;
  uint32_t lanes;
};

struct Warp {
  Block* block;
  int index;
  std::vector<uint64_t> registers;
  const char* words[2];         // where words of registers and of constants begin
  const char* double_words[2];  // and double words
  std::vector<Group> groups;
  bool at_barrier, products_started;
  int line, barrier;  // where it is, and where the barrier is
  // Asynchronous copies of each lane.
  std::vector<Copy> copies[lane_count];
  int64_t copy_group[lane_count];
};

template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  OPENSEG_CHECK(holds, parts...);
}

inline bool is_active(uint32_t active, int lane) {
  return active >> lane & 1;
}

template <typename Slot>
const Slot* slots(const Warp& warp, Operand operand) {
  require(operand.is_constant || operand.is_wide == (sizeof(Slot) == 8), "a register of ",
          operand.is_wide ? 64 : 32, " bits is used as one of ", 8 * sizeof(Slot));
  const char* const* const starts = sizeof(Slot) == 8 ? warp.double_words : warp.words;
  return reinterpret_cast<const Slot*>(starts[operand.is_constant] + operand.offset);
}

template <typename Slot>
Slot* results(Warp& warp, Operand operand) {
  return const_cast<Slot*>(slots<Slot>(warp, operand));
}

// Loads, stores and conversions may use a wider register than their type.
inline uint64_t bits_of_lane(const Warp& warp, Operand operand, int lane) {
  return operand.is_wide ? slots<uint64_t>(warp, operand)[lane]
                         : slots<uint32_t>(warp, operand)[lane];
}

inline uint32_t predicate(const Warp& warp, Operand operand) {
  return *slots<uint32_t>(warp, operand);
}

inline void set_predicate(Warp& warp, Operand operand, uint32_t active, uint32_t value) {
  uint32_t* const kept = results<uint32_t>(warp, operand);
  *kept = (*kept & ~active) | (value & active);
}

// How a lane's number of a type lies in a register.
template <typename T>
using SlotOf = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <typename T>
T from_slot(SlotOf<T> slot) {
  if constexpr (sizeof(T) == 2) {
    return std::bit_cast<T>((uint16_t)slot);
  } else {
    return std::bit_cast<T>(slot);
  }
}

template <typename T>
SlotOf<T> to_slot(T value) {
  if constexpr (sizeof(T) == 2) {
    return std::bit_cast<uint16_t>(value);
  } else {
    return std::bit_cast<SlotOf<T>>(value);
  }
}

// Where 16 bytes of shared memory lie.
char* shared_row(const Warp& warp, uint32_t address);

// Runs a launch, block after block; the seed chooses the order of warps, and how long each goes on.
void run(Program& program, dim3 grid, int threads, int64_t shared_bytes, const void* parameters,
         uint64_t seed);

// The instructions, by what they work on. Each adds its own to the list.
void add_arithmetic(Meanings& all);
void add_memory(Meanings& all);
void add_products(Meanings& all);

}  // namespace openseg::ptx
