// SPDX-License-Identifier: MIT
#include "interlaced_attention/interlaced_attention.h"

#include <string>

#include "common/attention_torch.h"

namespace openseg {
namespace {

constexpr const char* name = "interlaced_attention";

std::vector<MapPart> parts_of(const Tensor& query, const std::vector<int64_t>& groups,
                              const std::string& kind) {
  OPENSEG_CHECK(query.dim() == 4 && groups.size() == 2 && groups[0] > 0 && groups[1] > 0,
                "interlaced_attention: expected query [B, D, H, W] and groups (p, q)");
  OPENSEG_CHECK(kind == "long" || kind == "short", "interlaced_attention: kind is \"", kind,
                "\", expected long or short");
  return interlaced_groups(query.size(2), query.size(3), groups[0], groups[1], kind == "long");
}

std::tuple<Tensor, Tensor> interlaced_attention(const Tensor& query,
                                                const std::optional<Tensor>& key,
                                                const Tensor& value, double scale,
                                                const std::vector<int64_t>& groups,
                                                const std::string& kind, bool allow_tf32) {
  return attention(name, query, key, value, scale, parts_of(query, groups, kind), allow_tf32);
}

std::tuple<Tensor, Tensor, Tensor> interlaced_attention_backward(
    const Tensor& grad, const Tensor& query, const std::optional<Tensor>& key, const Tensor& value,
    const Tensor& out, const Tensor& statistics, double scale, const std::vector<int64_t>& groups,
    const std::string& kind, bool allow_tf32) {
  return attention_backward(name, grad, query, key, value, out, statistics, scale,
                            parts_of(query, groups, kind), allow_tf32);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(openseg, CPU, m) {
  m.impl("interlaced_attention", TORCH_BOX(&interlaced_attention));
  m.impl("interlaced_attention_backward", TORCH_BOX(&interlaced_attention_backward));
}

#if defined(OPENSEG_CUDA)
STABLE_TORCH_LIBRARY_IMPL(openseg, CUDA, m) {
  m.impl("interlaced_attention", TORCH_BOX(&interlaced_attention));
  m.impl("interlaced_attention_backward", TORCH_BOX(&interlaced_attention_backward));
}
#endif

}  // namespace openseg
