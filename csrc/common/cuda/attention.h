// SPDX-License-Identifier: MIT
#pragma once

#include "common/attention.h"

namespace openseg {

// D and Dv may be up to 512. These only enqueue work on `stream`, a cudaStream_t; pointers are to
// memory of the current device. allow_tf32: float32 numbers may be rounded to TF32 in products.
void attention_cuda(const Attention& call, bool allow_tf32, void* stream);
// delta: float32 [batch, sets, pixels of a set], scratch
void attention_backward_cuda(const AttentionBackward& call, float* delta, bool allow_tf32,
                             void* stream);

}  // namespace openseg
