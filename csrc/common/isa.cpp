// SPDX-License-Identifier: MIT
#include "common/isa.h"

#include <cstdlib>
#include <cstring>

#include "common/check.h"

namespace openseg {
namespace {

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
    default:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bf16");
  }
}

Isa choose() {
  if (const char* name = std::getenv("OPENSEG_CPU")) {
    return isa_named(name);
  }
  if (runs_here(Isa::avx512)) {
    return Isa::avx512;
  }
  return runs_here(Isa::avx2) ? Isa::avx2 : Isa::baseline;
}

}  // namespace

const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

Isa isa_named(const char* name) {
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(name, isa_name(isa)) == 0) {
      OPENSEG_CHECK(runs_here(isa), "OPENSEG_CPU=", name, ": this processor cannot run it");
      return isa;
    }
  }
  fail("OPENSEG_CPU=", name, ": expected baseline, avx2 or avx512");
}

Isa cpu_isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace openseg
