// SPDX-License-Identifier: MIT
// The launchers under C names, for ctypes. An exception becomes its text; null is success.
#include <cmath>
#include <exception>
#include <string>
#include <vector>

#include "confusion_matrix/cuda/confusion_matrix.h"
#include "inplace_abn/cuda/inplace_abn.h"
#include "upsample_argmax/cuda/upsample_argmax.h"
#include "upsample_cross_entropy/cuda/upsample_cross_entropy.h"

template <typename Run>
static const char* message_of(const Run& run) {
  static std::string message;
  try {
    run();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

#define LAUNCHER(name, Call)                                          \
  extern "C" const char* name(const openseg::Call* call) {            \
    return message_of([&] { openseg::name##_cuda(*call, nullptr); }); \
  }
#define LAUNCHER_WITH_RESULT(name, Call, Result)                                          \
  extern "C" const char* name(const openseg::Call* call, const openseg::Result* result) { \
    return message_of([&] { openseg::name##_cuda(*call, *result, nullptr); });            \
  }

LAUNCHER(confusion_matrix, ConfusionMatrix)
LAUNCHER(upsample_argmax, UpsampleArgmax)
LAUNCHER_WITH_RESULT(upsample_cross_entropy, UpsampleCrossEntropy, CrossEntropyForwardCuda)
LAUNCHER_WITH_RESULT(upsample_cross_entropy_backward, UpsampleCrossEntropy, CrossEntropyBackward)

// Scratch is full of NaN until a kernel writes it.
#define LAUNCHER_WITH_PARTIALS(name, Call, map)                                             \
  extern "C" const char* name(const openseg::Call* call) {                                  \
    return message_of([&] {                                                                 \
      std::vector<float> partials(openseg::inplace_abn_partials(call->map), std::nanf("")); \
      openseg::name##_cuda(*call, partials.data(), nullptr);                                \
    });                                                                                     \
  }

LAUNCHER_WITH_PARTIALS(inplace_abn, InPlaceAbn, x)
LAUNCHER_WITH_PARTIALS(inplace_abn_backward, InPlaceAbnBackward, kept)
LAUNCHER_WITH_PARTIALS(inplace_abn_backward_sums, InPlaceAbnBackward, kept)
