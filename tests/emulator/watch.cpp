// SPDX-License-Identifier: MIT
// Kernels compiled with -fsanitize=thread are linked with this file in place of libtsan: the
// compiler calls __tsan_read4(address) and its siblings before every access.
#include "watch.h"

#include <cstddef>

#define WATCH_SIZE(size)                                              \
  void __tsan_read##size(void* address) {                             \
    watch(address, size, Access::read, __builtin_return_address(0));  \
  }                                                                   \
  void __tsan_write##size(void* address) {                            \
    watch(address, size, Access::write, __builtin_return_address(0)); \
  }                                                                   \
  void __tsan_unaligned_read##size(void* address) {                   \
    watch(address, size, Access::read, __builtin_return_address(0));  \
  }                                                                   \
  void __tsan_unaligned_write##size(void* address) {                  \
    watch(address, size, Access::write, __builtin_return_address(0)); \
  }

extern "C" {
using namespace openseg::emulator;
WATCH_SIZE(1)
WATCH_SIZE(2)
WATCH_SIZE(4)
WATCH_SIZE(8)
WATCH_SIZE(16)
void __tsan_read_range(void* address, size_t bytes) {
  watch(address, (int64_t)bytes, Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  watch(address, (int64_t)bytes, Access::write, __builtin_return_address(0));
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
