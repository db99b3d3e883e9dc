// SPDX-License-Identifier: MIT
// What csrc/<op>/<op>.cpp needs of torch, by its stable ABI alone.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "common/check.h"
#include "common/dtype.h"
#include "common/map.h"

namespace openseg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The dtype for kernels; throws for one that `operator_name` does not serve.
DType floating_dtype(const char* operator_name, const Tensor& tensor);
DType integral_dtype(const char* operator_name, const Tensor& tensor);

// An uninitialised contiguous tensor on the device of `like`. Out of memory is told in torch's
// words.
Tensor allocate(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype);

// An uninitialised [B, channels, H, W] with the batch, size, dtype and layout of the map `like`.
Tensor allocate_map(const Tensor& like, int64_t channels);

// An uninitialised tensor of the size, dtype and layout of `like`.
Tensor allocate_like(const Tensor& like);

// The tensor itself where kernels can walk it: [B, C, H, W] with one stride from pixel to pixel, or
// [B, K, C], and a stride of 1 for pixels (regions) or channels; else a contiguous copy.
Tensor walkable(const Tensor& tensor);

// A walkable [B, C, H, W], or [B, K, C] as a map of K pixels. The tensor has to outlive it.
Map map_of(const char* operator_name, const Tensor& tensor);

}  // namespace openseg
