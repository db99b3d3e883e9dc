// SPDX-License-Identifier: MIT
// As in upsample_argmax, a thread owns one column of the output between two rows of the input, with
// a sum of exponentials for each of its pixels; the block reads the logits for all of them.
#include "upsample_cross_entropy/cuda/upsample_cross_entropy.h"

#include "upsample_cross_entropy/cuda/pixels.cuh"

namespace openseg {
namespace {

constexpr int sum_threads = 1024;

struct ForwardCall : Problem {
  CrossEntropyForwardCuda result;
  int columns_staged;  // of the input that the columns of a block may lie between, or 0: too many
};

struct Shared {
  float* loss_warps;
  float* weight_warps;
  float* steep_warps;
  float* staged;  // [2, columns_staged, pitch]

  __host__ __device__ Shared(SharedMemory& shared, const ForwardCall& call)
      : loss_warps(shared.take<float>(warp_size)),
        weight_warps(shared.take<float>(warp_size)),
        steep_warps(shared.take<float>(warp_size)),
        staged(shared.take<float>(2 * call.columns_staged * pitch)) {}
};

// The complement of the position: the greatest is the first, and zero stands for none.
__device__ void add_invalid(const ForwardCall& call, int64_t pixel) {
  uint64_t* const invalid = reinterpret_cast<uint64_t*>(call.result.invalid);
  atomic_add(&invalid[0], (uint64_t)1);
  atomic_max(&invalid[1], ~(uint64_t)pixel);
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

// Of the classes of each pixel of a sequence.
struct Sums {
  float log_sum_exp[batch_rows];
  float
      spread[batch_rows];  // of the logits times the weights of their classes; for smoothing alone
  float weight;            // of those weights
};

// Returns whether `sums` are right: not if any logit of the block is steep.
template <typename T>
__device__ bool add_geometrically(const ForwardCall& call, const Shared& shared,
                                  const Column<T>& logits, int column, const Sequence& rows,
                                  Sums& sums) {
  const Source source = call.columns.source(column);
  const Stage stage{rows.upper, 2, call.columns.source(blockIdx.x * threads).index,
                    call.columns_staged, shared.staged};
  const float* const upper = stage.at(rows.upper, source);
  const float* const lower = upper + stage.columns * pitch;
  float sum[batch_rows] = {};
  float top = 0;
  float bottom = 0;
  sums.weight = 0;
  for (int first_class = 0; first_class < call.loss.classes; first_class += chunk) {
    const int left = (int)call.loss.classes - first_class;
    const int classes = left < chunk ? left : chunk;
    sync_block();  // the chunk before has been read
    const bool flat = stage.read<T>(call, first_class, classes);
    if (block_sum(flat ? 0.0f : 1.0f, shared.steep_warps) > 0) {
      return false;
    }
#pragma unroll 4
    for (int k = 0; k < classes; ++k) {
      const Ends ends{across(upper + k, source.weight), across(lower + k, source.weight)};
      const float ratio = ends.ratio(rows);
      float power = ends.first(rows);
#pragma unroll
      for (int row = 0; row < batch_rows; ++row) {
        sum[row] += power;
        power *= ratio;
      }
    }
    for (int k = 0; k < classes && call.loss.label_smoothing > 0; ++k) {
      const Ends ends{across(upper + k, source.weight), across(lower + k, source.weight)};
      const float share = class_weight(call, first_class + k);
      sums.weight += share;
      top += share * ends.top;
      bottom += share * ends.bottom;
    }
  }
  const float first_top = logits.top(0);
  const float first_bottom = logits.bottom(0);
#pragma unroll
  for (int row = 0; row < batch_rows; ++row) {
    const float first = between(first_top, first_bottom, rows.weight(row));
    sums.log_sum_exp[row] = first + log_fast(sum[row]);
    sums.spread[row] = sums.weight * first + between(top, bottom, rows.weight(row)) / log2_e;
  }
  return true;
}

// The same for any logits.
template <typename T>
__device__ void add_plainly(const ForwardCall& call, const Column<T>& logits, const Sequence& rows,
                            Sums& sums) {
  constexpr float lowest = -3.4e38f;  // finite, so that a class at -inf counts as nothing
  float best[batch_rows];
  float sum[batch_rows];  // of exp(logit - best)
  sums.weight = 0;
#pragma unroll
  for (int row = 0; row < batch_rows; ++row) {
    best[row] = lowest;
    sum[row] = sums.spread[row] = 0;
  }
  for (int k = 0; k < call.loss.classes; ++k) {
    const float top = logits.top(k * call.loss.stride_class);
    const float bottom = logits.bottom(k * call.loss.stride_class);
    const float share = class_weight(call, k);
    sums.weight += share;
#pragma unroll
    for (int row = 0; row < batch_rows; ++row) {
      const float value = between(top, bottom, rows.weight(row));
      const bool wins = value > best[row];
      const float lesser = exp_fast(wins ? best[row] - value : value - best[row]);
      sum[row] = wins ? sum[row] * lesser + 1.0f : sum[row] + lesser;
      best[row] = wins ? value : best[row];
      sums.spread[row] += share * value;
    }
  }
#pragma unroll
  for (int row = 0; row < batch_rows; ++row) {
    // An infinite logit gives NaN, as in torch: infinity marks pixels that do not count.
    sums.log_sum_exp[row] =
        best[row] < infinity() ? best[row] + log_fast(sum[row]) : not_a_number();
  }
}

// Writes what becomes of row `row` of a sequence.
template <typename T>
__device__ void finish(const ForwardCall& call, const Column<T>& logits, int column,
                       const Sequence& rows, int row, const Sums& sums, Totals& totals) {
  const int64_t pixel = pixel_index(call, rows.begin + row, column);
  const float smoothing = call.loss.label_smoothing;
  const float lse = sums.log_sum_exp[row];
  const auto logit_of = [&](int64_t k) {
    return between(logits.top(k * call.loss.stride_class),
                   logits.bottom(k * call.loss.stride_class), rows.weight(row));
  };
  const int label = label_of(call, pixel);
  float loss = 0;
  float probability = -1.0f;
  if (label >= 0) {
    const float picked = logit_of(label);
    const float weight = class_weight(call, label);
    loss = weight * (lse - picked);
    if (smoothing > 0) {
      const float uniform = sums.weight * lse - sums.spread[row];
      loss += smoothing * (uniform / (float)call.loss.classes - loss);
    }
    totals.loss += loss;
    totals.weight += weight;
    probability = probability_of(picked, lse);
  } else if (label == out_of_range) {
    add_invalid(call, pixel);
  }
  call.result.lse[pixel] = label >= 0 ? lse : infinity();
  if (call.result.loss) {
    call.result.loss[pixel] = loss;
  }
  if (call.result.probability) {
    if (label < 0 && pixel == 0 && call.result.first_enters) {
      probability = probability_of(logit_of(0), lse);
    }
    call.result.probability[pixel] = probability;
  }
}

template <typename T>
__global__ void __launch_bounds__(threads, blocks_per_multiprocessor)
    upsample_cross_entropy_forward_kernel(ForwardCall call) {
  SharedMemory memory;
  const Shared shared(memory, call);
  const int column = blockIdx.x * threads + threadIdx.x;
  const int upper = blockIdx.y;
  const bool inside = column < call.columns.out;
  const int near = inside ? column : call.columns.out - 1;  // the others go along for the barriers
  const Column<T> logits(call, near, upper);
  const int end = call.rows.first(upper + 1);
  Totals totals{0, 0};
  for (int begin = call.rows.first(upper); begin < end;) {
    const Sequence rows(call, upper, begin, end);
    Sums sums;
    if (call.columns_staged == 0 || !add_geometrically(call, shared, logits, near, rows, sums)) {
      add_plainly(call, logits, rows, sums);
    }
#pragma unroll
    for (int row = 0; row < batch_rows; ++row) {
      if (inside && begin + row < rows.end) {
        finish(call, logits, column, rows, row, sums, totals);
      }
    }
    begin = rows.end;
  }
  totals.loss = block_sum(totals.loss, shared.loss_warps);
  totals.weight = block_sum(totals.weight, shared.weight_warps);
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
  const Problem problem = make_problem(loss);
  const bool stages = problem.small && loss.in_width <= loss.out_width;
  const int64_t columns = (threads - 1) * loss.in_width / loss.out_width + 3;
  const ForwardCall call{problem, result, stages ? (int)columns : 0};
  SharedMemory measure(nullptr);
  Shared(measure, call);
  OPENSEG_DISPATCH_FLOATING(
      loss.dtype, launch(upsample_cross_entropy_forward_kernel<scalar_t>, forward_grid(loss),
                         threads, measure.bytes(), stream, call))
  const Sum sum{result, ohem ? mine_hard_pixels_cuda(loss, *ohem, result, stream)
                             : upsample_cross_entropy_partials(loss)};
  launch(upsample_cross_entropy_sum_kernel, 2, sum_threads, warp_size * sizeof(float), stream, sum);
}

}  // namespace openseg
