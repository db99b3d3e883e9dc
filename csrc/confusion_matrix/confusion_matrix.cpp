// SPDX-License-Identifier: MIT
#include "confusion_matrix/confusion_matrix.h"

#include <tuple>

#include "common/torch.h"
#if defined(OPENSEG_CUDA)
#include "common/torch_cuda.h"
#include "confusion_matrix/cuda/confusion_matrix.h"
#endif

namespace openseg {
namespace {

std::tuple<Tensor, Tensor> confusion_matrix(const Tensor& prediction, const Tensor& target,
                                            int64_t num_classes, int64_t ignore_index) {
  OPENSEG_CHECK(prediction.numel() == target.numel(), "confusion_matrix: prediction has ",
                prediction.numel(), " elements, target ", target.numel());
  OPENSEG_CHECK(num_classes > 0 && num_classes < 1 << 15, "confusion_matrix: num_classes is ",
                num_classes, ", the kernel serves 1 to 32767");
  const Tensor flat_prediction = torch::stable::contiguous(prediction);
  const Tensor flat_target = torch::stable::contiguous(target);
  Tensor matrix = allocate(target, {num_classes, num_classes}, ScalarType::Long);
  Tensor invalid = allocate(target, {2}, ScalarType::Long);
  torch::stable::zero_(matrix);
  torch::stable::zero_(invalid);

  const ConfusionMatrix call{
      .prediction = flat_prediction.const_data_ptr(),
      .prediction_dtype = integral_dtype("confusion_matrix", prediction),
      .target = flat_target.const_data_ptr(),
      .target_dtype = integral_dtype("confusion_matrix", target),
      .count = target.numel(),
      .num_classes = num_classes,
      .ignore_index = ignore_index,
      .matrix = static_cast<int64_t*>(matrix.mutable_data_ptr()),
      .invalid = static_cast<int64_t*>(invalid.mutable_data_ptr()),
  };
#if defined(OPENSEG_CUDA)
  if (target.is_cuda()) {
    const CudaScope scope(target);
    confusion_matrix_cuda(call, scope.stream());
    return {matrix, invalid};
  }
#endif
  OPENSEG_CHECK(OPENSEG_VARIANT(cpu_isa(), confusion_matrix_cpu)(call),
                "confusion_matrix: no memory for ", num_classes, "² counters");
  return {matrix, invalid};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(openseg, CPU, m) {
  m.impl("confusion_matrix", TORCH_BOX(&confusion_matrix));
}

#if defined(OPENSEG_CUDA)
STABLE_TORCH_LIBRARY_IMPL(openseg, CUDA, m) {
  m.impl("confusion_matrix", TORCH_BOX(&confusion_matrix));
}
#endif

}  // namespace openseg
