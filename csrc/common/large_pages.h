// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace openseg {
namespace {

// Asks the system for large pages for what fills any: fresh memory costs a fault for each page, and
// small ones make it dearer to touch a map for the first time than to compute it.
inline void prefer_large_pages([[maybe_unused]] void* start, [[maybe_unused]] int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 1 << 21;
  const uintptr_t begin = ((uintptr_t)start + page - 1) & -page;
  const uintptr_t end = ((uintptr_t)start + (uintptr_t)bytes) & -page;
  if (start && begin < end) {
    madvise((void*)begin, end - begin, MADV_HUGEPAGE);
  }
#endif
}

}  // namespace
}  // namespace openseg
