// SPDX-License-Identifier: MIT
// Attention in sets of which a block takes a whole one. The results are those of
// common/cuda/attention.h, whose launchers try these first: false where the sets are too long, and
// nothing was started.
#pragma once

#include "common/attention.h"

namespace openseg {

bool whole_sets_forward_cuda(const Attention& call, bool allow_tf32, void* stream);
bool whole_sets_backward_cuda(const AttentionBackward& call, bool allow_tf32, void* stream);

}  // namespace openseg
