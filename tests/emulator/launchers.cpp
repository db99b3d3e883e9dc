// SPDX-License-Identifier: MIT
// The launchers under C names, for ctypes. An exception becomes its text; null is success.
#include <exception>
#include <string>

#include "confusion_matrix/cuda/confusion_matrix.h"
#include "upsample_argmax/cuda/upsample_argmax.h"
#include "upsample_cross_entropy/cuda/upsample_cross_entropy.h"

#define LAUNCHER(name, Call)                               \
  extern "C" const char* name(const openseg::Call* call) { \
    static std::string message;                            \
    try {                                                  \
      openseg::name##_cuda(*call, nullptr);                \
      return nullptr;                                      \
    } catch (const std::exception& error) {                \
      message = error.what();                              \
      return message.c_str();                              \
    }                                                      \
  }

LAUNCHER(confusion_matrix, ConfusionMatrix)
LAUNCHER(upsample_argmax, UpsampleArgmax)
LAUNCHER(upsample_cross_entropy, UpsampleCrossEntropy)
LAUNCHER(upsample_cross_entropy_backward, UpsampleCrossEntropy)
