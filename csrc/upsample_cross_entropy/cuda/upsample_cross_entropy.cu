// SPDX-License-Identifier: MIT
// Forward: as upsample_argmax, a thread owns one column of the output between two rows of the
// input, and keeps a running log-sum-exp for each of its pixels.
//
// Backward, in gather form: a block owns some cells of one input row and computes, for a few
// classes at a time, the gradients of all output pixels that they reach. Each thread sums down its
// column in registers, then each cell sums across the columns. Every row of output pixels is
// computed by two blocks; no atomics, nothing at output size but the log-sum-exp.
#include "upsample_cross_entropy/cuda/upsample_cross_entropy.h"

#include "common/bilinear.cuh"
#include "common/device.cuh"

namespace openseg {
namespace {

constexpr int threads = 128;
constexpr int batch_rows = 8;   // output rows at a time: all of them for upsampling by 8
constexpr int class_chunk = 8;  // classes at a time in the backward pass
constexpr int sum_threads = 1024;

struct Problem {
  UpsampleCrossEntropy loss;
  Axis rows;
  Axis columns;
};

struct ForwardCall : Problem {
  CrossEntropyForwardCuda result;
};

struct BackwardCall : Problem {
  CrossEntropyBackward result;
  int cells;  // of the input row that a block owns
};

__device__ float not_a_number() {
  return float_from_bits(0x7fc00000);
}

__device__ float infinity() {
  return float_from_bits(0x7f800000);
}

__device__ float class_weight(const Problem& call, int64_t label) {
  return call.loss.weight ? call.loss.weight[label] : 1.0f;
}

__device__ int64_t pixel_index(const Problem& call, int row, int column) {
  return ((int64_t)blockIdx.z * call.rows.out + row) * call.columns.out + column;
}

constexpr int ignored = -1;
constexpr int out_of_range = -2;

__device__ int label_of(const Problem& call, int64_t pixel) {
  const int64_t label = call.loss.target_dtype == DType::uint8
                            ? static_cast<const uint8_t*>(call.loss.target)[pixel]
                            : static_cast<const int64_t*>(call.loss.target)[pixel];
  if (label == call.loss.ignore_index) {
    return ignored;
  }
  return label < 0 || label >= call.loss.classes ? out_of_range : (int)label;
}

// The complement of the position: the greatest is the first, and zero stands for none.
__device__ void add_invalid(const ForwardCall& call, int64_t pixel) {
  uint64_t* const invalid = reinterpret_cast<uint64_t*>(call.result.invalid);
  atomic_add(&invalid[0], (uint64_t)1);
  atomic_max(&invalid[1], ~(uint64_t)pixel);
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
    return (1.0f - weight_) * to_float(row[left_]) + weight_ * to_float(row[right_]);
  }

  const T* top_;
  const T* bottom_;
  int64_t left_;
  int64_t right_;
  float weight_;
};

// Not top + weight (bottom - top), which is NaN where both are infinite.
__device__ float down(float top, float bottom, float weight) {
  return (1.0f - weight) * top + weight * bottom;
}

// Of the true class, for mining: -1 for a pixel that does not take part, 0 for a NaN.
__device__ float probability_of(float picked, float lse) {
  const float log_p = picked - lse;
  return log_p == log_p ? exp_fast(log_p < 0.0f ? log_p : 0.0f) : 0.0f;
}

struct Totals {
  float loss;
  float weight;
};

template <typename T>
__device__ Totals forward_rows(const ForwardCall& call, int column, int upper, int begin, int end) {
  constexpr float lowest = -3.4e38f;  // finite, so that a class at -inf counts as nothing
  float weights[batch_rows];
  float best[batch_rows];
  float sum[batch_rows];     // of exp(logit - best)
  float picked[batch_rows];  // the logit of the label
  float spread[batch_rows];  // the sum of all logits times their weights
  int labels[batch_rows];
#pragma unroll
  for (int row = 0; row < batch_rows; ++row) {
    weights[row] = call.rows.weight(begin + row, upper);
    best[row] = lowest;
    sum[row] = picked[row] = spread[row] = 0;
    labels[row] = ignored;
    if (begin + row < end) {
      labels[row] = label_of(call, pixel_index(call, begin + row, column));
    }
  }
  const Column<T> logits(call, column, upper);
  float total_weight = 0;
  for (int k = 0; k < call.loss.classes; ++k) {
    const float top = logits.top(k * call.loss.stride_class);
    const float bottom = logits.bottom(k * call.loss.stride_class);
    const float class_share = class_weight(call, k);
    total_weight += class_share;
#pragma unroll
    for (int row = 0; row < batch_rows; ++row) {
      const float value = down(top, bottom, weights[row]);
      const bool wins = value > best[row];
      const float lesser = exp_fast(wins ? best[row] - value : value - best[row]);
      sum[row] = wins ? sum[row] * lesser + 1.0f : sum[row] + lesser;
      best[row] = wins ? value : best[row];
      picked[row] = k == labels[row] ? value : picked[row];
      spread[row] += class_share * value;
    }
  }
  const float smoothing = call.loss.label_smoothing;
  Totals totals{0, 0};
#pragma unroll
  for (int row = 0; row < batch_rows; ++row) {
    if (begin + row >= end) {
      continue;
    }
    const int64_t pixel = pixel_index(call, begin + row, column);
    // An infinite logit gives NaN, as in torch: infinity marks pixels that do not count.
    const float finite = best[row] < infinity() ? best[row] + log_fast(sum[row]) : not_a_number();
    float loss = 0;
    float lse = infinity();
    if (labels[row] >= 0) {
      lse = finite;
      const float weight = class_weight(call, labels[row]);
      loss = weight * (lse - picked[row]);
      if (smoothing > 0) {
        const float uniform = total_weight * lse - spread[row];
        loss += smoothing * (uniform / (float)call.loss.classes - loss);
      }
      totals.loss += loss;
      totals.weight += weight;
    } else if (labels[row] == out_of_range) {
      add_invalid(call, pixel);
    }
    call.result.lse[pixel] = lse;
    if (call.result.loss) {
      call.result.loss[pixel] = loss;
    }
    if (call.result.probability) {
      float probability = -1.0f;
      if (labels[row] >= 0) {
        probability = probability_of(picked[row], finite);
      } else if (pixel == 0 && call.result.first_enters) {
        probability = probability_of(down(logits.top(0), logits.bottom(0), weights[row]), finite);
      }
      call.result.probability[pixel] = probability;
    }
  }
  return totals;
}

template <typename T>
__global__ void __launch_bounds__(threads) upsample_cross_entropy_forward_kernel(ForwardCall call) {
  SharedMemory shared;
  float* const loss_warps = shared.take<float>(warp_size);
  float* const weight_warps = shared.take<float>(warp_size);
  const int column = blockIdx.x * threads + threadIdx.x;
  const int upper = blockIdx.y;
  const int end = column < call.columns.out ? call.rows.first(upper + 1) : 0;
  Totals totals{0, 0};
  for (int begin = call.rows.first(upper); begin < end; begin += batch_rows) {
    const Totals more = forward_rows<T>(call, column, upper, begin, end);
    totals.loss += more.loss;
    totals.weight += more.weight;
  }
  totals.loss = block_sum(totals.loss, loss_warps);
  totals.weight = block_sum(totals.weight, weight_warps);
  if (threadIdx.x == 0) {
    const int64_t blocks = (int64_t)gridDim.x * gridDim.y * gridDim.z;
    const int64_t block = ((int64_t)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    call.result.partials[block] = totals.loss;
    call.result.partials[blocks + block] = totals.weight;
  }
}

struct Sum {
  CrossEntropyForwardCuda result;
  int64_t count;  // of partial sums
};

// Block 0 sums the losses, block 1 the weights.
__global__ void __launch_bounds__(sum_threads) upsample_cross_entropy_sum_kernel(Sum sum) {
  SharedMemory shared;
  float* const warps = shared.take<float>(warp_size);
  double total = 0;
  for (int64_t i = threadIdx.x; i < sum.count; i += sum_threads) {
    total += sum.result.partials[blockIdx.x * sum.count + i];
  }
  const float all = block_sum((float)total, warps);
  if (threadIdx.x == 0) {
    sum.result.totals[blockIdx.x] = all;
    const int64_t count = sum.result.invalid[0];
    sum.result.totals[2 + blockIdx.x] =
        (double)(blockIdx.x == 0 || count == 0 ? count : ~sum.result.invalid[1]);
  }
}

// Adds to grads[c] the gradient of the logit of class `first_class` + c at input row `cell_row`,
// were it as wide as the output, by the output rows between input rows `upper` and the next.
template <typename T>
__device__ void backward_rows(const BackwardCall& call, int column, int cell_row, int upper,
                              int first_class, float total_weight, float (&grads)[class_chunk]) {
  const float smoothing = call.loss.label_smoothing;
  const float uniform = smoothing / (float)call.loss.classes;
  const Column<T> logits(call, column, upper);
  const int end = call.rows.first(upper + 1);
  for (int begin = call.rows.first(upper); begin < end; begin += batch_rows) {
    float weights[batch_rows];
    float log_sum_exp[batch_rows];
    float scale[batch_rows];   // of the softmax
    float picked[batch_rows];  // subtracted for the class of the label
    int labels[batch_rows];
    float spread = 0;  // subtracted for each class, times its weight
#pragma unroll
    for (int row = 0; row < batch_rows; ++row) {
      weights[row] = call.rows.weight(begin + row, upper);
      log_sum_exp[row] = infinity();  // makes the softmax 0
      scale[row] = picked[row] = 0;
      labels[row] = ignored;
      const int64_t pixel = pixel_index(call, begin + row, column);
      if (begin + row >= end || call.result.lse[pixel] == infinity()) {
        continue;
      }
      const float share =
          upper == cell_row ? call.rows.own_share(upper, weights[row]) : weights[row];
      const float grad = share * call.result.scale[call.result.one_scale ? 0 : pixel];
      log_sum_exp[row] = call.result.lse[pixel];
      labels[row] = label_of(call, pixel);
      picked[row] = grad * (1.0f - smoothing) * class_weight(call, labels[row]);
      scale[row] = picked[row] + grad * uniform * total_weight;
      spread += grad * uniform;
    }
#pragma unroll
    for (int c = 0; c < class_chunk; ++c) {
      const int k = first_class + c;
      if (k >= call.loss.classes) {
        continue;
      }
      const float top = logits.top(k * call.loss.stride_class);
      const float bottom = logits.bottom(k * call.loss.stride_class);
#pragma unroll
      for (int row = 0; row < batch_rows; ++row) {
        const float value = down(top, bottom, weights[row]);
        grads[c] += scale[row] * exp_fast(value - log_sum_exp[row]);
        grads[c] -= labels[row] == k ? picked[row] : 0.0f;
      }
      if (smoothing > 0) {
        grads[c] -= class_weight(call, k) * spread;
      }
    }
  }
}

// Where column i of a piece lies in shared memory: then columns whose distance is a power of 2, as
// those of neighbouring cells are, are in different banks.
__device__ int spread(int i) {
  return i + i / warp_size;
}

constexpr int spread_columns = threads + threads / warp_size;

// What a block of the backward pass shares; `columns` is a piece of the output columns of its
// cells.
struct Tile {
  float* grads;    // [class_chunk, spread_columns]: of the columns
  float* weights;  // [spread_columns]: of the right neighbours of the columns
  float* totals;   // [class_chunk, cells]

  __host__ __device__ Tile(SharedMemory& shared, const BackwardCall& call)
      : grads(shared.take<float>(class_chunk * spread_columns)),
        weights(shared.take<float>(spread_columns)),
        totals(shared.take<float>(class_chunk * call.cells)) {}
};

// The part of columns piece … piece + threads - 1 in the gradient of one cell.
__device__ float across_columns(const Axis& columns, int cell, int piece, const float* grads,
                                const float* weights) {
  const int stop = piece + threads;
  const int own = columns.first(cell);
  const int last = columns.first(cell + 1);
  float sum = 0;
  int column = columns.first(cell - 1);
  for (column = column > piece ? column : piece; column < own && column < stop; ++column) {
    sum += weights[spread(column - piece)] * grads[spread(column - piece)];
  }
  for (column = own > piece ? own : piece; column < last && column < stop; ++column) {
    const int at = spread(column - piece);
    sum += columns.own_share(cell, weights[at]) * grads[at];
  }
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(threads)
    upsample_cross_entropy_backward_kernel(BackwardCall call) {
  SharedMemory shared;
  const Tile tile(shared, call);
  const int row = blockIdx.y;
  const int first_cell = blockIdx.x * call.cells;
  const int left = call.columns.in - first_cell;
  const int cells = left < call.cells ? left : call.cells;
  const int begin = call.columns.first(first_cell - 1);
  const int end = call.columns.first(first_cell + cells);
  float total_weight = (float)call.loss.classes;
  if (call.loss.weight && call.loss.label_smoothing > 0) {
    total_weight = 0;
    for (int k = 0; k < call.loss.classes; ++k) {
      total_weight += call.loss.weight[k];
    }
  }
  T* const grad_row = static_cast<T*>(call.result.grad) + blockIdx.z * call.result.stride_batch +
                      row * call.result.stride_row;

  for (int first_class = 0; first_class < call.loss.classes; first_class += class_chunk) {
    for (int task = threadIdx.x; task < class_chunk * cells; task += threads) {
      tile.totals[task] = 0;
    }
    for (int piece = begin; piece < end; piece += threads) {
      const int column = piece + threadIdx.x;
      float grads[class_chunk] = {};
      if (column < end) {
        for (int upper = row > 0 ? row - 1 : 0; upper <= row; ++upper) {
          backward_rows<T>(call, column, row, upper, first_class, total_weight, grads);
        }
      }
      sync_block();  // the piece before has been read
      const int at = spread(threadIdx.x);
      tile.weights[at] = column < end ? call.columns.source(column).weight : 0;
#pragma unroll
      for (int c = 0; c < class_chunk; ++c) {
        tile.grads[c * spread_columns + at] = grads[c];
      }
      sync_block();
      for (int task = threadIdx.x; task < class_chunk * cells; task += threads) {
        tile.totals[task] +=
            across_columns(call.columns, first_cell + task % cells, piece,
                           &tile.grads[task / cells * spread_columns], tile.weights);
      }
    }
    for (int task = threadIdx.x; task < class_chunk * cells; task += threads) {
      const int k = first_class + task / cells;
      const int cell = first_cell + task % cells;
      if (k < call.loss.classes) {
        store(&grad_row[k * call.result.stride_class + cell * call.result.stride_column],
              tile.totals[task]);
      }
    }
  }
}

Problem make_problem(const UpsampleCrossEntropy& loss) {
  return {
      loss,
      make_axis(loss.in_height, loss.out_height, loss.align_corners),
      make_axis(loss.in_width, loss.out_width, loss.align_corners),
  };
}

dim3 forward_grid(const UpsampleCrossEntropy& loss) {
  return dim3(ceil_div(loss.out_width, threads), loss.in_height, loss.batch);
}

}  // namespace

int64_t upsample_cross_entropy_partials(const UpsampleCrossEntropy& loss) {
  const dim3 grid = forward_grid(loss);
  return (int64_t)grid.x * grid.y * grid.z;
}

void upsample_cross_entropy_cuda(const UpsampleCrossEntropy& loss, const Ohem* ohem,
                                 const CrossEntropyForwardCuda& result, void* stream) {
  const ForwardCall call{make_problem(loss), result};
  SharedMemory measure(nullptr);
  measure.take<float>(2 * warp_size);
  OPENSEG_DISPATCH_FLOATING(
      loss.dtype, launch(upsample_cross_entropy_forward_kernel<scalar_t>, forward_grid(loss),
                         threads, measure.bytes(), stream, call))
  if (ohem) {
    mine_hard_pixels_cuda(loss, *ohem, result, stream);
  }
  const Sum sum{result, upsample_cross_entropy_partials(loss)};
  launch(upsample_cross_entropy_sum_kernel, 2, sum_threads, warp_size * sizeof(float), stream, sum);
}

void upsample_cross_entropy_backward_cuda(const UpsampleCrossEntropy& loss,
                                          const CrossEntropyBackward& result, void* stream) {
  // As many cells as are sure to reach no more columns than there are threads, if one is so few.
  const int64_t cells = (threads - 1) * loss.in_width / loss.out_width - 1;
  const BackwardCall call{
      make_problem(loss),
      result,
      (int)(cells < 1         ? 1
            : cells > threads ? threads
                              : cells),
  };
  SharedMemory measure(nullptr);
  Tile(measure, call);
  const dim3 grid(ceil_div(loss.in_width, call.cells), loss.in_height, loss.batch);
  OPENSEG_DISPATCH_FLOATING(loss.dtype, launch(upsample_cross_entropy_backward_kernel<scalar_t>,
                                               grid, threads, measure.bytes(), stream, call))
}

}  // namespace openseg
