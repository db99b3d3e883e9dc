// SPDX-License-Identifier: MIT
// The launchers under C names, for ctypes. An exception becomes its text; null is success.
#include <cstring>
#include <new>

#include "common/cuda/attention.h"
#include "confusion_matrix/cuda/confusion_matrix.h"
#include "inplace_abn/cuda/inplace_abn.h"
#include "message_of.h"
#include "object_attention/cuda/object_attention.h"
#include "spatial_gather/cuda/spatial_gather.h"
#include "upsample_argmax/cuda/upsample_argmax.h"
#include "upsample_cross_entropy/cuda/upsample_cross_entropy.h"

// Floats that are NaN until a kernel writes them, in an allocation of their own.
class Scratch {
 public:
  explicit Scratch(int64_t count) : floats_(new (std::align_val_t(16)) float[count]) {
    std::memset(floats_, 0xff, count * sizeof(float));
  }
  ~Scratch() { operator delete[](floats_, std::align_val_t(16)); }
  Scratch(const Scratch&) = delete;

  float* data() const { return floats_; }

 private:
  float* floats_;
};

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
LAUNCHER_WITH_RESULT(upsample_cross_entropy_backward, UpsampleCrossEntropy, CrossEntropyBackward)

extern "C" const char* attention(const openseg::Attention* call, bool allow_tf32) {
  return message_of([&] { openseg::attention_cuda(*call, allow_tf32, nullptr); });
}

extern "C" const char* attention_backward(const openseg::AttentionBackward* call, bool allow_tf32) {
  return message_of([&] {
    Scratch delta(call->grad_out.batch * call->grad_out.pixels);
    openseg::attention_backward_cuda(*call, delta.data(), allow_tf32, nullptr);
  });
}

#define LAUNCHER_WITH_PARTIALS(name, Call, map)                   \
  extern "C" const char* name(const openseg::Call* call) {        \
    return message_of([&] {                                       \
      Scratch partials(openseg::inplace_abn_partials(call->map)); \
      openseg::name##_cuda(*call, partials.data(), nullptr);      \
    });                                                           \
  }

LAUNCHER_WITH_PARTIALS(inplace_abn, InPlaceAbn, x)
LAUNCHER_WITH_PARTIALS(inplace_abn_backward, InPlaceAbnBackward, kept)
LAUNCHER_WITH_PARTIALS(inplace_abn_backward_sums, InPlaceAbnBackward, kept)

extern "C" const char* object_attention(const openseg::ObjectAttention* call, bool allow_tf32) {
  return message_of([&] { openseg::object_attention_cuda(*call, allow_tf32, nullptr); });
}

extern "C" const char* object_attention_backward(const openseg::ObjectAttentionBackward* call,
                                                 bool allow_tf32) {
  return message_of([&] {
    Scratch sums(openseg::object_attention_sums(*call, allow_tf32));
    openseg::object_attention_backward_cuda(*call, allow_tf32, sums.data(), nullptr);
  });
}

extern "C" const char* spatial_gather(const openseg::SpatialGather* call, bool allow_tf32) {
  return message_of([&] {
    Scratch scratch(openseg::spatial_gather_scratch(*call, allow_tf32));
    openseg::spatial_gather_cuda(*call, allow_tf32, scratch.data(), nullptr);
  });
}

extern "C" const char* spatial_gather_backward(const openseg::SpatialGatherBackward* call,
                                               bool allow_tf32) {
  return message_of([&] {
    Scratch means(call->grad_out.batch * call->grad_out.pixels);
    openseg::spatial_gather_backward_cuda(*call, allow_tf32, means.data(), nullptr);
  });
}

extern "C" const char* upsample_cross_entropy(const openseg::UpsampleCrossEntropy* call,
                                              const openseg::CrossEntropyForwardCuda* result,
                                              const openseg::Ohem* ohem) {
  return message_of([&] { openseg::upsample_cross_entropy_cuda(*call, ohem, *result, nullptr); });
}
