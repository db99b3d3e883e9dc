// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace openseg {

struct ConfusionMatrix {
  const void* prediction;  // [count] uint8, int32 or int64
  DType prediction_dtype;
  const void* target;  // [count]
  DType target_dtype;
  int64_t count;
  int64_t num_classes;
  int64_t ignore_index;
  int64_t* matrix;   // [num_classes, num_classes], zeros on entry; row = target
  int64_t* invalid;  // [2], zeros on entry: values out of range, position of the first
};

// False when there was no memory.
OPENSEG_FOR_EACH_ISA(bool confusion_matrix_cpu(const ConfusionMatrix& call);)

}  // namespace openseg
