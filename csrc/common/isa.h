// SPDX-License-Identifier: MIT
#pragma once

// Compilers that know the tiles of AMX; elsewhere than on Linux nobody asks the system for them.
#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define OPENSEG_HAS_TILES
#endif

namespace openseg {

// Every csrc/<op>/cpu/*.cpp is compiled once for each of these but the last, into a namespace of
// that name. `amx` runs the code of avx512, which multiplies bfloat16 on tiles then.
enum class Isa { baseline, avx2, avx512, amx };

const char* isa_name(Isa isa);
Isa isa_named(const char* name);  // throws for an unknown name and for one this machine cannot run

// The best that this machine can run, or what the environment variable OPENSEG_CPU names. Chosen
// at the first call and kept.
Isa cpu_isa();

// Whether kernels multiply bfloat16 on tiles. Defined by common/torch.cpp, by the above, and by the
// test module, which runs one instruction set after the other.
bool tiles_are_used();

}  // namespace openseg

#define OPENSEG_FOR_EACH_ISA(declaration) \
  namespace baseline {                    \
  declaration                             \
  }                                       \
  namespace avx2 {                        \
  declaration                             \
  }                                       \
  namespace avx512 {                      \
  declaration                             \
  }

#define OPENSEG_VARIANT(isa, function)                \
  ((isa) >= ::openseg::Isa::avx512 ? avx512::function \
   : (isa) == ::openseg::Isa::avx2 ? avx2::function   \
                                   : baseline::function)
