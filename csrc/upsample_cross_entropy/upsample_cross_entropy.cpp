// SPDX-License-Identifier: MIT
#include "upsample_cross_entropy/upsample_cross_entropy.h"

#if defined(OPENSEG_CUDA)
#include <optional>
#include <tuple>

#include "common/torch_cuda.h"
#include "upsample_cross_entropy/cuda/upsample_cross_entropy.h"

namespace openseg {
namespace {

// `target` and `weight` are contiguous.
UpsampleCrossEntropy make_call(const Tensor& logits, const Tensor& target,
                               const std::optional<Tensor>& weight, bool align_corners,
                               int64_t ignore_index, double label_smoothing) {
  OPENSEG_CHECK(logits.dim() == 4 && target.dim() == 3 && logits.size(0) == target.size(0),
                "upsample_cross_entropy: logits must be [B, K, h, w], target [B, H, W]");
  OPENSEG_CHECK(!weight || weight->scalar_type() == ScalarType::Float,
                "upsample_cross_entropy: weight must be float32");
  return {
      .logits = logits.const_data_ptr(),
      .dtype = floating_dtype("upsample_cross_entropy", logits),
      .batch = logits.size(0),
      .classes = logits.size(1),
      .in_height = logits.size(2),
      .in_width = logits.size(3),
      .stride_batch = logits.stride(0),
      .stride_class = logits.stride(1),
      .stride_row = logits.stride(2),
      .stride_column = logits.stride(3),
      .target = target.const_data_ptr(),
      .target_dtype = integral_dtype("upsample_cross_entropy", target),
      .out_height = target.size(1),
      .out_width = target.size(2),
      .align_corners = align_corners,
      .weight = weight ? static_cast<const float*>(weight->const_data_ptr()) : nullptr,
      .ignore_index = ignore_index,
      .label_smoothing = (float)label_smoothing,
  };
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& logits, const Tensor& target,
                                           const std::optional<Tensor>& weight, bool align_corners,
                                           int64_t ignore_index, double label_smoothing,
                                           bool per_pixel) {
  const CudaScope scope(logits);
  UpsampleCrossEntropy call =
      make_call(logits, target, weight, align_corners, ignore_index, label_smoothing);
  const std::vector<int64_t> pixels{target.size(0), target.size(1), target.size(2)};
  Tensor log_sum_exp = allocate(logits, pixels, ScalarType::Float);
  Tensor loss = allocate(logits, per_pixel ? pixels : std::vector<int64_t>{0}, ScalarType::Float);
  Tensor sums = allocate(logits, {2}, ScalarType::Float);
  Tensor partials = allocate(logits, {2, upsample_cross_entropy_partials(call)}, ScalarType::Float);
  call.log_sum_exp = static_cast<float*>(log_sum_exp.mutable_data_ptr());
  call.loss = per_pixel ? static_cast<float*>(loss.mutable_data_ptr()) : nullptr;
  call.partials = static_cast<float*>(partials.mutable_data_ptr());
  call.sums = static_cast<float*>(sums.mutable_data_ptr());
  upsample_cross_entropy_cuda(call, scope.stream());
  return {loss, sums, log_sum_exp};
}

Tensor backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& target,
                const std::optional<Tensor>& weight, const Tensor& log_sum_exp, bool align_corners,
                int64_t ignore_index, double label_smoothing) {
  const CudaScope scope(logits);
  UpsampleCrossEntropy call =
      make_call(logits, target, weight, align_corners, ignore_index, label_smoothing);
  OPENSEG_CHECK(grad_loss.scalar_type() == ScalarType::Float,
                "upsample_cross_entropy: grad_loss must be float32");
  OPENSEG_CHECK(grad_loss.numel() == 1 || grad_loss.numel() == target.numel(),
                "upsample_cross_entropy: grad_loss must have one value, or one for each pixel");
  Tensor grad_logits = torch::stable::empty_like(logits);
  for (int64_t axis = 0; axis < 4; ++axis) {
    OPENSEG_CHECK(logits.size(axis) == 1 || logits.stride(axis) == grad_logits.stride(axis),
                  "upsample_cross_entropy: logits must be contiguous or channels_last");
  }
  call.log_sum_exp = static_cast<float*>(log_sum_exp.mutable_data_ptr());
  call.grad_loss = static_cast<const float*>(grad_loss.const_data_ptr());
  call.grad_per_pixel = grad_loss.numel() != 1;
  call.grad_logits = grad_logits.mutable_data_ptr();
  upsample_cross_entropy_backward_cuda(call, scope.stream());
  return grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(openseg, CUDA, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&forward));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace openseg
#endif
