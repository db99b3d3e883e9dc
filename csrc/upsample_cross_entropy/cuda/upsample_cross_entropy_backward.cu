// SPDX-License-Identifier: MIT
// In gather form: a block owns some cells of one input row, and thus the output pixels that they
// reach, a thread for each column. What the pixels of a column are to any class is worked out once;
// then, for a chunk of the classes at a time, every thread sums down its column by Horner's rule,
// and each cell sums across the columns. Every row of output pixels is computed by two blocks; no
// atomics, nothing at output size but the log-sum-exp.
#include "upsample_cross_entropy/cuda/pixels.cuh"
#include "upsample_cross_entropy/cuda/upsample_cross_entropy.h"

namespace openseg {
namespace {

struct BackwardCall : Problem {
  CrossEntropyBackward result;
  int cells;  // of the input row that a block owns
  int slots;  // output rows that an input row reaches at most, or 0: too many to keep
};

// What a block shares. `columns` is a piece of the output columns of its cells: all, with slots.
struct Tile {
  float* steep_warps;
  int* first_columns;  // [cells + 2]: first output columns of the cells and of their neighbours
  float* own_share;    // [threads]: how much a column is the cell's that it lies in
  float* next_share;   // [threads]: and the next one's
  float* grads;        // [threads, pitch]: of the columns
  float* totals;       // [cells, pitch]
  float* staged;       // [3, cells + 2, pitch]
  float* scales;       // [slots, threads]: of the exponentials
  float* picked;       // [slots, threads]: subtracted for the class of the label
  int* labels;         // [slots, threads]

  __host__ __device__ Tile(SharedMemory& shared, const BackwardCall& call)
      : steep_warps(shared.take<float>(warp_size)),
        first_columns(shared.take<int>(call.cells + 2)),
        own_share(shared.take<float>(threads)),
        next_share(shared.take<float>(threads)),
        grads(shared.take<float>(threads * pitch)),
        totals(shared.take<float>(call.cells * pitch)),
        staged(shared.take<float>(call.slots > 0 ? 3 * (call.cells + 2) * pitch : 0)),
        scales(shared.take<float>(call.slots * threads)),
        picked(shared.take<float>(call.slots * threads)),
        labels(shared.take<int>(call.slots * threads)) {}
};

// The input row of a block, and the output rows that it reaches: those from the input row above on,
// and its own.
struct Reach {
  int row;
  int above;
  int own;
  int end;
  float total_weight;  // of the classes
  float uniform;       // share of each class in the target, by smoothing

  __device__ Reach(const Problem& call, int row)
      : row(row),
        above(call.rows.first(row - 1)),
        own(call.rows.first(row)),
        end(call.rows.first(row + 1)),
        total_weight((float)call.loss.classes),
        uniform(call.loss.label_smoothing / (float)call.loss.classes) {
    if (call.loss.weight && call.loss.label_smoothing > 0) {
      total_weight = 0;
      for (int k = 0; k < call.loss.classes; ++k) {
        total_weight += call.loss.weight[k];
      }
    }
  }

  template <typename Visit>
  __device__ void for_each_sequence(const Problem& call, const Visit& visit) const {
    for (int begin = above; begin < end;) {
      const Sequence rows =
          begin < own ? Sequence(call, row - 1, begin, own) : Sequence(call, row, begin, end);
      visit(rows);
      begin = rows.end;
    }
  }
};

// What an output pixel means for the gradient of the logits at an input row.
struct Pixel {
  float lse = infinity();  // makes the softmax 0
  float scale = 0;         // of the softmax
  float picked = 0;        // subtracted for the class of the label
  float spread = 0;        // subtracted for each class, times its weight
  int label = ignored;
};

__device__ Pixel pixel_of(const BackwardCall& call, const Reach& reach, const Sequence& rows,
                          int row, int column) {
  Pixel pixel;
  const int64_t index = pixel_index(call, rows.begin + row, column);
  if (call.result.lse[index] == infinity()) {
    return pixel;
  }
  const float weight = rows.weight(row);
  const float share = rows.upper == reach.row ? call.rows.own_share(rows.upper, weight) : weight;
  const float grad = share * call.result.scale[call.result.one_scale ? 0 : index];
  pixel.lse = call.result.lse[index];
  pixel.label = label_of(call, index);
  pixel.picked = grad * (1.0f - call.loss.label_smoothing) * class_weight(call, pixel.label);
  pixel.spread = grad * reach.uniform;
  pixel.scale = pixel.picked + pixel.spread * reach.total_weight;
  return pixel;
}

// Keeps the pixels of a column in its slots; returns the sum of their spreads.
template <typename T>
__device__ float keep_pixels(const BackwardCall& call, const Tile& tile, const Reach& reach,
                             int column) {
  float spread = 0;
  reach.for_each_sequence(call, [&](const Sequence& rows) {
    const Column<T> logits(call, column, rows.upper);
    const float top = logits.top(0);
    const float bottom = logits.bottom(0);
    for (int row = 0; row < rows.end - rows.begin; ++row) {
      const Pixel pixel = pixel_of(call, reach, rows, row, column);
      const int slot = (rows.begin + row - reach.above) * threads + threadIdx.x;
      // The exponentials to come are relative to class 0.
      const float first = between(top, bottom, rows.weight(row));
      tile.scales[slot] = pixel.scale * exp_fast(first - pixel.lse);
      tile.picked[slot] = pixel.picked;
      tile.labels[slot] = pixel.label;
      spread += pixel.spread;
    }
  });
  return spread;
}

// What the pixels of a sequence are kept as, for one column.
struct Scales {
  float rows[batch_rows];

  __device__ Scales(const Tile& tile, const Reach& reach, const Sequence& sequence) {
#pragma unroll
    for (int row = 0; row < batch_rows; ++row) {
      const int slot = (sequence.begin + row - reach.above) * threads + threadIdx.x;
      rows[row] = sequence.begin + row < sequence.end ? tile.scales[slot] : 0.0f;
    }
  }

  // Σ scale × exponential.
  __device__ float product(float first, float ratio) const {
    float sum = 0;
#pragma unroll
    for (int row = batch_rows - 1; row >= 0; --row) {
      sum = sum * ratio + rows[row];
    }
    return first * sum;
  }
};

// The gradients of a chunk of classes at an input row, were it as wide as the output.
__device__ void sum_geometrically(const BackwardCall& call, const Tile& tile, const Stage& stage,
                                  const Reach& reach, const Source& source, float spread,
                                  int first_class, int classes) {
  float* const grads = tile.grads + threadIdx.x * pitch;
  const int row_pitch = stage.columns * pitch;
  const float* const values = stage.at(reach.row - 1, source);
  int above = reach.above;
  int own = reach.own;
  // One sequence above and one below, whose logits share a row; there may be none of either.
  do {
    const Sequence before(call, reach.row - 1, above, reach.own);
    const Sequence after(call, reach.row, own, reach.end);
    const Scales before_scales(tile, reach, before);
    const Scales after_scales(tile, reach, after);
    const bool is_first = above == reach.above && own == reach.own;
#pragma unroll 4
    for (int k = 0; k < classes; ++k) {
      const float top = across(values + k, source.weight);
      const float middle = across(values + row_pitch + k, source.weight);
      const float bottom = across(values + 2 * row_pitch + k, source.weight);
      const Ends upper{top, middle};
      const Ends lower{middle, bottom};
      const float sum = before_scales.product(upper.first(before), upper.ratio(before)) +
                        after_scales.product(lower.first(after), lower.ratio(after));
      grads[k] = is_first ? sum : grads[k] + sum;
    }
    above = before.end;
    own = after.end;
  } while (above < reach.own || own < reach.end);
  for (int k = 0; k < classes && call.loss.label_smoothing > 0; ++k) {
    grads[k] -= spread * class_weight(call, first_class + k);
  }
  for (int slot = threadIdx.x; slot < (reach.end - reach.above) * threads; slot += threads) {
    const int k = tile.labels[slot] - first_class;
    if (k >= 0 && k < classes) {
      grads[k] -= tile.picked[slot];
    }
  }
}

// The same for any logits and any number of rows, but pixel by pixel.
template <typename T>
__device__ void sum_plainly(const BackwardCall& call, const Tile& tile, const Reach& reach,
                            int column, int first_class, int classes) {
  float* const grads = tile.grads + threadIdx.x * pitch;
  for (int k = 0; k < classes; ++k) {
    grads[k] = 0;
  }
  reach.for_each_sequence(call, [&](const Sequence& rows) {
    const Column<T> logits(call, column, rows.upper);
    for (int row = 0; row < rows.end - rows.begin; ++row) {
      const Pixel pixel = pixel_of(call, reach, rows, row, column);
      for (int k = 0; k < classes && pixel.label != ignored; ++k) {
        const int64_t offset = (first_class + k) * call.loss.stride_class;
        const float value = between(logits.top(offset), logits.bottom(offset), rows.weight(row));
        grads[k] += pixel.scale * exp_fast(value - pixel.lse);
        grads[k] -= pixel.label == first_class + k ? pixel.picked : 0.0f;
        grads[k] -= pixel.spread * class_weight(call, first_class + k);
      }
    }
  });
}

// Adds columns piece … piece + threads - 1 to the totals: a warp has a cell, a lane a class.
__device__ void add_across(const Tile& tile, int cells, int classes, int piece, bool is_first) {
  const auto column_of = [&](int cell) {
    const int column = tile.first_columns[cell] - piece;
    return column < 0 ? 0 : column < threads ? column : threads;
  };
  for (int cell = warp_index(); cell < cells && lane_index() < classes;
       cell += threads / warp_size) {
    float* const total = &tile.totals[cell * pitch + lane_index()];
    const float* const grads = tile.grads + lane_index();
    const int own = column_of(cell + 1);
    const int end = column_of(cell + 2);
    float sum = is_first ? 0.0f : *total;
    for (int i = column_of(cell); i < own; ++i) {
      sum += tile.next_share[i] * grads[i * pitch];
    }
    for (int i = own; i < end; ++i) {
      sum += tile.own_share[i] * grads[i * pitch];
    }
    *total = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(threads, blocks_per_multiprocessor)
    upsample_cross_entropy_backward_kernel(BackwardCall call) {
  SharedMemory shared;
  const Tile tile(shared, call);
  const int row = blockIdx.y;
  const int first_cell = blockIdx.x * call.cells;
  const int cells_left = call.columns.in - first_cell;
  const int cells = cells_left < call.cells ? cells_left : call.cells;
  const int begin = call.columns.first(first_cell - 1);
  const int end = call.columns.first(first_cell + cells);
  const Reach reach(call, row);
  for (int i = threadIdx.x; i < cells + 2; i += threads) {
    tile.first_columns[i] = call.columns.first(first_cell - 1 + i);
  }
  float spread = 0;
  if (call.slots > 0 && begin + (int)threadIdx.x < end) {
    spread = keep_pixels<T>(call, tile, reach, begin + threadIdx.x);
  }
  const Stage stage{row - 1, 3, first_cell - 1, cells + 2, tile.staged};
  T* const grad_row = static_cast<T*>(call.result.grad) + blockIdx.z * call.result.stride_batch +
                      row * call.result.stride_row;

  for (int first_class = 0; first_class < call.loss.classes; first_class += chunk) {
    const int left = (int)call.loss.classes - first_class;
    const int classes = left < chunk ? left : chunk;
    bool flat = call.slots > 0;
    if (flat) {
      flat = stage.read<T>(call, first_class, classes);
      flat = block_sum(flat ? 0.0f : 1.0f, tile.steep_warps) == 0;
    }
    for (int piece = begin; piece < end; piece += threads) {
      const int column = piece + threadIdx.x;
      sync_block();  // the piece before has been read
      if (column < end) {
        const Source source = call.columns.source(column);
        tile.own_share[threadIdx.x] = call.columns.own_share(source.index, source.weight);
        tile.next_share[threadIdx.x] = source.weight;
        if (flat) {
          sum_geometrically(call, tile, stage, reach, source, spread, first_class, classes);
        } else {
          sum_plainly<T>(call, tile, reach, column, first_class, classes);
        }
      }
      sync_block();
      add_across(tile, cells, classes, piece, piece == begin);
    }
    sync_block();
    for_each_logit(call.result.stride_class == 1, classes, cells, [&](int k, int cell) {
      store(&grad_row[(first_class + k) * call.result.stride_class +
                      (first_cell + cell) * call.result.stride_column],
            tile.totals[cell * pitch + k]);
    });
  }
}

// Output rows that an input row reaches, at most.
int most_rows(const Axis& rows) {
  int most = 0;
  for (int row = 0; row < rows.in; ++row) {
    const int count = rows.first(row + 1) - rows.first(row - 1);
    most = count > most ? count : most;
  }
  return most;
}

}  // namespace

void upsample_cross_entropy_backward_cuda(const UpsampleCrossEntropy& loss,
                                          const CrossEntropyBackward& result, void* stream) {
  // As many cells as are sure to reach no more columns than there are threads, if one is so few.
  const int64_t cells = (threads - 1) * loss.in_width / loss.out_width - 1;
  BackwardCall call{make_problem(loss), result,
                    (int)(cells < 1         ? 1
                          : cells > threads ? threads
                                            : cells),
                    0};
  call.slots = call.small && cells > 0 ? most_rows(call.rows) : 0;
  const auto shared_bytes = [&] {
    SharedMemory measure(nullptr);
    Tile(measure, call);
    return measure.bytes();
  };
  if (shared_bytes() > shared_memory_limit()) {
    call.slots = 0;
  }
  const dim3 grid(ceil_div(loss.in_width, call.cells), loss.in_height, loss.batch);
  OPENSEG_DISPATCH_FLOATING(loss.dtype, launch(upsample_cross_entropy_backward_kernel<scalar_t>,
                                               grid, threads, shared_bytes(), stream, call))
}

}  // namespace openseg
