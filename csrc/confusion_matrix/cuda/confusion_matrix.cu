// SPDX-License-Identifier: MIT
// Each block counts into a histogram in shared memory and adds it to the matrix at its end. Label
// maps are piecewise constant, so a thread takes pixels in a row and counts a run of equal cells by
// one addition: lanes that hit one cell at the same time have to wait for each other.
#include "confusion_matrix/cuda/confusion_matrix.h"

#include "common/device.cuh"

namespace openseg {
namespace {

constexpr int threads = 256;
constexpr int pixels = 16;  // of one thread in a row: for uint8 one load of 16 bytes
constexpr int blocks_per_multiprocessor = 3;

struct Call {
  ConfusionMatrix count;
  int shared_cells;  // K x K, or 0 where that does not fit into shared memory
  bool aligned;      // both label maps start at a multiple of 16 bytes
};

constexpr int ignored = -1;
constexpr int out_of_range = -2;

__device__ int prediction_class(const Call& call, int64_t label) {
  return (uint64_t)label < (uint64_t)call.count.num_classes ? (int)label : out_of_range;
}

__device__ int target_class(const Call& call, int64_t label) {
  return label == call.count.ignore_index ? ignored : prediction_class(call, label);
}

// `classify` makes ints of the labels at once: 16 pixels of int64 would take 64 registers.
template <typename T>
__device__ void load(const Call& call, const T* from, int size,
                     int (*classify)(const Call&, int64_t), int (&to)[pixels]) {
  constexpr int piece_size = 16 / sizeof(T);
  struct alignas(16) Piece {
    T values[piece_size];
  };
  if (call.aligned && size == pixels) {
#pragma unroll
    for (int i = 0; i < pixels / piece_size; ++i) {
      const Piece piece = reinterpret_cast<const Piece*>(from)[i];
#pragma unroll
      for (int j = 0; j < piece_size; ++j) {
        to[i * piece_size + j] = classify(call, piece.values[j]);
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < pixels; ++i) {
    to[i] = i < size ? classify(call, from[i]) : ignored;
  }
}

__device__ void add(const Call& call, uint32_t* counts, int64_t cell, uint32_t length) {
  if (length == 0) {
    return;
  }
  if (call.shared_cells > 0) {
    atomic_add(&counts[cell], length);
  } else {
    atomic_add(reinterpret_cast<uint64_t*>(&call.count.matrix[cell]), (uint64_t)length);
  }
}

// The complement of the position: the greatest is the first, and zero stands for none.
__device__ void add_invalid(const Call& call, int64_t position) {
  uint64_t* const invalid = reinterpret_cast<uint64_t*>(call.count.invalid);
  atomic_add(&invalid[0], (uint64_t)1);
  atomic_max(&invalid[1], ~(uint64_t)position);
}

template <typename Prediction, typename Target>
__device__ void count_pixels(const Call& call, uint32_t* counts, int64_t start) {
  const int64_t left = call.count.count - start;
  const int size = left < pixels ? (int)left : pixels;
  int rows[pixels];
  int columns[pixels];
  load(call, static_cast<const Target*>(call.count.target) + start, size, target_class, rows);
  load(call, static_cast<const Prediction*>(call.count.prediction) + start, size, prediction_class,
       columns);
  int64_t cell = 0;
  uint32_t length = 0;
#pragma unroll
  for (int i = 0; i < pixels; ++i) {
    if (rows[i] == ignored) {
      continue;
    }
    if (rows[i] < 0 || columns[i] < 0) {
      add_invalid(call, start + i);
      continue;
    }
    const int64_t next = rows[i] * call.count.num_classes + columns[i];
    if (next != cell) {
      add(call, counts, cell, length);
      cell = next;
      length = 0;
    }
    ++length;
  }
  add(call, counts, cell, length);
}

template <typename Prediction, typename Target>
__global__ void __launch_bounds__(threads, blocks_per_multiprocessor)
    confusion_matrix_kernel(Call call) {
  SharedMemory shared;
  uint32_t* const counts = shared.take<uint32_t>(call.shared_cells);
  for (int cell = threadIdx.x; cell < call.shared_cells; cell += threads) {
    counts[cell] = 0;
  }
  sync_block();
  const int64_t stride = (int64_t)gridDim.x * threads * pixels;
  int64_t start = ((int64_t)blockIdx.x * threads + threadIdx.x) * pixels;
  for (; start < call.count.count; start += stride) {
    count_pixels<Prediction, Target>(call, counts, start);
  }
  sync_block();
  for (int cell = threadIdx.x; cell < call.shared_cells; cell += threads) {
    if (counts[cell] != 0) {
      atomic_add(reinterpret_cast<uint64_t*>(&call.count.matrix[cell]), (uint64_t)counts[cell]);
    }
  }
}

__global__ void confusion_matrix_position_kernel(Call call) {
  if (threadIdx.x == 0 && call.count.invalid[0] != 0) {
    call.count.invalid[1] = ~call.count.invalid[1];
  }
}

}  // namespace

void confusion_matrix_cuda(const ConfusionMatrix& count, void* stream) {
  const int64_t cells = count.num_classes * count.num_classes;
  const bool fits = cells * (int64_t)sizeof(uint32_t) <= shared_memory_limit();
  const auto addresses = (uintptr_t)count.prediction | (uintptr_t)count.target;
  const Call call{count, fits ? (int)cells : 0, addresses % 16 == 0};

  const int64_t needed = ceil_div(count.count, threads * pixels);
  const int64_t most = (int64_t)multiprocessor_count() * blocks_per_multiprocessor;
  const dim3 grid(needed < most ? needed : most);
  SharedMemory measure(nullptr);
  measure.take<uint32_t>(call.shared_cells);
  OPENSEG_DISPATCH_INTEGRAL(count.prediction_dtype, {
    using Prediction = scalar_t;
    OPENSEG_DISPATCH_INTEGRAL(count.target_dtype,
                              launch(confusion_matrix_kernel<Prediction, scalar_t>, grid, threads,
                                     measure.bytes(), stream, call))
  })
  launch(confusion_matrix_position_kernel, 1, warp_size, 0, stream, call);
}

}  // namespace openseg
