// SPDX-License-Identifier: MIT
// The primitives of csrc/common/warpgroup.cuh on a CPU. They are pessimistic: results are lost
// until they are waited for, and until then factors may not change.
#pragma once

#include "emulator.h"

namespace openseg {

class Factor {
 public:
  explicit Factor(const void* start, int lead = 0)
      : start_(static_cast<const char*>(start)), lead_(lead) {}

  Factor advanced(int bytes) const { return Factor(start_ + bytes, lead_); }

  // Where 8 numbers lie; `column` is a multiple of 8.
  const uint16_t* at(int row, int column) const {
    const uintptr_t plain =
        (uintptr_t)start_ + row / 8 * 1024 + row % 8 * 128 + column / 64 * lead_ + column % 64 * 2;
    return (const uint16_t*)(plain ^ (plain >> 7 & 7) << 4);
  }

  bool operator==(const Factor&) const = default;

 private:
  const char* start_;
  int lead_;
};

namespace emulator {

// One lane's part of multiply_async.
struct GroupProduct {
  float* d;
  int tiles;
  Factor a, b;
  bool over_rows, add, is_bfloat16;

  bool operator==(const GroupProduct&) const = default;
};

void issue_product(GroupProduct mine, int line);
void wait_for_products(int groups);
void expect_results(const float* d);

void start_block_of_products();
bool products_under_way();  // of the calling thread

}  // namespace emulator

inline int warpgroup_index() {
  return (int)threadIdx.x / 128;
}

void show_to_products();
void start_products(int line = __builtin_LINE());
void commit_products(int line = __builtin_LINE());

template <int groups, typename... Results>
void wait_for_products(Results&... results) {
  emulator::wait_for_products(groups);
  (emulator::expect_results(&results[0][0]), ...);
}

template <typename T, bool over_rows, int tiles>
void multiply_async(float (&d)[tiles][4], const Factor& a, const Factor& b, bool add,
                    int line = __builtin_LINE()) {
  static_assert(sizeof(T) == 2);
  emulator::issue_product({&d[0][0], tiles, a, b, over_rows, add, std::is_same_v<T, bfloat16>},
                          line);
}

}  // namespace openseg
