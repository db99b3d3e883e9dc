// SPDX-License-Identifier: MIT
// Attention of one head among the pixels of a map: what self_attention and interlaced_attention
// have in common. Kernels are in common/cpu.
#pragma once

#include "common/isa.h"
#include "common/map.h"

namespace openseg {

// The pixels that attend to each other: an image has down * across sets of lines * columns pixels.
// The strides are in pixels of the map.
struct PixelSets {
  int64_t down, across, lines, columns;
  int64_t stride_down, stride_across, stride_line, stride_column;

  int64_t pixels() const { return lines * columns; }  // of one set
  int64_t count() const { return down * across; }     // of an image
};

// The sets of equal size of a map: their pixels count from pixel `first` of it.
struct MapPart {
  int64_t first;
  PixelSets sets;
};

struct Attention {
  Map query;  // [batch, channels D, pixels]
  Map key;    // [batch, D, pixels]; `shared`: the query again
  Map value;  // [batch, Dv, pixels]
  bool shared;
  float scale;
  PixelSets sets;
  Map out;  // [batch, Dv, pixels]
  // [2, batch, sets, pixels of a set]: the greatest scaled score, 1 / Σ exp(score - greatest)
  float* statistics;
};

struct AttentionBackward {
  Attention forward;  // its `out` and `statistics` are inputs
  Map grad_out;       // [batch, Dv, pixels]
  Map grad_query;     // [batch, D, pixels]; `shared`: of query and key together
  Map grad_key;       // [batch, D, pixels]; `shared`: not there
  Map grad_value;     // [batch, Dv, pixels]
};

// False when there was no memory. All maps have one dtype.
OPENSEG_FOR_EACH_ISA(bool attention_cpu(const Attention& call);
                     bool attention_backward_cpu(const AttentionBackward& call);)

}  // namespace openseg
