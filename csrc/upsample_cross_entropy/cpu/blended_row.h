// SPDX-License-Identifier: MIT
// One output row of all classes, interpolated down but not yet across, and the geometry of the way
// across. Shared by the two directions.
//
// Across, the pixels of one cell (the gap between two neighbouring input columns) lie at equal
// steps, so the logit of a class is an arithmetic sequence there and its exponential a geometric
// one: two exponentials serve a whole cell, a vector holds `lanes` cells. Lest anything overflow,
// the greatest logit of each input pixel is subtracted first, which changes no softmax, and rows
// where logits lie further apart than `steep` take the plain way, unshifted.
#pragma once

#include "common/bilinear.h"
#include "upsample_cross_entropy/upsample_cross_entropy.h"

namespace openseg::OPENSEG_ISA {
namespace {

constexpr float steep = 60.0f;
constexpr int most_steps = lanes == 16 ? 16 : 10;  // accumulators that the registers hold
constexpr int64_t grain_values = 1 << 18;          // interpolated logits worth a thread

template <int Value>
struct Constant {
  static constexpr int value = Value;
};

// Calls run(Constant<steps>), 1 <= steps <= Most.
template <int Most, typename Run>
inline void with_steps(int steps, const Run& run) {
  if constexpr (Most > 1) {
    if (steps < Most) {
      return with_steps<Most - 1>(steps, run);
    }
  }
  run(Constant<Most>{});
}

// The value at `right` of the way from a to b. At the far end, the last pixel of an aligned row, b
// stands for a too: even a NaN there does not count.
inline float interpolate(float a, float b, float right) {
  return (right == 1.0f ? b : a) * (1.0f - right) + b * right;
}

inline vfloat interpolate(vfloat a, vfloat b, vfloat right) {
  return (right == 1.0f ? b : a) * (1.0f - right) + b * right;
}

// A cell c lies between the columns c and c + 1 of a row; without aligned corners a row has a copy
// of the border on either side. The i-th pixel of cell c has the slot i * pitch + c.
class Geometry {
 public:
  explicit Geometry(const UpsampleCrossEntropy& call)
      : border(call.align_corners ? 0 : 1),
        cells(call.align_corners ? (call.in_width > 1 ? call.in_width - 1 : 1) : call.in_width + 1),
        pitch(round_up(cells, lanes)),
        // an odd number of vectors, lest the classes of a column share a few sets of the cache
        row_pitch((pitch / lanes + 1) / 2 * 2 * lanes + lanes),
        call_(call) {
    int64_t cell = -1;
    for (int64_t x = 0, i = 0; x < call.out_width; ++x) {
      const int64_t next = place(x).cell;
      i = next == cell ? i + 1 : 0;
      cell = next;
      steps = i < steps ? steps : (int)i + 1;
    }
  }

  int64_t bytes() const { return (steps * pitch + 2 * call_.out_width) * 4 + 3 * 64; }

  void build(Scratch* scratch) {
    right = scratch->take<float>(steps * pitch);
    slot = scratch->take<int32_t>(call_.out_width);
    cell = scratch->take<int32_t>(call_.out_width);
    std::memset(right, 0, steps * pitch * sizeof(float));
    for (int64_t x = 0, i = 0; x < call_.out_width; ++x) {
      const Place at = place(x);
      i = x > 0 && at.cell == cell[x - 1] ? i + 1 : 0;
      cell[x] = (int32_t)at.cell;
      slot[x] = (int32_t)(i * pitch + at.cell);
      right[slot[x]] = at.right;
    }
    const double columns = call_.align_corners ? call_.in_width - 1 : call_.in_width;
    const double pixels = call_.align_corners ? call_.out_width - 1 : call_.out_width;
    step = steps > 1 ? (float)(columns / pixels) : 0.0f;
  }

  const int64_t border;     // columns left of the first of the image
  const int64_t cells;      // in a row
  const int64_t pitch;      // cells up to whole vectors
  const int64_t row_pitch;  // columns from one class to the next
  int steps = 1;            // the most pixels in a cell
  float step = 0;           // from one pixel to the next, in cells
  float* right = nullptr;   // [steps * pitch] place of a slot's pixel in its cell, 0 to 1
  int32_t* slot = nullptr;  // [out_width]
  int32_t* cell = nullptr;  // [out_width]

 private:
  struct Place {
    int64_t cell;
    float right;
  };

  Place place(int64_t x) const {
    const double in = (double)call_.in_width, out = (double)call_.out_width;
    double at = ((double)x + 0.5) * in / out + 0.5;
    if (call_.align_corners) {
      at = call_.out_width > 1 ? (double)x * (in - 1) / (out - 1) : 0.0;
    }
    const int64_t cell = (int64_t)at < cells - 1 ? (int64_t)at : cells - 1;
    return {cell, (float)(at - (double)cell)};
  }

  const UpsampleCrossEntropy& call_;
};

class BlendedRow {
 public:
  BlendedRow(const UpsampleCrossEntropy& call, const Geometry& geometry)
      : call_(call), geometry_(geometry), smooth_(call.label_smoothing > 0) {}

  int64_t bytes() const { return ((3 * rows() + 3) * geometry_.row_pitch) * 4 + 4 * 64; }

  void build(Scratch* scratch, const float* weight) {
    weight_ = weight;
    for (int64_t k = 0; k < call_.classes; ++k) {
      weights_ += weight[k];
    }
    upper_ = scratch->take<float>((rows() + 1) * geometry_.row_pitch);
    lower_ = scratch->take<float>((rows() + 1) * geometry_.row_pitch);
    blended_ = scratch->take<float>(rows() * geometry_.row_pitch);
    zeros_ = scratch->take<float>(geometry_.row_pitch);
    std::memset(zeros_, 0, geometry_.row_pitch * sizeof(float));
  }

  // With label smoothing one more than classes: the last is their mean by weight.
  int64_t rows() const { return call_.classes + smooth_; }
  const float* row(int64_t k) const { return blended_ + k * geometry_.row_pitch; }
  float weights() const { return weights_; }  // their sum
  bool is_steep() const { return upper_steep_ || lower_steep_; }

  // The plain way: the logits of class k at the pixels of `slot` and the lanes - 1 slots after it.
  vfloat values(int64_t k, int64_t slot) const {
    const float* const at = row(k) + slot % geometry_.pitch;
    return interpolate(load<vfloat>(at), load<vfloat>(at + 1),
                       load<vfloat>(geometry_.right + slot));
  }

  vfloat greatest(int64_t slot) const {
    vfloat best = splat(-__builtin_inff());
    for (int64_t k = 0; k < call_.classes; ++k) {
      best = max(values(k, slot), best);
    }
    return best;
  }

  void move_to(int64_t image, const Source& source) {
    const int64_t y = source.index;
    if (image == image_ && y == y_ + 1) {
      float* const free = upper_;
      upper_ = lower_;
      lower_ = free;
      upper_steep_ = lower_steep_;
      lower_steep_ = read(image, y + 1, lower_);
    } else if (image != image_ || y != y_) {
      upper_steep_ = read(image, y, upper_);
      lower_steep_ = read(image, y + 1, lower_);
    }
    image_ = image;
    y_ = y;
    blend(source.weight);
  }

 private:
  void blend(float weight) {
    const vfloat down = splat(weight), up = splat(1.0f - weight);
    const int64_t pitch = geometry_.row_pitch;
    const float* const upper_shift = is_steep() ? zeros_ : upper_ + rows() * pitch;
    const float* const lower_shift = is_steep() ? zeros_ : lower_ + rows() * pitch;
    for (int64_t k = 0; k < rows(); ++k) {
      for (int64_t x = 0; x < pitch; x += lanes) {
        const vfloat above = load<vfloat>(upper_ + k * pitch + x) - load<vfloat>(upper_shift + x);
        const vfloat below = load<vfloat>(lower_ + k * pitch + x) - load<vfloat>(lower_shift + x);
        store(blended_ + k * pitch + x, above * up + below * down);
      }
    }
  }

  // Reads an input row, the last one in place of one below it. Returns whether it is steep.
  bool read(int64_t image, int64_t y, float* first) {
    const int64_t inside = y < call_.in_height ? y : call_.in_height - 1;
    const int64_t offset = image * call_.stride_batch + inside * call_.stride_row;
    OPENSEG_DISPATCH_FLOATING(call_.dtype,
                              widen_rows((const scalar_t*)call_.logits + offset, call_.classes,
                                         call_.in_width, call_.stride_class, call_.stride_column,
                                         geometry_.row_pitch, first + geometry_.border))
    const int64_t last = geometry_.border + call_.in_width - 1;
    for (int64_t k = 0; k < call_.classes; ++k) {
      float* const row = first + k * geometry_.row_pitch;
      row[0] = row[geometry_.border];
      for (int64_t x = last + 1; x < geometry_.row_pitch; ++x) {
        row[x] = row[last];
      }
    }
    return find_shift(first);
  }

  // Fills the rows that follow the classes: their mean, and the shift, which takes its place where
  // no mean is needed.
  bool find_shift(float* first) const {
    const int64_t pitch = geometry_.row_pitch;
    vint outside{};
    for (int64_t x = 0; x < pitch; x += lanes) {
      vfloat best = splat(-__builtin_inff()), sum{};
      for (int64_t k = 0; k < call_.classes; ++k) {
        best = max(load<vfloat>(first + k * pitch + x), best);
      }
      for (int64_t k = 0; k < call_.classes; ++k) {
        const vfloat value = load<vfloat>(first + k * pitch + x);
        outside |= ~(value - best >= -steep);  // NaN too
        sum += value * weight_[k];
      }
      store(first + call_.classes * pitch + x, sum / (weights_ > 0 ? weights_ : 1.0f));
      store(first + rows() * pitch + x, best);
    }
    int32_t any = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      any |= outside[lane];
    }
    return any != 0;
  }

  const UpsampleCrossEntropy& call_;
  const Geometry& geometry_;
  const bool smooth_;
  const float* weight_ = nullptr;
  float weights_ = 0;
  float* upper_ = nullptr;    // [rows + 1, row_pitch] input row y, and the shift
  float* lower_ = nullptr;    // [rows + 1, row_pitch] input row y + 1, and the shift
  float* blended_ = nullptr;  // [rows, row_pitch]
  float* zeros_ = nullptr;    // [row_pitch]
  int64_t image_ = -1;
  int64_t y_ = -2;
  bool upper_steep_ = false, lower_steep_ = false;
};

constexpr int32_t ignored = -1, invalid = -2;

// The classes of one row of pixels.
inline void read_labels(const UpsampleCrossEntropy& call, int64_t row, int32_t* labels) {
  OPENSEG_DISPATCH_INTEGRAL(call.target_dtype, {
    const scalar_t* target = (const scalar_t*)call.target + row * call.out_width;
    for (int64_t x = 0; x < call.out_width; ++x) {
      const int64_t label = target[x];
      const bool inside = (uint64_t)label < (uint64_t)call.classes;
      labels[x] = label == call.ignore_index ? ignored : inside ? (int32_t)label : invalid;
    }
  })
}

inline void copy_weights(const UpsampleCrossEntropy& call, float* weight) {
  for (int64_t k = 0; k < call.classes; ++k) {
    weight[k] = call.weight ? call.weight[k] : 1.0f;
  }
}

}  // namespace
}  // namespace openseg::OPENSEG_ISA
