// SPDX-License-Identifier: MIT
#pragma once

#include "spatial_gather/spatial_gather.h"

namespace openseg {

// These only enqueue work on `stream`, a cudaStream_t; pointers are to memory of the current
// device. `allow_tf32` lets products of float32 round their factors to TF32.
//
// `scratch`: spatial_gather_scratch(call) floats, aligned to 16 bytes.
void spatial_gather_cuda(const SpatialGather& call, bool allow_tf32, float* scratch, void* stream);
int64_t spatial_gather_scratch(const SpatialGather& call, bool allow_tf32);

// `means`: scratch of [batch, K] floats.
void spatial_gather_backward_cuda(const SpatialGatherBackward& call, bool allow_tf32, float* means,
                                  void* stream);

}  // namespace openseg
