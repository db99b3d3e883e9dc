// SPDX-License-Identifier: MIT
// Label maps are piecewise constant: a chunk of 64 pixels is one cell of the matrix most of the
// time and costs one addition. In the other chunks, neighbouring pixels count into different copies
// of the histogram, so that a repeated cell does not wait for its own store to be forwarded.
#include "confusion_matrix/confusion_matrix.h"

#include <type_traits>

#include "common/parallel.h"
#include "common/simd.h"

namespace openseg::OPENSEG_ISA {
namespace {

constexpr int chunk = 64;
constexpr int64_t grain = 1 << 15;        // pixels that are worth a thread
constexpr int64_t flush_every = 1 << 30;  // pixels, so that 32-bit counters hold
constexpr int64_t few_cells = 1 << 16;    // above, the copies would leave the cache

// The histogram has two rows more than there are classes, for ignored and for invalid targets, and
// one column more, for invalid predictions.
struct Histogram {
  int64_t num_classes;
  int64_t ignore_index;
  int64_t columns;
  int64_t cells;

  explicit Histogram(const ConfusionMatrix& call)
      : num_classes(call.num_classes),
        ignore_index(call.ignore_index),
        columns(num_classes + 1),
        cells((num_classes + 2) * columns) {}

  // uint8 labels are compared in 32 bits, which makes twice as many a vector.
  template <typename T>
  using Wide = std::conditional_t<sizeof(T) == 1, int32_t, int64_t>;

  template <typename T>
  Wide<T> row(T target) const {
    const Wide<T> value = target, classes = (Wide<T>)num_classes;
    const bool ignored = value == (Wide<T>)ignore_index && ignore_index == (Wide<T>)ignore_index;
    return ignored ? classes : value >= 0 && value < classes ? value : classes + 1;
  }

  template <typename T>
  Wide<T> column(T prediction) const {
    const Wide<T> value = prediction, classes = (Wide<T>)num_classes;
    return value >= 0 && value < classes ? value : classes;
  }

  bool is_invalid(int64_t row, int64_t column) const {
    return row > num_classes || (row < num_classes && column == num_classes);
  }
};

void cells_of(const ConfusionMatrix& call, const Histogram& histogram, int64_t start, int size,
              uint32_t* cells) {
  OPENSEG_DISPATCH_INTEGRAL(call.target_dtype, {
    const scalar_t* target = (const scalar_t*)call.target + start;
    for (int i = 0; i < size; ++i) {
      cells[i] = (uint32_t)histogram.row(target[i]) * (uint32_t)histogram.columns;
    }
  })
  OPENSEG_DISPATCH_INTEGRAL(call.prediction_dtype, {
    const scalar_t* prediction = (const scalar_t*)call.prediction + start;
    for (int i = 0; i < size; ++i) {
      cells[i] += (uint32_t)histogram.column(prediction[i]);
    }
  })
}

void count_chunk(const uint32_t* cells, uint32_t* const (&counters)[4]) {
  uint32_t differences = 0;
  for (int i = 1; i < chunk; ++i) {
    differences |= cells[i] ^ cells[0];
  }
  if (differences == 0) {
    counters[0][cells[0]] += chunk;
    return;
  }
  for (int i = 0; i < chunk; i += 4) {
    ++counters[0][cells[i]];
    ++counters[1][cells[i + 1]];
    ++counters[2][cells[i + 2]];
    ++counters[3][cells[i + 3]];
  }
}

int64_t first_invalid(const ConfusionMatrix& call, const Histogram& histogram, int64_t begin) {
  for (int64_t i = begin;; ++i) {
    uint32_t cell;
    cells_of(call, histogram, i, 1, &cell);
    if (histogram.is_invalid(cell / histogram.columns, cell % histogram.columns)) {
      return i;
    }
  }
}

// Integer sums are the same in every order, therefore the atomics leave the result deterministic.
void merge(const ConfusionMatrix& call, const Histogram& histogram, int64_t begin,
           const uint32_t* counts) {
  int64_t invalid = 0;
  for (int64_t row = 0; row < histogram.num_classes + 2; ++row) {
    for (int64_t column = 0; column < histogram.columns; ++column) {
      const int64_t count = counts[row * histogram.columns + column];
      if (histogram.is_invalid(row, column)) {
        invalid += count;
      } else if (count != 0 && row < histogram.num_classes) {
        __atomic_fetch_add(&call.matrix[row * histogram.num_classes + column], count,
                           __ATOMIC_RELAXED);
      }
    }
  }
  if (invalid == 0) {
    return;
  }
  // invalid[1] holds the complement of the position until the end: zero is "none", the greatest
  // unsigned value is position 0.
  const uint64_t complement = ~(uint64_t)first_invalid(call, histogram, begin);
  uint64_t* const slot = (uint64_t*)&call.invalid[1];
  uint64_t seen = __atomic_load_n(slot, __ATOMIC_RELAXED);
  while (complement > seen && !__atomic_compare_exchange_n(slot, &seen, complement, false,
                                                           __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  __atomic_fetch_add(&call.invalid[0], invalid, __ATOMIC_RELAXED);
}

bool count_piece(const ConfusionMatrix& call, int64_t begin, int64_t end) {
  const Histogram histogram(call);
  const int copies = histogram.cells <= few_cells ? 4 : 1;
  const int64_t padded = round_up(histogram.cells, 16);
  Scratch scratch(padded * copies * (int64_t)sizeof(uint32_t));
  if (!scratch) {
    return false;
  }
  uint32_t* const counts = scratch.take<uint32_t>(padded * copies);
  uint32_t* counters[4];
  for (int i = 0; i < 4; ++i) {
    counters[i] = counts + padded * (i % copies);
  }
  uint32_t cells[chunk];
  for (int64_t start = begin; start < end; start += flush_every) {
    const int64_t stop = start + flush_every < end ? start + flush_every : end;
    std::memset(counts, 0, padded * copies * sizeof(uint32_t));
    int64_t i = start;
    for (; i + chunk <= stop; i += chunk) {
      cells_of(call, histogram, i, chunk, cells);
      count_chunk(cells, counters);
    }
    cells_of(call, histogram, i, (int)(stop - i), cells);
    for (int64_t rest = 0; rest < stop - i; ++rest) {
      ++counts[cells[rest]];
    }
    for (int copy = 1; copy < copies; ++copy) {
      for (int64_t cell = 0; cell < histogram.cells; ++cell) {
        counts[cell] += counters[copy][cell];
      }
    }
    merge(call, histogram, start, counts);
  }
  return true;
}

}  // namespace

bool confusion_matrix_cpu(const ConfusionMatrix& call) {
  struct Context {
    const ConfusionMatrix& call;
    int failed;
  } context{call, 0};
  run_parallel(
      call.count, grain,
      [](int64_t begin, int64_t end, void* pointer) {
        Context& context = *(Context*)pointer;
        if (!count_piece(context.call, begin, end)) {
          __atomic_store_n(&context.failed, 1, __ATOMIC_RELAXED);
        }
      },
      &context);
  if (call.invalid[0] != 0) {
    call.invalid[1] = ~call.invalid[1];
  }
  return context.failed == 0;
}

}  // namespace openseg::OPENSEG_ISA
