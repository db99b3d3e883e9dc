// SPDX-License-Identifier: MIT
#pragma once

#include "common/attention.h"

namespace openseg {

// attention_backward_cuda where key is query, on sm_90 alone, for maps of 193 to 256 channels of 16
// bits side by side in aligned vectors. False where it does not serve the call.
bool attention_backward_sm90(const AttentionBackward& call, const float* delta, void* stream);

}  // namespace openseg
