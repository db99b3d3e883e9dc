// SPDX-License-Identifier: MIT
#pragma once

#include "common/isa.h"
#include "common/map.h"

namespace openseg {

struct ObjectAttention {
  Map query;  // [batch, channels D, pixels]
  Map key;    // [batch, D, regions K]
  Map value;  // [batch, Dv, K]
  float scale;
  Map out;  // [batch, Dv, pixels]
};

struct ObjectAttentionBackward {
  ObjectAttention forward;  // its `out` is the gradient of the result
  Map grad_query;           // [batch, D, pixels]
  Map grad_key;             // [batch, D, K], the channels of a region side by side
  Map grad_value;           // [batch, Dv, K], likewise
};

// False when there was no memory. All maps have one dtype.
OPENSEG_FOR_EACH_ISA(bool object_attention_cpu(const ObjectAttention& call);
                     bool object_attention_backward_cpu(const ObjectAttentionBackward& call);)

}  // namespace openseg
