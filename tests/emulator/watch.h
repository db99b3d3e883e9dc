// SPDX-License-Identifier: MIT
// What the race detector and the counter of costs have to know: the schedule, and every access. One
// of race.cpp and costs.cpp has the functions; without EMULATOR_WATCHED nothing is watched.
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
  bool last_use;  // of what it reads
};

// product: a read by the units that multiply, which see only what was shown to them. last_read is
// told apart in costs.cpp alone.
enum class Access { read, write, atomic, product, last_read };

#if defined(EMULATOR_WATCHED)
extern Place place;
void watch(const void* address, int64_t bytes, Access kind, const void* code);
void start_launch(const void* kernel, const void* stacks, int64_t stacks_bytes);
void new_shared_array(const void* address, int64_t bytes);
void count_collective(const char* name);
void count_group_product(int tiles, const void* code);  // of a warp; its factors are not watched
void note_shown();          // that the thread shows to products what it has written
const char* race_report();  // null if there was none
#else
inline Place place;
inline void watch(const void*, int64_t, Access, const void*) {}
inline void start_launch(const void*, const void*, int64_t) {}
inline void new_shared_array(const void*, int64_t) {}
inline void count_collective(const char*) {}
inline void count_group_product(int, const void*) {}
inline void note_shown() {}
inline const char* race_report() {
  return nullptr;
}
#endif

}  // namespace openseg::emulator
