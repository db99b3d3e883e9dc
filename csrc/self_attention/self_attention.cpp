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

using torch::headeronly::MemoryFormat;

constexpr int64_t few_pixels = 192;  // that a block of a GPU reads once

bool is_in_rows(const Tensor& map) {
  return map.size(1) == 1 || map.stride(1) == 1;
}

// Every block of a GPU reads all pixels of its image: in vectors where the channels of a pixel lie
// side by side, else number by number. To copy the maps once takes less time then.
Tensor in_rows(const Tensor& map) {
  if (!map.is_cuda() || map.dim() != 4 || map.size(2) * map.size(3) <= few_pixels) {
    return map;
  }
  return is_in_rows(map) ? map : torch::stable::contiguous(map, MemoryFormat::ChannelsLast);
}

std::optional<Tensor> in_rows(const std::optional<Tensor>& map) {
  return map ? std::optional(in_rows(*map)) : map;
}

// And back: results have the layout of `like`.
Tensor laid_out(const Tensor& result, const Tensor& like) {
  return is_in_rows(like) || !is_in_rows(result) ? result : torch::stable::contiguous(result);
}

std::tuple<Tensor, Tensor> self_attention(const Tensor& query, const std::optional<Tensor>& key,
                                          const Tensor& value, double scale, bool allow_tf32) {
  const auto [out, statistics] = attention(name, in_rows(query), in_rows(key), in_rows(value),
                                           scale, parts_of(query), allow_tf32);
  return {laid_out(out, query), statistics};
}

std::tuple<Tensor, Tensor, Tensor> self_attention_backward(const Tensor& grad, const Tensor& query,
                                                           const std::optional<Tensor>& key,
                                                           const Tensor& value, const Tensor& out,
                                                           const Tensor& statistics, double scale,
                                                           bool allow_tf32) {
  const auto [grad_query, grad_key, grad_value] =
      attention_backward(name, in_rows(grad), in_rows(query), in_rows(key), in_rows(value),
                         in_rows(out), statistics, scale, parts_of(query), allow_tf32);
  return {laid_out(grad_query, query), key ? laid_out(grad_key, *key) : grad_key,
          laid_out(grad_value, value)};
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
