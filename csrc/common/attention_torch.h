// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "common/attention.h"
#include "common/torch.h"

namespace openseg {

// The result, and the statistics of its softmax: float32 [2, B, N], but those of a part of the map
// together. Without a key it is the query. `parts` are the whole map.
std::tuple<Tensor, Tensor> attention(const char* operator_name, const Tensor& query,
                                     const std::optional<Tensor>& key, const Tensor& value,
                                     double scale, const std::vector<MapPart>& parts,
                                     bool allow_tf32);

// Gradients of query, key (an empty tensor without one) and value.
std::tuple<Tensor, Tensor, Tensor> attention_backward(
    const char* operator_name, const Tensor& grad, const Tensor& query,
    const std::optional<Tensor>& key, const Tensor& value, const Tensor& out,
    const Tensor& statistics, double scale, const std::vector<MapPart>& parts, bool allow_tf32);

}  // namespace openseg
