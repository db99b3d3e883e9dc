// SPDX-License-Identifier: MIT
#include "upsample_cross_entropy/upsample_cross_entropy.h"

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/torch.h"
#if defined(OPENSEG_CUDA)
#include "common/torch_cuda.h"
#include "upsample_cross_entropy/cuda/upsample_cross_entropy.h"
#endif

namespace openseg {
namespace {

constexpr const char* name = "upsample_cross_entropy";

// Checks what the kernels rely on.
UpsampleCrossEntropy call_of(const Tensor& logits, const Tensor& target,
                             const std::optional<Tensor>& weight, bool align_corners,
                             int64_t ignore_index, double label_smoothing) {
  OPENSEG_CHECK(logits.dim() == 4 && target.dim() == 3 && logits.size(0) == target.size(0), name,
                ": logits must be [B, K, h, w] and target [B, H, W]");
  OPENSEG_CHECK(logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0 &&
                    target.size(1) > 0 && target.size(2) > 0,
                name, ": sizes must be positive");
  OPENSEG_CHECK(target.is_contiguous(), name, ": target must be contiguous");
  const DType dtype = floating_dtype(name, logits), target_dtype = integral_dtype(name, target);
  OPENSEG_CHECK(target_dtype != DType::int32, name, ": the kernel serves uint8 and int64 targets");
  OPENSEG_CHECK(dtype != DType::float16 || logits.is_cuda(), name,
                ": the kernel for CPUs serves logits in float32 and bfloat16");
  OPENSEG_CHECK(!weight || (weight->scalar_type() == ScalarType::Float && weight->is_contiguous() &&
                            weight->numel() == logits.size(1)),
                name, ": weight must be contiguous float32 [K]");
  return {
      .logits = logits.const_data_ptr(),
      .dtype = dtype,
      .batch = logits.size(0),
      .classes = logits.size(1),
      .in_height = logits.size(2),
      .in_width = logits.size(3),
      .stride_batch = logits.stride(0),
      .stride_class = logits.stride(1),
      .stride_row = logits.stride(2),
      .stride_column = logits.stride(3),
      .target = target.const_data_ptr(),
      .target_dtype = target_dtype,
      .out_height = target.size(1),
      .out_width = target.size(2),
      .weight = weight ? static_cast<const float*>(weight->const_data_ptr()) : nullptr,
      .align_corners = align_corners,
      .ignore_index = ignore_index,
      .label_smoothing = static_cast<float>(label_smoothing),
  };
}

void sum_up(const std::vector<RowTotals>& rows, double* totals) {
  RowTotals sum{};
  for (const RowTotals& row : rows) {
    sum.loss += row.loss;
    sum.divisor += row.divisor;
    sum.first_invalid = sum.invalid == 0 ? row.first_invalid : sum.first_invalid;
    sum.invalid += row.invalid;
  }
  totals[0] = sum.loss;
  totals[1] = sum.divisor;
  totals[2] = static_cast<double>(sum.invalid);
  totals[3] = static_cast<double>(sum.first_invalid);
}

#if defined(OPENSEG_CUDA)
void run_on_gpu(const UpsampleCrossEntropy& call, const Ohem* ohem, Tensor& loss, Tensor& lse,
                Tensor& probability, Tensor& totals) {
  const CudaScope scope(lse);
  Tensor partials = allocate(lse, {2, upsample_cross_entropy_partials(call)}, ScalarType::Float);
  Tensor invalid = allocate(lse, {2}, ScalarType::Long);
  Tensor counts = allocate(lse, {ohem ? ohem_passes * ohem_bins : 0}, ScalarType::Int);
  torch::stable::zero_(invalid);
  torch::stable::zero_(counts);
  const CrossEntropyForwardCuda result{
      .loss = loss.dim() == 3 ? static_cast<float*>(loss.mutable_data_ptr()) : nullptr,
      .lse = static_cast<float*>(lse.mutable_data_ptr()),
      .probability = ohem ? static_cast<float*>(probability.mutable_data_ptr()) : nullptr,
      .first_enters = ohem && ohem->openseg,
      .counts = static_cast<uint32_t*>(counts.mutable_data_ptr()),
      .partials = static_cast<float*>(partials.mutable_data_ptr()),
      .invalid = static_cast<int64_t*>(invalid.mutable_data_ptr()),
      .totals = static_cast<double*>(totals.mutable_data_ptr()),
  };
  upsample_cross_entropy_cuda(call, ohem, result, scope.stream());
}
#endif

std::tuple<Tensor, Tensor, Tensor, Tensor> upsample_cross_entropy(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
    bool align_corners, int64_t ignore_index, double label_smoothing, const std::string& ohem,
    double thresh, int64_t min_kept, bool each) {
  const UpsampleCrossEntropy call =
      call_of(logits, target, weight, align_corners, ignore_index, label_smoothing);
  const bool mine = !ohem.empty();
  const std::vector<int64_t> shape{call.batch, call.out_height, call.out_width}, none{0};
  Tensor loss = allocate(logits, each || mine ? shape : none, ScalarType::Float);
  Tensor lse = allocate(logits, shape, ScalarType::Float);
  Tensor probability = allocate(logits, mine ? shape : none, ScalarType::Float);
  Tensor totals = allocate(logits, {4}, ScalarType::Double);
  const Ohem options{ohem == "openseg", static_cast<float>(thresh), min_kept};
#if defined(OPENSEG_CUDA)
  if (logits.is_cuda()) {
    run_on_gpu(call, mine ? &options : nullptr, loss, lse, probability, totals);
    return {loss, lse, probability, totals};
  }
#endif

  std::vector<RowTotals> rows(call.batch * call.out_height);
  const CrossEntropyForward result{
      .loss = each || mine ? static_cast<float*>(loss.mutable_data_ptr()) : nullptr,
      .lse = static_cast<float*>(lse.mutable_data_ptr()),
      .probability = mine ? static_cast<float*>(probability.mutable_data_ptr()) : nullptr,
      .first_enters = options.openseg,
      .totals = rows.data(),
  };
  OPENSEG_CHECK(OPENSEG_VARIANT(cpu_isa(), upsample_cross_entropy_forward_cpu)(call, result), name,
                ": no memory for three rows of ", call.classes, " classes");
  if (mine) {
    OPENSEG_VARIANT(cpu_isa(), mine_hard_pixels_cpu)(call, options, result);
  }
  sum_up(rows, static_cast<double*>(totals.mutable_data_ptr()));
  return {loss, lse, probability, totals};
}

Tensor upsample_cross_entropy_backward(const Tensor& logits, const Tensor& target,
                                       const std::optional<Tensor>& weight, const Tensor& lse,
                                       const Tensor& scale, bool align_corners,
                                       int64_t ignore_index, double label_smoothing) {
  const UpsampleCrossEntropy call =
      call_of(logits, target, weight, align_corners, ignore_index, label_smoothing);
  for (const Tensor* tensor : {&lse, &scale}) {
    OPENSEG_CHECK(tensor->scalar_type() == ScalarType::Float && tensor->is_contiguous(), name,
                  ": lse and scale must be contiguous float32");
  }
  OPENSEG_CHECK(
      lse.numel() == target.numel() && (scale.numel() == target.numel() || scale.numel() == 1),
      name, ": lse must be [B, H, W], scale too or one number");
  Tensor grad = allocate_like(logits);
  const CrossEntropyBackward result{
      .lse = static_cast<const float*>(lse.const_data_ptr()),
      .scale = static_cast<const float*>(scale.const_data_ptr()),
      .one_scale = scale.numel() == 1,
      .grad = grad.mutable_data_ptr(),
      .stride_batch = grad.stride(0),
      .stride_class = grad.stride(1),
      .stride_row = grad.stride(2),
      .stride_column = grad.stride(3),
  };
#if defined(OPENSEG_CUDA)
  if (logits.is_cuda()) {
    const CudaScope scope(logits);
    upsample_cross_entropy_backward_cuda(call, result, scope.stream());
    return grad;
  }
#endif
  OPENSEG_CHECK(OPENSEG_VARIANT(cpu_isa(), upsample_cross_entropy_backward_cpu)(call, result), name,
                ": no memory for seven rows of ", call.classes, " classes");
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(openseg, CPU, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&upsample_cross_entropy));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&upsample_cross_entropy_backward));
}

#if defined(OPENSEG_CUDA)
STABLE_TORCH_LIBRARY_IMPL(openseg, CUDA, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&upsample_cross_entropy));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&upsample_cross_entropy_backward));
}
#endif

}  // namespace openseg
