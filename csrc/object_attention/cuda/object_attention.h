// SPDX-License-Identifier: MIT
#pragma once

#include "object_attention/object_attention.h"

namespace openseg {

// These only enqueue work on `stream`, a cudaStream_t; pointers are to memory of the current
// device. `allow_tf32` lets products of float32 round their factors to TF32.
void object_attention_cuda(const ObjectAttention& call, bool allow_tf32, void* stream);

// `sums`: scratch of object_attention_sums(call) floats, aligned to 16 bytes.
void object_attention_backward_cuda(const ObjectAttentionBackward& call, bool allow_tf32,
                                    float* sums, void* stream);
int64_t object_attention_sums(const ObjectAttentionBackward& call, bool allow_tf32);

}  // namespace openseg
