// SPDX-License-Identifier: MIT
#include "common/isa.h"

#include <cstdlib>
#include <cstring>

#include "common/check.h"

#if defined(OPENSEG_HAS_TILES)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace openseg {
namespace {

// The system gives a process the memory for tiles when it asks, or refuses.
bool has_tiles() {
#if defined(OPENSEG_HAS_TILES)
  constexpr unsigned bfloat16_and_tiles = 1u << 22 | 1u << 24;  // of leaf 7, in edx
  constexpr int request_permission = 0x1023, tile_data = 18;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
         (d & bfloat16_and_tiles) == bfloat16_and_tiles &&
         syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

// __builtin_cpu_supports also asks whether the operating system saves the wide registers. The lists
// are those of the compiler flags in setup.py.
bool runs_here(Isa isa) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  switch (isa) {
    case Isa::baseline:
      return true;
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bf16");
    default:
      return runs_here(Isa::avx512) && has_tiles();
  }
}

Isa choose() {
  if (const char* name = std::getenv("OPENSEG_CPU")) {
    return isa_named(name);
  }
  for (Isa isa : {Isa::amx, Isa::avx512, Isa::avx2}) {
    if (runs_here(isa)) {
      return isa;
    }
  }
  return Isa::baseline;
}

}  // namespace

const char* isa_name(Isa isa) {
  return isa == Isa::amx      ? "amx"
         : isa == Isa::avx512 ? "avx512"
         : isa == Isa::avx2   ? "avx2"
                              : "baseline";
}

Isa isa_named(const char* name) {
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512, Isa::amx}) {
    if (std::strcmp(name, isa_name(isa)) == 0) {
      OPENSEG_CHECK(runs_here(isa), "OPENSEG_CPU=", name, ": this processor cannot run it");
      return isa;
    }
  }
  fail("OPENSEG_CPU=", name, ": expected baseline, avx2, avx512 or amx");
}

Isa cpu_isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace openseg
