// SPDX-License-Identifier: MIT
#include "spatial_gather/spatial_gather.h"

#include <tuple>

#include "common/torch.h"
#if defined(OPENSEG_CUDA)
#include "common/torch_cuda.h"
#include "spatial_gather/cuda/spatial_gather.h"
#endif

namespace openseg {
namespace {

constexpr const char* name = "spatial_gather";

void check_inputs(const Tensor& features, const Tensor& logits) {
  OPENSEG_CHECK(features.dim() == 4 && logits.dim() == 4 && features.size(0) == logits.size(0) &&
                    features.size(2) == logits.size(2) && features.size(3) == logits.size(3) &&
                    features.size(2) > 0 && features.size(3) > 0,
                "spatial_gather: expected features [B, C, H, W] and logits [B, K, H, W]");
}

std::tuple<Tensor, Tensor> spatial_gather(const Tensor& features, const Tensor& logits,
                                          double scale, [[maybe_unused]] bool allow_tf32) {
  check_inputs(features, logits);
  const Tensor from = walkable(features), scores = walkable(logits);
  const std::vector<int64_t> sizes{features.size(0), logits.size(1), features.size(1)};
  const Tensor out = allocate(features, sizes, ScalarType::Float);
  const Tensor statistics =
      allocate(features, {features.size(0), 2, logits.size(1)}, ScalarType::Float);
  const SpatialGather call{map_of(name, from), map_of(name, scores), (float)scale,
                           map_of(name, out), static_cast<float*>(statistics.mutable_data_ptr())};
#if defined(OPENSEG_CUDA)
  if (features.is_cuda()) {
    const CudaScope scope(features);
    const Tensor scratch =
        allocate(features, {spatial_gather_scratch(call, allow_tf32)}, ScalarType::Float);
    spatial_gather_cuda(call, allow_tf32, static_cast<float*>(scratch.mutable_data_ptr()),
                        scope.stream());
    return {out, statistics};
  }
#endif
  OPENSEG_CHECK(OPENSEG_VARIANT(cpu_isa(), spatial_gather_cpu)(call),
                "spatial_gather: no memory for the partial sums of regions");
  return {out, statistics};
}

std::tuple<Tensor, Tensor> spatial_gather_backward(const Tensor& grad, const Tensor& features,
                                                   const Tensor& logits, const Tensor& regions,
                                                   const Tensor& statistics, double scale,
                                                   [[maybe_unused]] bool allow_tf32) {
  check_inputs(features, logits);
  for (const Tensor& tensor : {grad, regions}) {
    OPENSEG_CHECK(tensor.dim() == 3 && tensor.size(0) == features.size(0) &&
                      tensor.size(1) == logits.size(1) && tensor.size(2) == features.size(1),
                  "spatial_gather: the gradient does not fit the result");
  }
  const Tensor from = walkable(features), scores = walkable(logits);
  const Tensor grad_out = walkable(grad), out = walkable(regions);
  const Tensor known = torch::stable::contiguous(statistics);
  OPENSEG_CHECK(grad.scalar_type() == features.scalar_type() &&
                    regions.scalar_type() == ScalarType::Float &&
                    known.scalar_type() == ScalarType::Float &&
                    known.numel() == 2 * features.size(0) * logits.size(1),
                "spatial_gather: regions and statistics [B, 2, K] must be float32, the gradient of "
                "the dtype of the features");
  const Tensor grad_features = allocate_map(features, features.size(1));
  const Tensor grad_logits = allocate_map(logits, logits.size(1));
  const SpatialGatherBackward call{
      {map_of(name, from), map_of(name, scores), (float)scale, map_of(name, out),
       const_cast<float*>(static_cast<const float*>(known.const_data_ptr()))},
      map_of(name, grad_out),
      map_of(name, grad_features),
      map_of(name, grad_logits),
  };
#if defined(OPENSEG_CUDA)
  if (features.is_cuda()) {
    const CudaScope scope(features);
    const Tensor means = allocate(features, {features.size(0), logits.size(1)}, ScalarType::Float);
    spatial_gather_backward_cuda(call, allow_tf32, static_cast<float*>(means.mutable_data_ptr()),
                                 scope.stream());
    return {grad_features, grad_logits};
  }
#endif
  OPENSEG_CHECK(OPENSEG_VARIANT(cpu_isa(), spatial_gather_backward_cpu)(call),
                "spatial_gather: no memory for a block of pixels");
  return {grad_features, grad_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(openseg, CPU, m) {
  m.impl("spatial_gather", TORCH_BOX(&spatial_gather));
  m.impl("spatial_gather_backward", TORCH_BOX(&spatial_gather_backward));
}

#if defined(OPENSEG_CUDA)
STABLE_TORCH_LIBRARY_IMPL(openseg, CUDA, m) {
  m.impl("spatial_gather", TORCH_BOX(&spatial_gather));
  m.impl("spatial_gather_backward", TORCH_BOX(&spatial_gather_backward));
}
#endif

}  // namespace openseg
