// SPDX-License-Identifier: MIT
#pragma once

namespace openseg {

// Every csrc/<op>/cpu/*.cpp is compiled once for each of these, into a namespace of that name.
enum class Isa { baseline, avx2, avx512 };

const char* isa_name(Isa isa);
Isa isa_named(const char* name);  // throws for an unknown name and for one this machine cannot run

// The best that this machine can run, or what the environment variable OPENSEG_CPU names. Chosen
// at the first call and kept.
Isa cpu_isa();

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
  ((isa) == ::openseg::Isa::avx512 ? avx512::function \
   : (isa) == ::openseg::Isa::avx2 ? avx2::function   \
                                   : baseline::function)
