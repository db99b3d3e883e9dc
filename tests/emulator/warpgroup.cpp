// SPDX-License-Identifier: MIT
// Products of four warps. Each warp has rows of its own of the left factor and of the results, and
// is computed apart; that the four do the same is checked.
#include "warpgroup.h"

#include <algorithm>
#include <vector>

#include "watch.h"

namespace openseg::emulator {
namespace {

constexpr int lanes = 32;
constexpr int rows = 16;  // of a warp
constexpr int depth = 16;
constexpr int piece = 8;  // numbers that lie together
constexpr int max_tiles = 32;

struct Pending {
  GroupProduct product;
  float* d[lanes];
  std::vector<float> base[lanes];  // what is added to, where no product before it makes that
  std::vector<uint16_t> factors;   // as they were at the start
  int64_t group;
  const void* code;
};

struct Warp {
  std::vector<Pending> pending;
  std::vector<GroupProduct> issued;
  int64_t group;  // the one that is open
  bool started;
};

constexpr int max_warps = 32;
Warp warps[max_warps];

int warp_number() {
  return (int)threadIdx.x / lanes;
}

// use(numbers, row, column) for the pieces of a factor.
template <typename Use>
void for_pieces(const Factor& factor, int first_row, int row_count, int columns, const Use& use) {
  for (int row = 0; row < row_count; ++row) {
    for (int column = 0; column < columns; column += piece) {
      use(factor.at(first_row + row, column), row, column);
    }
  }
}

template <typename Use>
void for_pieces_of_left(const GroupProduct& product, const Use& use) {
  for_pieces(product.a, warp_number() % 4 * rows, rows, depth, use);
}

template <typename Use>
void for_pieces_of_right(const GroupProduct& product, const Use& use) {
  const int columns = 8 * product.tiles;
  for_pieces(product.b, 0, product.over_rows ? depth : columns, product.over_rows ? columns : depth,
             use);
}

// The numbers of both factors, which a product may read at any time until it is waited for.
std::vector<uint16_t> read_factors(const GroupProduct& product, const void* code) {
  std::vector<uint16_t> all;
  const auto use = [&](const uint16_t* numbers, int, int) {
    watch(numbers, piece * sizeof *numbers, Access::product, code);
    all.insert(all.end(), numbers, numbers + piece);
  };
  for_pieces_of_left(product, use);
  for_pieces_of_right(product, use);
  return all;
}

void lose(float* d, int tiles) {
  std::fill_n(d, 4 * tiles, float_from_bits(~0u));
}

void finish(const Pending& done) {
  const GroupProduct& product = done.product;
  static float a[rows][depth];
  static float b[depth][8 * max_tiles];
  if (read_factors(product, done.code) != done.factors) {
    fail("a factor has changed while it was being multiplied");
  }
  for_pieces_of_left(product, [&](const uint16_t* numbers, int row, int column) {
    for (int i = 0; i < piece; ++i) {
      a[row][column + i] = number_of(numbers[i], product.is_bfloat16);
    }
  });
  for_pieces_of_right(product, [&](const uint16_t* numbers, int row, int column) {
    for (int i = 0; i < piece; ++i) {
      (product.over_rows ? b[row][column + i] : b[column + i][row]) =
          number_of(numbers[i], product.is_bfloat16);
    }
  });
  for (int row = 0; row < rows; ++row) {
    double sums[8 * max_tiles] = {};
    for (int k = 0; k < depth; ++k) {
      for (int column = 0; column < 8 * product.tiles; ++column) {
        sums[column] += (double)a[row][k] * b[k][column];
      }
    }
    for (int column = 0; column < 8 * product.tiles; ++column) {
      const int lane = row % 8 * 4 + column % 8 / 2;
      const int e = column / 8 * 4 + row / 8 * 2 + column % 2;
      done.d[lane][e] = rounded_sum((product.add ? done.base[lane][e] : 0) + sums[column]);
    }
  }
}

// Hands the results to the next product that adds to them, which are lost until that is finished.
void hand_on(const Pending& done, std::vector<Pending>& pending) {
  for (Pending& next : pending) {
    if (next.d[0] == done.d[0]) {
      for (int lane = 0; lane < lanes; ++lane) {
        next.base[lane].assign(done.d[lane], done.d[lane] + 4 * done.product.tiles);
        lose(done.d[lane], done.product.tiles);
      }
      return;
    }
  }
}

struct Issue {
  GroupProduct product;
  const void* code;
};

void combine_issue(void* const* operands) {
  Warp& warp = warps[warp_number()];
  const auto& [first, code] = operand_of<Issue>(operands, 0);
  if (!warp.started) {
    fail("products without start_products since the last wait");
  }
  GroupProduct common = first;
  common.d = nullptr;  // each thread has its own
  Pending issued{first, {}, {}, read_factors(first, code), warp.group, code};
  for (int lane = 0; lane < lanes; ++lane) {
    GroupProduct mine = operand_of<Issue>(operands, lane).product;
    issued.d[lane] = mine.d;
    mine.d = nullptr;
    if (mine != common) {
      fail("lanes of a warp multiply different factors");
    }
  }
  const int first_warp = warp_number() / 4 * 4;
  for (int other = first_warp; other < first_warp + 4; ++other) {
    const size_t index = warp.issued.size();
    if (index < warps[other].issued.size() && warps[other].issued[index] != common) {
      fail("the warps of a group multiply different factors");
    }
  }
  warp.issued.push_back(common);
  count_group_product(first.tiles, code);
  const bool follows = std::any_of(warp.pending.begin(), warp.pending.end(),
                                   [&](const Pending& other) { return other.d[0] == issued.d[0]; });
  for (int lane = 0; lane < lanes; ++lane) {
    if (!follows) {
      issued.base[lane].assign(issued.d[lane], issued.d[lane] + 4 * first.tiles);
    }
    lose(issued.d[lane], first.tiles);
  }
  warp.pending.push_back(issued);
}

}  // namespace

void issue_product(GroupProduct mine, int line) {
  Issue issue{mine, __builtin_return_address(0)};
  collective("multiply_async", line, &issue, combine_issue);
}

void wait_for_products(int groups) {
  collective("wait_for_products", groups, &groups, [](void* const* operands) {
    Warp& warp = warps[warp_number()];
    warp.started = false;
    while (!warp.pending.empty() &&
           warp.pending.front().group < warp.group - operand_of<int>(operands, 0)) {
      const Pending done = warp.pending.front();
      warp.pending.erase(warp.pending.begin());
      finish(done);
      hand_on(done, warp.pending);
    }
  });
}

void expect_results(const float* d) {
  for (const Pending& pending : warps[warp_number()].pending) {
    if (pending.d[threadIdx.x % lanes] == d) {
      fail("waits for results of products that may still be under way");
    }
  }
}

void start_block_of_products() {
  std::fill_n(warps, max_warps, Warp{});
}

bool products_under_way() {
  return !warps[warp_number()].pending.empty();
}

}  // namespace openseg::emulator

namespace openseg {

void show_to_products() {
  emulator::note_shown();
}

void start_products(int line) {
  emulator::collective("start_products", line, nullptr, [](void* const*) {
    emulator::warps[emulator::warp_number()].started = true;
  });
}

void commit_products(int line) {
  emulator::collective("commit_products", line, nullptr,
                       [](void* const*) { ++emulator::warps[emulator::warp_number()].group; });
}

}  // namespace openseg
