// SPDX-License-Identifier: MIT
#include "object_attention/object_attention.h"

#include <tuple>

#include "common/torch.h"
#if defined(OPENSEG_CUDA)
#include "common/torch_cuda.h"
#include "object_attention/cuda/object_attention.h"
#endif

namespace openseg {
namespace {

constexpr const char* name = "object_attention";

// The tensors as kernels walk them, kept as long as the call that points into them.
struct Inputs {
  Tensor query, key, value;

  Inputs(const Tensor& query, const Tensor& key, const Tensor& value)
      : query(walkable(query)), key(walkable(key)), value(walkable(value)) {
    OPENSEG_CHECK(query.dim() == 4 && key.dim() == 3 && value.dim() == 3,
                  "object_attention: expected query [B, D, H, W], key [B, K, D], value [B, K, Dv]");
    OPENSEG_CHECK(key.size(0) == query.size(0) && key.size(2) == query.size(1) &&
                      value.size(0) == key.size(0) && value.size(1) == key.size(1) &&
                      key.size(1) > 0,
                  "object_attention: the sizes of query, key and value do not fit");
    OPENSEG_CHECK(
        query.scalar_type() == key.scalar_type() && key.scalar_type() == value.scalar_type(),
        "object_attention: query, key and value must have one dtype");
  }

  ObjectAttention call(double scale, const Tensor& out) const {
    return {map_of(name, query), map_of(name, key), map_of(name, value), (float)scale,
            map_of(name, out)};
  }
};

Tensor object_attention(const Tensor& query, const Tensor& key, const Tensor& value, double scale,
                        [[maybe_unused]] bool allow_tf32) {
  const Inputs inputs(query, key, value);
  const Tensor out = allocate_map(query, value.size(2));
#if defined(OPENSEG_CUDA)
  if (query.is_cuda()) {
    const CudaScope scope(query);
    object_attention_cuda(inputs.call(scale, out), allow_tf32, scope.stream());
    return out;
  }
#endif
  OPENSEG_CHECK(OPENSEG_VARIANT(cpu_isa(), object_attention_cpu)(inputs.call(scale, out)),
                "object_attention: no memory for a block of pixels");
  return out;
}

std::tuple<Tensor, Tensor, Tensor> object_attention_backward(const Tensor& grad,
                                                             const Tensor& query, const Tensor& key,
                                                             const Tensor& value, double scale,
                                                             [[maybe_unused]] bool allow_tf32) {
  const Inputs inputs(query, key, value);
  const Tensor grad_out = walkable(grad);
  OPENSEG_CHECK(grad.dim() == 4 && grad.size(0) == query.size(0) && grad.size(1) == value.size(2) &&
                    grad.size(2) == query.size(2) && grad.size(3) == query.size(3) &&
                    grad.scalar_type() == query.scalar_type(),
                "object_attention: the gradient does not fit the result");
  const Tensor grad_query = allocate_map(query, query.size(1));
  const Tensor grad_key = allocate(key, {key.size(0), key.size(1), key.size(2)}, key.scalar_type());
  const Tensor grad_value =
      allocate(value, {value.size(0), value.size(1), value.size(2)}, value.scalar_type());
  const ObjectAttentionBackward call{inputs.call(scale, grad_out), map_of(name, grad_query),
                                     map_of(name, grad_key), map_of(name, grad_value)};
#if defined(OPENSEG_CUDA)
  if (query.is_cuda()) {
    const CudaScope scope(query);
    const Tensor sums =
        allocate(query, {object_attention_sums(call, allow_tf32)}, ScalarType::Float);
    object_attention_backward_cuda(call, allow_tf32, static_cast<float*>(sums.mutable_data_ptr()),
                                   scope.stream());
    return {grad_query, grad_key, grad_value};
  }
#endif
  OPENSEG_CHECK(OPENSEG_VARIANT(cpu_isa(), object_attention_backward_cpu)(call),
                "object_attention: no memory for the partial sums of key and value");
  return {grad_query, grad_key, grad_value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(openseg, CPU, m) {
  m.impl("object_attention", TORCH_BOX(&object_attention));
  m.impl("object_attention_backward", TORCH_BOX(&object_attention_backward));
}

#if defined(OPENSEG_CUDA)
STABLE_TORCH_LIBRARY_IMPL(openseg, CUDA, m) {
  m.impl("object_attention", TORCH_BOX(&object_attention));
  m.impl("object_attention_backward", TORCH_BOX(&object_attention_backward));
}
#endif

}  // namespace openseg
