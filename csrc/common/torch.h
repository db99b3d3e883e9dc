// SPDX-License-Identifier: MIT
// What csrc/<op>/<op>.cpp needs of torch, by its stable ABI alone.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "common/check.h"
#include "common/dtype.h"

namespace openseg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The dtype for kernels; throws for one that `operator_name` does not serve.
DType floating_dtype(const char* operator_name, const Tensor& tensor);
DType integral_dtype(const char* operator_name, const Tensor& tensor);

// An uninitialised contiguous tensor on the device of `like`. Out of memory is told in torch's
// words.
Tensor allocate(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype);

}  // namespace openseg
