// SPDX-License-Identifier: MIT
#include "upsample_argmax/upsample_argmax.h"

#include <tuple>

#include "common/torch.h"
#if defined(OPENSEG_CUDA)
#include "common/torch_cuda.h"
#include "upsample_argmax/cuda/upsample_argmax.h"
#endif

namespace openseg {
namespace {

std::tuple<Tensor, Tensor> upsample_argmax(const Tensor& logits, const std::vector<int64_t>& size,
                                           bool align_corners, bool with_confidence) {
  OPENSEG_CHECK(logits.dim() == 4, "upsample_argmax: logits must be [B, K, h, w], got ",
                logits.dim(), " dimensions");
  OPENSEG_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0 && logits.size(1) > 0 &&
                    logits.size(2) > 0 && logits.size(3) > 0,
                "upsample_argmax: sizes must be positive");
  const bool narrow = logits.size(1) <= most_uint8_classes;
  const std::vector<int64_t> shape{logits.size(0), size[0], size[1]};
  Tensor labels = allocate(logits, shape, narrow ? ScalarType::Byte : ScalarType::Long);
  Tensor confidence =
      allocate(logits, with_confidence ? shape : std::vector<int64_t>{0}, ScalarType::Float);

  const UpsampleArgmax call{
      .logits = logits.const_data_ptr(),
      .dtype = floating_dtype("upsample_argmax", logits),
      .batch = logits.size(0),
      .classes = logits.size(1),
      .in_height = logits.size(2),
      .in_width = logits.size(3),
      .stride_batch = logits.stride(0),
      .stride_class = logits.stride(1),
      .stride_row = logits.stride(2),
      .stride_column = logits.stride(3),
      .out_height = size[0],
      .out_width = size[1],
      .align_corners = align_corners,
      .labels = labels.mutable_data_ptr(),
      .confidence = with_confidence ? static_cast<float*>(confidence.mutable_data_ptr()) : nullptr,
  };
#if defined(OPENSEG_CUDA)
  if (logits.is_cuda()) {
    const CudaScope scope(logits);
    upsample_argmax_cuda(call, scope.stream());
    return {labels, confidence};
  }
#endif
  OPENSEG_CHECK(OPENSEG_VARIANT(cpu_isa(), upsample_argmax_cpu)(call),
                "upsample_argmax: no memory for three rows of ", call.classes, " classes");
  return {labels, confidence};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(openseg, CPU, m) {
  m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax));
}

#if defined(OPENSEG_CUDA)
STABLE_TORCH_LIBRARY_IMPL(openseg, CUDA, m) {
  m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax));
}
#endif

}  // namespace openseg
