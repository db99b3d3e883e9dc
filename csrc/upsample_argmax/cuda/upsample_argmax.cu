// SPDX-License-Identifier: MIT
// A thread owns one column of the output between two rows of the input: it interpolates across once
// for each class, and then down by one multiply-add for each of its output pixels, which keep their
// best class in registers. Lanes that share an input pixel read it in one access, in either memory
// format, so no logits are staged in shared memory.
//
// Most cells need none of this: where the same class is the greatest at all four corners, it is the
// greatest of every pixel between them. A block looks for it first, once for each input pixel.
#include "upsample_argmax/cuda/upsample_argmax.h"

#include "common/bilinear.cuh"
#include "common/device.cuh"

namespace openseg {
namespace {

constexpr int threads = 128;
constexpr int batch_rows = 8;  // output rows at a time: all of them for upsampling by 8

struct Call {
  UpsampleArgmax upsample;
  Axis rows;
  Axis columns;
  int corner_columns;  // of the input that the columns of a block may lie between, or 0: too many
};

// The four corners of an output pixel, for one class.
template <typename T>
struct Corners {
  const T* top_left;
  const T* top_right;
  const T* bottom_left;
  const T* bottom_right;
  float weight;  // of the right ones

  __device__ void move(int64_t elements) {
    top_left += elements;
    top_right += elements;
    bottom_left += elements;
    bottom_right += elements;
  }
};

struct Winners {
  float value[batch_rows];
  float sum[batch_rows];  // of exp(logit - value) over the classes
  int label[batch_rows];
};

// NaN counts as the greatest value, as in torch.argmax.
template <bool with_confidence, bool careful>
__device__ void challenge(float value, int label, int row, Winners& winners) {
  const float best = winners.value[row];
  const bool wins = value > best || (careful && value != value && best == best);
  if (with_confidence && !(careful && value == -infinity())) {
    const float lesser = exp_fast(wins ? best - value : value - best);
    winners.sum[row] = wins ? winners.sum[row] * lesser + 1.0f : winners.sum[row] + lesser;
  }
  winners.value[row] = wins ? value : best;
  winners.label[row] = wins ? label : winners.label[row];
}

// Returns whether all logits are finite. Only the careful form is right for others: it interpolates
// by w0 a + w1 b, which is infinite where a and b are, and NaN only where eager PyTorch has NaN.
template <bool with_confidence, bool careful, typename T>
__device__ bool scan(const Call& call, Corners<T> corners, const float (&weights)[batch_rows],
                     Winners& winners) {
#pragma unroll
  for (int row = 0; row < batch_rows; ++row) {
    winners.value[row] = -infinity();
    winners.sum[row] = 0;
    winners.label[row] = 0;
  }
  const float right = corners.weight;
  const float left = 1.0f - right;
  float zero = 0;
  for (int label = 0; label < call.upsample.classes; ++label) {
    const float top = left * to_float(*corners.top_left) + right * to_float(*corners.top_right);
    const float bottom =
        left * to_float(*corners.bottom_left) + right * to_float(*corners.bottom_right);
    corners.move(call.upsample.stride_class);
    zero += 0.0f * top + 0.0f * bottom;
#pragma unroll
    for (int row = 0; row < batch_rows; ++row) {
      const float value = careful ? (1.0f - weights[row]) * top + weights[row] * bottom
                                  : top + weights[row] * (bottom - top);
      challenge<with_confidence, careful>(value, label, row, winners);
    }
  }
  return zero == 0;
}

constexpr int unknown = -1;

// The first of the greatest classes of an input pixel, unknown where a logit is not finite.
template <typename T>
__device__ int greatest_class(const Call& call, const T* pixel) {
  float best = -infinity();
  float zero = 0;
  int label = 0;
#pragma unroll 8
  for (int k = 0; k < call.upsample.classes; ++k) {
    const float value = to_float(*pixel);
    pixel += call.upsample.stride_class;
    zero += 0.0f * value;
    label = value > best ? k : label;
    best = value > best ? value : best;
  }
  return zero == 0 ? label : unknown;
}

__device__ void write_label(const UpsampleArgmax& upsample, int64_t pixel, int label) {
  if (upsample.classes <= most_uint8_classes) {
    static_cast<uint8_t*>(upsample.labels)[pixel] = (uint8_t)label;
  } else {
    static_cast<int64_t*>(upsample.labels)[pixel] = label;
  }
}

template <typename T, bool with_confidence>
__global__ void __launch_bounds__(threads) upsample_argmax_kernel(Call call) {
  const UpsampleArgmax& upsample = call.upsample;
  const int column = blockIdx.x * threads + threadIdx.x;
  const int upper = blockIdx.y;
  const T* const logits =
      static_cast<const T*>(upsample.logits) + blockIdx.z * upsample.stride_batch;
  const T* const top = logits + upper * upsample.stride_row;
  const T* const bottom = logits + call.rows.next(upper) * upsample.stride_row;
  SharedMemory shared;
  int* const greatest = shared.take<int>(2 * call.corner_columns);
  const int first_column = call.columns.source(blockIdx.x * threads).index;
  for (int i = threadIdx.x; i < 2 * call.corner_columns; i += threads) {
    const int of_row = i % call.corner_columns + first_column;
    const int inside = of_row < call.columns.in ? of_row : call.columns.in - 1;
    const T* const row = i < call.corner_columns ? top : bottom;
    greatest[i] = greatest_class(call, row + inside * upsample.stride_column);
  }
  sync_block();
  if (column >= call.columns.out) {
    return;
  }
  const Source source = call.columns.source(column);
  const int begin = call.rows.first(upper);
  const int end = call.rows.first(upper + 1);
  int64_t pixel = ((int64_t)blockIdx.z * call.rows.out + begin) * call.columns.out + column;
  if (call.corner_columns > 0) {
    const int* const above = greatest + source.index - first_column;
    const int* const below = above + call.corner_columns;
    const int label = above[0];
    if (label != unknown && label == above[1] && label == below[0] && label == below[1]) {
      for (int row = begin; row < end; ++row, pixel += call.columns.out) {
        write_label(upsample, pixel, label);
      }
      return;
    }
  }

  const int64_t left = source.index * upsample.stride_column;
  const int64_t right = call.columns.next(source.index) * upsample.stride_column;
  const Corners<T> corners{top + left, top + right, bottom + left, bottom + right, source.weight};
  for (int first = begin; first < end; first += batch_rows) {
    float weights[batch_rows];
#pragma unroll
    for (int row = 0; row < batch_rows; ++row) {
      weights[row] = call.rows.weight(first + row, upper);
    }
    Winners winners;
    const bool finite = scan<with_confidence, false>(call, corners, weights, winners);
    if (!finite) {
      scan<with_confidence, true>(call, corners, weights, winners);
    }
#pragma unroll
    for (int row = 0; row < batch_rows; ++row) {
      if (first + row >= end) {
        continue;
      }
      write_label(upsample, pixel, winners.label[row]);
      if (with_confidence) {
        // NaN if a logit is NaN or the best one infinite, as softmax has it.
        upsample.confidence[pixel] = (0.0f * winners.value[row] + 1.0f) / winners.sum[row];
      }
      pixel += call.columns.out;
    }
  }
}

}  // namespace

void upsample_argmax_cuda(const UpsampleArgmax& upsample, void* stream) {
  // The confidence needs all classes anyway.
  const bool looks = !upsample.confidence && upsample.in_width <= upsample.out_width;
  const int64_t columns = (threads - 1) * upsample.in_width / upsample.out_width + 3;
  const Call call{
      upsample,
      make_axis(upsample.in_height, upsample.out_height, upsample.align_corners),
      make_axis(upsample.in_width, upsample.out_width, upsample.align_corners),
      looks ? (int)columns : 0,
  };
  SharedMemory measure(nullptr);
  measure.take<int>(2 * call.corner_columns);
  const dim3 grid(ceil_div(upsample.out_width, threads), upsample.in_height, upsample.batch);
  OPENSEG_DISPATCH_FLOATING(upsample.dtype, {
    if (upsample.confidence) {
      launch(upsample_argmax_kernel<scalar_t, true>, grid, threads, measure.bytes(), stream, call);
    } else {
      launch(upsample_argmax_kernel<scalar_t, false>, grid, threads, measure.bytes(), stream, call);
    }
  })
}

}  // namespace openseg
