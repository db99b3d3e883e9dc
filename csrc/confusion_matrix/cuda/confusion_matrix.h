// SPDX-License-Identifier: MIT
#pragma once

#include "confusion_matrix/confusion_matrix.h"

namespace openseg {

// Only enqueues work on `stream`, a cudaStream_t; pointers are to memory of the current device.
void confusion_matrix_cuda(const ConfusionMatrix& call, void* stream);

}  // namespace openseg
