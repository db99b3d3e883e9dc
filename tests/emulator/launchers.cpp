// SPDX-License-Identifier: MIT
// The launchers under C names, for ctypes. An exception becomes its text; null is success.
#include <exception>
#include <string>

#include "common/cuda/attention.h"
#include "confusion_matrix/cuda/confusion_matrix.h"
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

extern "C" const char* attention(const openseg::Attention* call, bool allow_tf32) {
  return message_of([&] { openseg::attention_cuda(*call, allow_tf32, nullptr); });
}

extern "C" const char* attention_backward(const openseg::AttentionBackward* call, float* delta,
                                          bool allow_tf32) {
  return message_of([&] { openseg::attention_backward_cuda(*call, delta, allow_tf32, nullptr); });
}
