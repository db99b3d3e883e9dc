// SPDX-License-Identifier: MIT
// The library and the schemas of all its operators: shapes are in csrc/<op>/<op>.h. Each operator
// is private to openseg.ops, which checks arguments, chooses the backend and adds the gradient.
#include <torch/csrc/stable/library.h>

#include <string>

#include "common/isa.h"

STABLE_TORCH_LIBRARY(openseg, m) {
  m.def("cpu_capability() -> str");
  // labels, and the confidence or an empty tensor
  m.def(
      "upsample_argmax(Tensor logits, SymInt[2] size, bool align_corners, bool confidence)"
      " -> (Tensor, Tensor)");
  // the matrix, and [number of values out of range, position of the first]
  m.def(
      "confusion_matrix(Tensor prediction, Tensor target, int num_classes, int ignore_index)"
      " -> (Tensor, Tensor)");
  m.def("object_attention(Tensor query, Tensor key, Tensor value, float scale) -> Tensor");
  // gradients of query, key and value
  m.def(
      "object_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, float scale)"
      " -> (Tensor, Tensor, Tensor)");
  // float32 regions, and [B, 2, K]: greatest scaled logit, 1 / Σ exp(scaled logit - greatest)
  m.def("spatial_gather(Tensor features, Tensor logits, float scale) -> (Tensor, Tensor)");
  // gradients of features and logits
  m.def(
      "spatial_gather_backward(Tensor grad, Tensor features, Tensor logits, Tensor regions,"
      " Tensor statistics, float scale) -> (Tensor, Tensor)");
}

static std::string cpu_capability() {
  return openseg::isa_name(openseg::cpu_isa());
}

STABLE_TORCH_LIBRARY_IMPL(openseg, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}
