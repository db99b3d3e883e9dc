// SPDX-License-Identifier: MIT
#include "self_attention/self_attention.h"

#include "common/attention_torch.h"

namespace openseg {
namespace {

constexpr const char* name = "self_attention";

std::vector<MapPart> parts_of(const Tensor& query) {
  OPENSEG_CHECK(query.dim() == 4, "self_attention: expected query [B, D, H, W]");
  return {{0, whole_image(query.size(2) * query.size(3))}};
}

std::tuple<Tensor, Tensor> self_attention(const Tensor& query, const std::optional<Tensor>& key,
                                          const Tensor& value, double scale, bool allow_tf32) {
  return attention(name, query, key, value, scale, parts_of(query), allow_tf32);
}

std::tuple<Tensor, Tensor, Tensor> self_attention_backward(const Tensor& grad, const Tensor& query,
                                                           const std::optional<Tensor>& key,
                                                           const Tensor& value, const Tensor& out,
                                                           const Tensor& statistics, double scale,
                                                           bool allow_tf32) {
  return attention_backward(name, grad, query, key, value, out, statistics, scale, parts_of(query),
                            allow_tf32);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(openseg, CPU, m) {
  m.impl("self_attention", TORCH_BOX(&self_attention));
  m.impl("self_attention_backward", TORCH_BOX(&self_attention_backward));
}

#if defined(OPENSEG_CUDA)
STABLE_TORCH_LIBRARY_IMPL(openseg, CUDA, m) {
  m.impl("self_attention", TORCH_BOX(&self_attention));
  m.impl("self_attention_backward", TORCH_BOX(&self_attention_backward));
}
#endif

}  // namespace openseg
