// SPDX-License-Identifier: MIT
#pragma once

#include "common/isa.h"
#include "common/map.h"

namespace openseg {

enum class Activation { leaky_relu, relu, elu };  // the identity is leaky with a slope of 1

// z = activation(y), y = gain · x̂ + bias of the normalised x̂. All maps lie in memory in the same
// order.
struct InPlaceAbn {
  Map x;
  Map z;                // may be x
  const double* known;  // [3, channels] as `statistics`, or null: they are those of x
  const float* affine;  // [2, channels]: gain, which is positive, and bias
  float eps;
  Activation activation;
  float parameter;     // the negative slope, or α of ELU
  double* statistics;  // [3, channels]: mean, biased variance, number of values
};

struct InPlaceAbnBackward {
  Map grad_z;
  Map kept;  // z, or x
  bool kept_input;
  const double* statistics;  // those of the forward pass; an infinite number for constants
  const float* affine;
  float eps;
  Activation activation;
  float parameter;
  Map grad_x;
  const double* known;  // [2, channels] as `sums`, over all processes, or null: they are those here
  double* sums;         // [2, channels]: Σ dy and Σ dy (y - bias), with dy the gradient of y
};

// False when there was no memory. The second of each pair is the first half of its work alone.
OPENSEG_FOR_EACH_ISA(bool inplace_abn_cpu(const InPlaceAbn& call);
                     bool inplace_abn_statistics_cpu(const Map& x, double* statistics);
                     bool inplace_abn_backward_cpu(const InPlaceAbnBackward& call);
                     bool inplace_abn_backward_sums_cpu(const InPlaceAbnBackward& call);)

}  // namespace openseg
