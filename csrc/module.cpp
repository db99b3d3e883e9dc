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
  // the loss of each pixel or an empty tensor, lse, the probabilities that `ohem` ("", "openseg" or
  // "ocnet") compares or an empty tensor, and float64 [sum of the loss, its divisor, number of
  // labels out of range, position of the first]
  m.def(
      "upsample_cross_entropy(Tensor logits, Tensor target, Tensor? weight, bool align_corners,"
      " int ignore_index, float label_smoothing, str ohem, float thresh, int min_kept, bool each)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  // `scale`: the gradient of the loss of each pixel, or one number for all
  m.def(
      "upsample_cross_entropy_backward(Tensor logits, Tensor target, Tensor? weight, Tensor lse,"
      " Tensor scale, bool align_corners, int ignore_index, float label_smoothing) -> Tensor");
  // the matrix, and [number of values out of range, position of the first]
  m.def(
      "confusion_matrix(Tensor prediction, Tensor target, int num_classes, int ignore_index)"
      " -> (Tensor, Tensor)");
  // the map, and float64 [3, C]: the mean, variance and number of values that it was normalised
  // with, which are `known` or those of x
  m.def(
      "inplace_abn(Tensor x, Tensor? known, Tensor affine, float eps, str activation,"
      " float parameter) -> (Tensor, Tensor)");
  m.def(
      "inplace_abn_(Tensor(a!) x, Tensor? known, Tensor affine, float eps, str activation,"
      " float parameter) -> Tensor");
  m.def("inplace_abn_statistics(Tensor x) -> Tensor");
  // the gradient of x, and float64 [2, C]: sums over pixels, which are `known` or those here
  m.def(
      "inplace_abn_backward(Tensor grad, Tensor kept, Tensor statistics, Tensor affine,"
      " Tensor? known, float eps, str activation, float parameter, bool kept_input)"
      " -> (Tensor, Tensor)");
  m.def(
      "inplace_abn_backward_sums(Tensor grad, Tensor kept, Tensor statistics, Tensor affine,"
      " float eps, str activation, float parameter, bool kept_input) -> Tensor");
  // `allow_tf32`: products of float32 on GPUs may round their factors, as torch's switch says
  m.def(
      "object_attention(Tensor query, Tensor key, Tensor value, float scale, bool allow_tf32=False)"
      " -> Tensor");
  // gradients of query, key and value
  m.def(
      "object_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, float scale,"
      " bool allow_tf32=False) -> (Tensor, Tensor, Tensor)");
  // float32 regions, and [B, 2, K]: greatest scaled logit, 1 / Σ exp(scaled logit - greatest)
  m.def(
      "spatial_gather(Tensor features, Tensor logits, float scale, bool allow_tf32=False)"
      " -> (Tensor, Tensor)");
  // gradients of features and logits
  m.def(
      "spatial_gather_backward(Tensor grad, Tensor features, Tensor logits, Tensor regions,"
      " Tensor statistics, float scale, bool allow_tf32=False) -> (Tensor, Tensor)");
  // the result, and float32 [2, B, N]: greatest scaled score, 1 / Σ exp(scaled score - greatest);
  // without a key it is the query
  m.def(
      "self_attention(Tensor query, Tensor? key, Tensor value, float scale, bool allow_tf32=False)"
      " -> (Tensor, Tensor)");
  // gradients of query, key (empty without one) and value
  m.def(
      "self_attention_backward(Tensor grad, Tensor query, Tensor? key, Tensor value, Tensor out,"
      " Tensor statistics, float scale, bool allow_tf32=False) -> (Tensor, Tensor, Tensor)");
  // as self_attention, the statistics in the order of the groups; kind: "long" or "short"
  m.def(
      "interlaced_attention(Tensor query, Tensor? key, Tensor value, float scale, int[2] groups,"
      " str kind, bool allow_tf32=False) -> (Tensor, Tensor)");
  m.def(
      "interlaced_attention_backward(Tensor grad, Tensor query, Tensor? key, Tensor value,"
      " Tensor out, Tensor statistics, float scale, int[2] groups, str kind, bool allow_tf32=False)"
      " -> (Tensor, Tensor, Tensor)");
}

static std::string cpu_capability() {
  return openseg::isa_name(openseg::cpu_isa());
}

STABLE_TORCH_LIBRARY_IMPL(openseg, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}
