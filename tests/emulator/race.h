// SPDX-License-Identifier: MIT
// What the race detector has to know of the schedule. Without EMULATOR_RACES nothing is watched.
#pragma once

#include <cstdint>

namespace openseg::emulator {

// The thread that runs, and how many barriers its block and its warp have passed. Every barrier is
// of a whole block or a whole warp, so that two accesses are ordered if and only if these numbers
// differ: exact, and without vector clocks.
struct Place {
  bool in_kernel;
  uint32_t block;
  uint32_t thread;
  uint32_t block_phase;
  uint32_t warp_phase;
};

enum class Access { read, write, atomic };

#if defined(EMULATOR_RACES)
extern Place place;
void watch(const void* address, int64_t bytes, Access kind, const void* code);
void forget_everything(const void* stacks, int64_t stacks_bytes);  // at a launch
void forget_shared(const void* address, int64_t bytes);            // a new shared array
const char* race_report();                                         // null if there was none
#else
inline Place place;
inline void watch(const void*, int64_t, Access, const void*) {}
inline void forget_everything(const void*, int64_t) {}
inline void forget_shared(const void*, int64_t) {}
inline const char* race_report() {
  return nullptr;
}
#endif

}  // namespace openseg::emulator
