// SPDX-License-Identifier: MIT
// What both directions share. Down a column of the output, between two rows of the input, pixels
// lie at equal steps: the logits of a class are an arithmetic sequence, their exponentials a
// geometric one, so that two exponentials serve all of them. Lest these overflow, class 0 is
// subtracted from all classes of an input pixel, which changes no softmax; where another lies
// further from it than Problem::steep, or is not finite, each pixel has exponentials of its own.
#pragma once

#include "common/bilinear.cuh"
#include "common/device.cuh"
#include "upsample_cross_entropy/upsample_cross_entropy.h"

namespace openseg {
namespace {

constexpr int threads = 128;
constexpr int blocks_per_multiprocessor = 4;  // else registers are saved for more, and spill
constexpr int batch_rows = 9;     // output rows at a time: all, from 64 to 512 with aligned corners
constexpr int chunk = warp_size;  // classes at a time
constexpr int pitch = chunk + 1;  // floats from one column to the next, lest they share banks
constexpr float log2_e = 1.44269504f;

struct Problem {
  UpsampleCrossEntropy loss;
  Axis rows;
  Axis columns;
  int first_step;  // output rows before it all lie on the first input row
  float step;      // from one output row to the next, in input rows
  float steep;     // a logit further than this from that of class 0 could overflow
  bool small;      // offsets within an image have 32 bits
};

__device__ inline float class_weight(const Problem& call, int64_t label) {
  return call.loss.weight ? call.loss.weight[label] : 1.0f;
}

__device__ inline int64_t pixel_index(const Problem& call, int row, int column) {
  return ((int64_t)blockIdx.z * call.rows.out + row) * call.columns.out + column;
}

constexpr int ignored = -1;
constexpr int out_of_range = -2;

__device__ inline int label_of(const Problem& call, int64_t pixel) {
  const int64_t label = call.loss.target_dtype == DType::uint8
                            ? static_cast<const uint8_t*>(call.loss.target)[pixel]
                            : static_cast<const int64_t*>(call.loss.target)[pixel];
  if (label == call.loss.ignore_index) {
    return ignored;
  }
  return label < 0 || label >= call.loss.classes ? out_of_range : (int)label;
}

// Not first + weight (second - first), which is NaN where both are infinite.
__device__ inline float between(float first, float second, float weight) {
  return (1.0f - weight) * first + weight * second;
}

// One column of the output between input rows `upper` and the next, interpolated across.
template <typename T>
class Column {
 public:
  __device__ Column(const Problem& call, int column, int upper) {
    const UpsampleCrossEntropy& loss = call.loss;
    const Source source = call.columns.source(column);
    const T* const logits = static_cast<const T*>(loss.logits) + blockIdx.z * loss.stride_batch;
    top_ = logits + upper * loss.stride_row;
    bottom_ = logits + call.rows.next(upper) * loss.stride_row;
    left_ = source.index * loss.stride_column;
    right_ = call.columns.next(source.index) * loss.stride_column;
    weight_ = source.weight;
  }

  __device__ float top(int64_t offset) const { return across(top_ + offset); }
  __device__ float bottom(int64_t offset) const { return across(bottom_ + offset); }

 private:
  __device__ float across(const T* row) const {
    return between(to_float(row[left_]), to_float(row[right_]), weight_);
  }

  const T* top_;
  const T* bottom_;
  int64_t left_;
  int64_t right_;
  float weight_;
};

// Output rows begin … end - 1, at equal steps between input row `upper` and the next; maybe none.
struct Sequence {
  int upper;
  int begin;
  int end;
  float start;  // of the way from one to the other
  float step;

  // At most batch_rows of the rows before `end`.
  __device__ Sequence(const Problem& call, int upper, int begin, int end)
      : upper(upper),
        begin(begin),
        end(end),
        start(begin < end ? call.rows.weight(begin, upper) : 0.0f),
        step(begin < call.first_step ? 0.0f : call.step) {
    const int most = begin < call.first_step && call.first_step < end ? call.first_step : end;
    this->end = most < begin + batch_rows ? most : begin + batch_rows;
  }

  __device__ float weight(int row) const { return start + (float)row * step; }
};

// Calls visit(class, column) for each; the lanes of a warp have what lies side by side in memory.
template <typename Visit>
__device__ void for_each_logit(bool classes_adjoin, int classes, int columns, const Visit& visit) {
  if (classes_adjoin) {
    for (int j = warp_index(); j < columns && lane_index() < classes; j += threads / warp_size) {
      visit(lane_index(), j);
    }
    return;
  }
  const int lanes = columns > warp_size / 2 ? warp_size : warp_size / 2;
  for (int k = threadIdx.x / lanes; k < classes; k += threads / lanes) {
    for (int j = threadIdx.x % lanes; j < columns; j += lanes) {
      visit(k, j);
    }
  }
}

// What a block reads of the input: some rows and columns, and a chunk of the classes, less class 0
// and as powers of 2, in shared memory. Beyond a border lies the border.
struct Stage {
  int row;
  int rows;
  int column;
  int columns;
  float* values;  // [rows, columns, pitch]

  // Returns whether all that this thread has read is finite and not steep.
  template <typename T>
  __device__ bool read(const Problem& call, int first_class, int classes) const {
    const UpsampleCrossEntropy& loss = call.loss;
    const T* const logits = static_cast<const T*>(loss.logits) + blockIdx.z * loss.stride_batch;
    bool flat = true;
    for (int i = 0; i < rows; ++i) {
      const int above = inside(row + i, call.rows.in) * (int)loss.stride_row;
      for_each_logit(loss.stride_class == 1, classes, columns, [&](int k, int j) {
        const int pixel = above + inside(column + j, call.columns.in) * (int)loss.stride_column;
        const int at = pixel + (first_class + k) * (int)loss.stride_class;
        const float value = to_float(logits[at]) - to_float(logits[pixel]);
        flat &= fabsf(value) <= call.steep;
        values[(i * columns + j) * pitch + k] = log2_e * value;
      });
    }
    return flat;
  }

  // Class 0 of the chunk at an input row, left of the column whose source this is.
  __device__ const float* at(int input_row, const Source& source) const {
    return values + ((input_row - row) * columns + source.index - column) * pitch;
  }

 private:
  static __device__ int inside(int position, int size) {
    return position < 0 ? 0 : position < size ? position : size - 1;
  }
};

// A class in a column of the output at an input row; `values` is Stage::at, `right` the weight of
// the source.
__device__ inline float across(const float* values, float right) {
  return between(values[0], values[pitch], right);
}

// A class in a column of the output at the input rows about a sequence, as Stage has it.
struct Ends {
  float top;
  float bottom;

  // The exponential of the logit at the first row of the sequence, and of each to the one before.
  __device__ float first(const Sequence& rows) const {
    return exp2_fast(between(top, bottom, rows.start));
  }
  __device__ float ratio(const Sequence& rows) const {
    return exp2_fast(rows.step * (bottom - top));
  }
};

Problem make_problem(const UpsampleCrossEntropy& loss) {
  const Axis rows = make_axis(loss.in_height, loss.out_height, loss.align_corners);
  const int last_step = rows.numerator(rows.out) - rows.numerator(rows.out - 1);
  const float step = (float)last_step / (float)rows.denominator();
  const bool clamps = !rows.align_corners && rows.in <= rows.out;
  const int64_t last = (loss.classes - 1) * loss.stride_class +
                       (loss.in_height - 1) * loss.stride_row +
                       (loss.in_width - 1) * loss.stride_column;
  constexpr float most = 60.0f;
  constexpr float most_steps = 42.0f;  // their double is as far as exponentials of floats go
  return {
      loss,
      rows,
      make_axis(loss.in_width, loss.out_width, loss.align_corners),
      clamps ? (rows.out - rows.in) / (2 * rows.in) + 1 : 0,
      step,
      most * step < most_steps ? most : most_steps / step,
      last < INT32_MAX,
  };
}

}  // namespace
}  // namespace openseg
