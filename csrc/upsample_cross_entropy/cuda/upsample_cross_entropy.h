// SPDX-License-Identifier: MIT
#pragma once

#include "upsample_cross_entropy/upsample_cross_entropy.h"

namespace openseg {

// These only enqueue work on `stream`, a cudaStream_t; pointers are to memory of the current
// device.
void upsample_cross_entropy_cuda(const UpsampleCrossEntropy& call, void* stream);
void upsample_cross_entropy_backward_cuda(const UpsampleCrossEntropy& call, void* stream);

int64_t upsample_cross_entropy_partials(const UpsampleCrossEntropy& call);

}  // namespace openseg
