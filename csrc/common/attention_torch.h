// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <tuple>

#include "common/attention.h"
#include "common/torch.h"

namespace openseg {

// The result, and the statistics [2, B, N] of its softmax. Without a key it is the query.
std::tuple<Tensor, Tensor> attention(const char* operator_name, const Tensor& query,
                                     const std::optional<Tensor>& key, const Tensor& value,
                                     double scale, const PixelSets& sets, bool allow_tf32);

// Gradients of query, key (an empty tensor without one) and value.
std::tuple<Tensor, Tensor, Tensor> attention_backward(const char* operator_name, const Tensor& grad,
                                                      const Tensor& query,
                                                      const std::optional<Tensor>& key,
                                                      const Tensor& value, const Tensor& out,
                                                      const Tensor& statistics, double scale,
                                                      const PixelSets& sets, bool allow_tf32);

}  // namespace openseg
