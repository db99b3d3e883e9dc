// SPDX-License-Identifier: MIT
#pragma once

#include "upsample_argmax/upsample_argmax.h"

namespace openseg {

// Only enqueues work on `stream`, a cudaStream_t; pointers are to memory of the current device.
void upsample_argmax_cuda(const UpsampleArgmax& call, void* stream);

}  // namespace openseg
