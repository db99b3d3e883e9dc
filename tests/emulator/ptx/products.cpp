// SPDX-License-Identifier: MIT
// What a warp does on tensor cores. Products of four warps are computed at once, at their start:
// that they take their time is what the emulator of sources is strict about.
#include <algorithm>
#include <string>

#include "ptx/machine.h"

namespace openseg::ptx {
namespace {

using emulator::Fragments;

template <size_t count>
void gather(const Warp& warp, const Operand* operands, int lane, uint32_t (&to)[count]) {
  for (size_t i = 0; i < count; ++i) {
    to[i] = slots<uint32_t>(warp, operands[i])[lane];
  }
}

template <auto combine>
void multiply(Warp& warp, const Instruction& instruction, uint32_t) {
  Fragments fragments[lane_count];
  void* lanes[lane_count];
  const Operand* const a = instruction.operands + 4;
  const Operand* const b = a + 4;
  constexpr int b_count = 2;
  require(instruction.operand_count == 8 + b_count + 4, "a product of ", instruction.operand_count,
          " operands");
  for (int lane = 0; lane < lane_count; ++lane) {
    gather(warp, a, lane, fragments[lane].a);
    gather(warp, b, lane, fragments[lane].b);
    uint32_t d[4];
    gather(warp, b + b_count, lane, d);
    std::memcpy(fragments[lane].d, d, sizeof d);
    lanes[lane] = &fragments[lane];
  }
  combine(lanes);
  for (int lane = 0; lane < lane_count; ++lane) {
    for (int i = 0; i < 4; ++i) {
      results<uint32_t>(warp, instruction.operands[i])[lane] = bits_of(fragments[lane].d[i]);
    }
  }
}

template <auto combine>
void load_matrices(Warp& warp, const Instruction& instruction, uint32_t) {
  Fragments fragments[lane_count];
  void* lanes[lane_count];
  for (int lane = 0; lane < lane_count; ++lane) {
    const uint32_t address =
        slots<uint32_t>(warp, instruction.operands[4])[lane] + (uint32_t)instruction.offset;
    std::memcpy(&fragments[lane].row, shared_row(warp, address), sizeof(emulator::Piece));
    lanes[lane] = &fragments[lane];
  }
  combine(lanes);
  for (int lane = 0; lane < lane_count; ++lane) {
    for (int i = 0; i < 4; ++i) {
      results<uint32_t>(warp, instruction.operands[i])[lane] = fragments[lane].a[i];
    }
  }
}

// The matrix that a descriptor of 64 bits names, of which 8 rows of 128 bytes lie together in
// swizzled order: the 16-byte pieces of row r are at their place with r's lowest bits flipped.
class Matrix {
 public:
  Matrix(const Warp& warp, uint64_t descriptor, bool is_bfloat16)
      : warp_(warp),
        start_((uint32_t)(descriptor & 0x3fff) * unit),
        leading_((uint32_t)(descriptor >> 16 & 0x3fff) * unit),
        stride_((uint32_t)(descriptor >> 32 & 0x3fff) * unit),
        is_bfloat16_(is_bfloat16) {
    constexpr uint64_t swizzle_128_bytes = 1;
    require(descriptor >> 62 == swizzle_128_bytes && (descriptor >> 49 & 7) == 0,
            "a descriptor of another layout than the one that is swizzled over 128 bytes");
  }

  // By the matrix's own rows, of 64 numbers that lie together: along the depth, up to 64 of them.
  float along_depth(int row, int k) const {
    return number(start_ + row / 8 * stride_ + row % 8 * 128 + k * 2);
  }

  // Each row is of one depth; 64 columns lie together, `leading_` bytes before the next ones.
  float over_rows(int k, int column) const {
    return number(start_ + k / 8 * stride_ + k % 8 * 128 + column / 64 * leading_ +
                  column % 64 * 2);
  }

 private:
  static constexpr uint32_t unit = 16;

  float number(uint32_t address) const {
    const uint32_t swizzled = address ^ (address >> 7 & 7) << 4;
    uint16_t bits;
    std::memcpy(&bits, shared_row(warp_, swizzled & ~15u) + swizzled % 16, sizeof bits);
    return emulator::number_of(bits, is_bfloat16_);
  }

  const Warp& warp_;
  uint32_t start_, leading_, stride_;
  bool is_bfloat16_;
};

// The operands: results, the two descriptors, whether to add, the signs of a and b, and whether
// each of them is over rows.
template <int columns, bool is_bfloat16>
void multiply_group(Warp& warp, const Instruction& instruction, uint32_t) {
  constexpr int registers = columns / 2;
  constexpr int depth = 16;
  require(instruction.operand_count == registers + 7, "a product of ", instruction.operand_count,
          " operands");
  require(warp.products_started, "wgmma without a wgmma.fence since the last wait");
  const Operand* const operands = instruction.operands + registers;
  const auto flag = [&](int i) { return *slots<uint32_t>(warp, operands[i]); };
  const auto descriptor = [&](int i) {
    const uint64_t* const all = slots<uint64_t>(warp, operands[i]);
    require(std::all_of(all, all + lane_count, [&](uint64_t other) { return other == all[0]; }),
            "lanes of a warp multiply different factors");
    return Matrix(warp, all[0], is_bfloat16);
  };
  const Matrix a = descriptor(0);
  const Matrix b = descriptor(1);
  const uint32_t add = flag(2);
  require(add == 0 || add == all_lanes, "lanes of a warp differ in whether to add");
  require(flag(3) == 1 && flag(4) == 1 && flag(5) == 0, "a product of other signs or orders");
  const bool over_rows = flag(6);
  float factors[depth][columns];
  for (int k = 0; k < depth; ++k) {
    for (int column = 0; column < columns; ++column) {
      factors[k][column] = over_rows ? b.over_rows(k, column) : b.along_depth(column, k);
    }
  }
  for (int row = 0; row < 16; ++row) {
    double sums[columns] = {};
    for (int k = 0; k < depth; ++k) {
      const double left = a.along_depth(warp.index % 4 * 16 + row, k);
      for (int column = 0; column < columns; ++column) {
        sums[column] += left * factors[k][column];
      }
    }
    for (int column = 0; column < columns; ++column) {
      const int lane = row % 8 * 4 + column % 8 / 2;
      const Operand to = instruction.operands[column / 8 * 4 + row / 8 * 2 + column % 2];
      uint32_t& result = results<uint32_t>(warp, to)[lane];
      const double before = add ? float_from_bits(result) : 0;
      result = bits_of(emulator::rounded_sum(before + sums[column]));
    }
  }
}

template <bool started>
void note_start(Warp& warp, const Instruction&, uint32_t) {
  warp.products_started = started;
}

void nothing(Warp&, const Instruction&, uint32_t) {}

template <int columns>
void add_group_products(Meanings& all) {
  const std::string name =
      "wgmma.mma_async.sync.aligned.m64n" + std::to_string(columns) + "k16.f32.";
  all[name + "bf16.bf16"] = {Kind::collective, multiply_group<columns, true>};
  all[name + "f16.f16"] = {Kind::collective, multiply_group<columns, false>};
}

}  // namespace

void add_products(Meanings& all) {
  const std::string mma = "mma.sync.aligned.m16n8k";
  all[mma + "16.row.col.f32.bf16.bf16.f32"] = {Kind::collective,
                                               multiply<emulator::combine_mma_bfloat16>};
  all[mma + "16.row.col.f32.f16.f16.f32"] = {Kind::collective,
                                             multiply<emulator::combine_mma_float16>};
  all[mma + "8.row.col.f32.tf32.tf32.f32"] = {Kind::collective,
                                              multiply<emulator::combine_mma_tf32>};
  const std::string ldmatrix = "ldmatrix.sync.aligned.m8n8.x4.";
  all[ldmatrix + "shared.b16"] = {Kind::collective, load_matrices<emulator::combine_matrices>};
  all[ldmatrix + "trans.shared.b16"] = {Kind::collective,
                                        load_matrices<emulator::combine_transposed_matrices>};
  add_group_products<32>(all);
  add_group_products<128>(all);
  all["wgmma.fence.sync.aligned"] = {Kind::collective, note_start<true>};
  all["wgmma.commit_group.sync.aligned"] = {Kind::collective, nothing};
  all["wgmma.wait_group.sync.aligned"] = {Kind::collective, note_start<false>};
  all["fence.proxy.async.shared::cta"] = {Kind::plain, nothing};
}

}  // namespace openseg::ptx
