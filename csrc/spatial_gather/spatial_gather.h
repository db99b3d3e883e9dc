// SPDX-License-Identifier: MIT
#pragma once

#include "common/isa.h"
#include "common/map.h"

namespace openseg {

struct SpatialGather {
  Map features;  // [batch, channels C, pixels]
  Map logits;    // [batch, regions K, pixels], of any dtype
  float scale;
  Map out;            // [batch, C, K] float32, the channels of a region side by side
  float* statistics;  // [batch, 2, K]: the greatest scaled logit, and 1 / Σ exp(logit - greatest)
};

struct SpatialGatherBackward {
  SpatialGather forward;  // its `out` and `statistics` are inputs
  Map grad_out;           // [batch, C, K]
  Map grad_features;      // [batch, C, pixels]
  Map grad_logits;        // [batch, K, pixels]
};

// False when there was no memory. Features and gradients of the result and of them have one dtype.
OPENSEG_FOR_EACH_ISA(bool spatial_gather_cpu(const SpatialGather& call);
                     bool spatial_gather_backward_cpu(const SpatialGatherBackward& call);)

}  // namespace openseg
