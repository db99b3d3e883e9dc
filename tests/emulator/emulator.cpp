// SPDX-License-Identifier: MIT
// The scheduler: every thread of a block is a fiber with a stack of its own, and runs until it
// waits at a barrier or a collective of its warp. The order of turns depends on the seed.
//
// An error inside a kernel abandons the block and is thrown from the launch, as a C++ exception.
#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "warpgroup.h"
#include "watch.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace openseg {
namespace emulator {
namespace {

constexpr int max_threads = 1024;
constexpr int max_arrays = 32;
constexpr int64_t stack_bytes = 256 << 10;
constexpr int64_t guard_bytes = 4096;

enum class State { ready, waiting, done };

struct Fiber {
  void* stack_pointer;
  State state;
  const char* waits_for;
  int line;
  int arrays;  // shared arrays taken so far
};

struct Warp {
  const char* name;  // what its lanes wait for, if any has arrived
  int line;
  int arrived;
  uint32_t phase;
  void* operands[32];
};

// The asynchronous copies of a thread, in the order of their issue.
struct Copies {
  std::vector<Copy> pending;
  int64_t group;  // the one that is open
};

struct Array {
  char* allocation;
  int64_t bytes, alignment;

  char* begin() const { return allocation + alignment; }
};

struct {
  uint64_t seed = 0;
  int64_t shared_limit = 99 << 10;
} settings;

char* stacks;
Fiber fibers[max_threads];
Warp warps[max_threads / 32];
Copies copies[max_threads];
Array arrays[max_arrays];
int array_count;
int64_t shared_bytes, shared_end;  // of the launch, and of what has been taken
int threads;
int current;
int waiting_at_barrier;
int barrier_line;
uint32_t block_phase;
std::string error;
uint64_t random_state;
void* scheduler_stack_pointer;
void (*kernel_entry)(const void*);
const void* kernel_call;

// Saves the callee-saved registers on the stack that is left and takes them from the one entered.
__attribute__((naked, noinline)) void switch_stack(void** /*leave*/, void* /*enter*/) {
  asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15;"
      "mov %rsp, (%rdi); mov %rsi, %rsp;"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_bottom;
size_t scheduler_size;
#endif

char* stack_of(int thread) {
  return stacks + thread * stack_bytes;
}

void to_scheduler() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, scheduler_bottom, scheduler_size);
#endif
  switch_stack(&fibers[current].stack_pointer, scheduler_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void to_thread(int thread) {
  current = thread;
  threadIdx.x = (unsigned)thread;
  place = {true, place.block, (uint32_t)thread, block_phase, warps[thread / 32].phase, false};
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack_of(thread), stack_bytes);
#endif
  switch_stack(&scheduler_stack_pointer, fibers[thread].stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  place.in_kernel = false;
}

template <typename... Parts>
[[noreturn]] void fail_in_kernel(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  fail(message.str().c_str());
}

void wait(const char* name, int line) {
  Fiber& fiber = fibers[current];
  fiber.state = State::waiting;
  fiber.waits_for = name;
  fiber.line = line;
  to_scheduler();
}

void wake(int begin, int end) {
  for (int thread = begin; thread < end; ++thread) {
    fibers[thread].state = State::ready;
  }
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
  kernel_entry(kernel_call);
  if (!copies[current].pending.empty()) {
    fail_in_kernel("returns with ", copies[current].pending.size(), " copies under way");
  }
  if (products_under_way()) {
    fail("returns with products under way");
  }
  fibers[current].state = State::done;
  to_scheduler();
  std::abort();
}

void start_fiber(int thread) {
  constexpr int saved_registers = 6;
  // The return address lies at a multiple of 16, so that fiber_main is entered like any function.
  void** const top = (void**)(stack_of(thread) + stack_bytes) - 2;
  *top = (void*)fiber_main;
  fibers[thread] = {top - saved_registers, State::ready, nullptr, 0, 0};
}

void allocate_stacks() {
  if (stacks == nullptr) {
    stacks = (char*)mmap(nullptr, max_threads * stack_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    OPENSEG_CHECK(stacks != MAP_FAILED, "emulator: no memory for stacks");
    for (int thread = 0; thread < max_threads; ++thread) {
      mprotect(stack_of(thread), guard_bytes, PROT_NONE);
    }
  }
  ASAN_UNPOISON_MEMORY_REGION(stacks, max_threads * stack_bytes);
}

uint64_t random_below(uint64_t bound) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (random_state >> 33) % bound;
}

// Seed 0 takes the threads in their order, 1 in the reverse one, others in a new order each time.
void next_turns(int* turns) {
  for (int i = 0; i < threads; ++i) {
    turns[i] = settings.seed == 1 ? threads - 1 - i : i;
  }
  for (int i = threads - 1; settings.seed > 1 && i > 0; --i) {
    std::swap(turns[i], turns[random_below(i + 1)]);
  }
}

std::string deadlock() {
  std::ostringstream message;
  message << "no thread can go on:";
  for (int thread = 0; thread < threads; ++thread) {
    const Fiber& fiber = fibers[thread];
    const Fiber* const before = thread > 0 ? &fibers[thread - 1] : nullptr;
    if (before && before->state == fiber.state && before->line == fiber.line) {
      continue;
    }
    message << "\n  from thread " << thread << ": ";
    if (fiber.state == State::done) {
      message << "has returned";
    } else {
      message << "waits for " << fiber.waits_for << " of line " << fiber.line;
    }
  }
  return message.str();
}

void release_arrays() {
  for (int i = 0; i < array_count; ++i) {
    ASAN_UNPOISON_MEMORY_REGION(arrays[i].allocation, arrays[i].alignment);
    std::free(arrays[i].allocation);
  }
  array_count = 0;
}

void run_block() {
  int turns[max_threads];
  shared_end = 0;
  waiting_at_barrier = 0;
  block_phase = 0;
  start_block_of_products();
  for (int thread = 0; thread < threads; ++thread) {
    start_fiber(thread);
    copies[thread] = {};
    warps[thread / 32] = {};
  }
  for (int left = threads; left > 0 && error.empty();) {
    next_turns(turns);
    bool moved = false;
    for (int i = 0; i < threads && error.empty(); ++i) {
      if (fibers[turns[i]].state == State::ready) {
        to_thread(turns[i]);
        moved = true;
        left -= fibers[turns[i]].state == State::done;
      }
    }
    if (!moved) {
      error = deadlock();
    }
  }
  release_arrays();
}

}  // namespace

const Piece lost_piece = {{~0u, ~0u, ~0u, ~0u}};

void collective(const char* name, int line, void* operand, void (*combine)(void* const*)) {
  Warp& warp = warps[current / 32];
  if (warp.arrived == 0) {
    warp.name = name;
    warp.line = line;
  } else if (warp.line != line || (warp.name != name && std::strcmp(warp.name, name) != 0)) {
    fail_in_kernel(name, " of line ", line, ", but other lanes of this warp are in ", warp.name,
                   " of line ", warp.line);
  }
  warp.operands[current % 32] = operand;
  if (++warp.arrived < 32) {
    wait(name, line);
    return;
  }
  count_collective(name);
  combine(warp.operands);
  warp.arrived = 0;
  wake(current / 32 * 32, current / 32 * 32 + 32);
}

void fail(const char* why) {
  place.in_kernel = false;
  std::ostringstream message;
  message << "block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z << ") thread "
          << current << ": " << why;
  error = message.str();
  to_scheduler();
  std::abort();
}

void* shared_array(int64_t bytes, int64_t alignment) {
  const int index = fibers[current].arrays++;
  if (index < array_count) {
    if (arrays[index].bytes != bytes) {
      fail_in_kernel("shared array ", index, " has ", bytes, " bytes, in another thread ",
                     arrays[index].bytes);
    }
    return arrays[index].begin();
  }
  shared_end = round_up(shared_end, alignment) + round_up(bytes, 16);
  if (shared_end > shared_bytes || index == max_arrays) {
    fail("more shared memory is taken than the launch asked for");
  }
  // An odd multiple of the alignment: what needs more does not get it by luck.
  void* memory = nullptr;
  if (posix_memalign(&memory, 2 * alignment, alignment + bytes) != 0) {
    fail("no memory");
  }
  const Array array{(char*)memory, bytes, alignment};
  std::memset(memory, 0xff, alignment + bytes);
  ASAN_POISON_MEMORY_REGION(memory, alignment);
  arrays[array_count++] = array;
  new_shared_array(array.begin(), bytes);
  return array.begin();
}

void set_last_use(bool last_use) {
  place.last_use = last_use;
}

void issue_copy(const Copy& copy) {
  copies[current].pending.push_back(copy);
  copies[current].pending.back().group = copies[current].group;
  ASAN_POISON_MEMORY_REGION(copy.to, sizeof(Piece));
}

bool take_arrived_copy(int groups, Copy* copy) {
  auto& [pending, group] = copies[current];
  if (pending.empty() || pending.front().group >= group - groups) {
    return false;
  }
  *copy = pending.front();
  pending.erase(pending.begin());
  ASAN_UNPOISON_MEMORY_REGION(copy->to, sizeof(Piece));
  return true;
}

void run(const void* kernel, dim3 grid, int block_threads, int64_t block_bytes,
         void (*entry)(const void*), const void* call) {
  OPENSEG_CHECK(block_threads > 0 && block_threads <= max_threads && block_threads % 32 == 0,
                "emulator: a block of ", block_threads, " threads");
  OPENSEG_CHECK(grid.x < 1u << 31 && grid.y < 65536 && grid.z < 65536, "emulator: a grid of ",
                grid.x, " x ", grid.y, " x ", grid.z, " blocks");
  OPENSEG_CHECK(block_bytes <= settings.shared_limit, "emulator: ", block_bytes,
                " bytes of shared memory, the architecture has ", settings.shared_limit);
  allocate_stacks();
  start_launch(kernel, stacks, max_threads * stack_bytes);
  error.clear();
  threads = block_threads;
  shared_bytes = block_bytes;
  kernel_entry = entry;
  kernel_call = call;
  random_state = settings.seed;
  blockDim = {block_threads};
  gridDim = grid;
  place.block = 0;
  for (unsigned z = 0; z < grid.z && error.empty(); ++z) {
    for (unsigned y = 0; y < grid.y && error.empty(); ++y) {
      for (unsigned x = 0; x < grid.x && error.empty(); ++x, ++place.block) {
        blockIdx = {x, y, z};
        run_block();
      }
    }
  }
  OPENSEG_CHECK(error.empty(), "emulator: ", error);
  OPENSEG_CHECK(race_report() == nullptr, "emulator: ", race_report());
}

}  // namespace emulator

using namespace emulator;

void sync_block(int line) {
  if (waiting_at_barrier > 0 && line != barrier_line) {
    fail_in_kernel("sync_block of line ", line, ", but other threads are in the one of line ",
                   barrier_line);
  }
  barrier_line = line;
  if (++waiting_at_barrier < threads) {
    wait("sync_block", line);
  } else {
    waiting_at_barrier = 0;
    ++block_phase;
    wake(0, threads);
  }
  place.block_phase = block_phase;
}

void sync_warp(int line) {
  collective("sync_warp", line, nullptr, [](void* const*) { ++warps[current / 32].phase; });
  place.warp_phase = warps[current / 32].phase;
}

void commit_copies() {
  ++copies[current].group;
}

void atomic_add(uint32_t* address, uint32_t value) {
  watch(address, sizeof *address, Access::atomic, __builtin_return_address(0));
  *address += value;
}

void atomic_add(uint64_t* address, uint64_t value) {
  watch(address, sizeof *address, Access::atomic, __builtin_return_address(0));
  *address += value;
}

void atomic_max(uint64_t* address, uint64_t value) {
  watch(address, sizeof *address, Access::atomic, __builtin_return_address(0));
  *address = std::max(*address, value);
}

int64_t shared_memory_limit() {
  return settings.shared_limit;
}

int multiprocessor_count() {
  return 2;
}

bool has_warpgroups() {
  return settings.shared_limit == 227 << 10;
}

}  // namespace openseg

extern "C" void emulator_configure(uint64_t seed, int64_t shared_limit) {
  openseg::emulator::settings.seed = seed;
  openseg::emulator::settings.shared_limit = shared_limit;
}
