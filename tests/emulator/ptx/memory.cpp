// SPDX-License-Identifier: MIT
// Loads, stores, atomics and asynchronous copies. The GPU's memory is the process's own: nothing
// is known of the bounds of its arrays, but a block's shared memory has its own, and every access
// has to be aligned.
#include <algorithm>
#include <string>

#include "ptx/machine.h"

namespace openseg::ptx {
namespace {

enum class Space { global, shared, parameters };

char* locate(const Warp& warp, Space space, uint64_t address, int64_t bytes) {
  require(address % bytes == 0, "an access of ", bytes, " bytes to address ", address,
          " is not aligned");
  if (space == Space::global) {
    return reinterpret_cast<char*>(address);
  }
  const bool is_shared = space == Space::shared;
  const int64_t at = (int64_t)address - (is_shared ? shared_start : 0);
  const int64_t end = is_shared ? warp.block->shared_bytes : warp.block->parameter_bytes;
  require(at >= 0 && at + bytes <= end, "an access of ", bytes, " bytes at ", at, " of ", end,
          " bytes of ", is_shared ? "shared memory" : "parameters");
  return is_shared ? warp.block->shared + at : const_cast<char*>(warp.block->parameters) + at;
}

char* locate(const Warp& warp, const Instruction& instruction, Space space, Operand base, int lane,
             int64_t bytes) {
  const uint64_t start = space == Space::shared ? slots<uint32_t>(warp, base)[lane]
                                                : slots<uint64_t>(warp, base)[lane];
  return locate(warp, space, start + instruction.offset, bytes);
}

// Registers may be wider than what is read.
template <typename T, Space space, int count>
void load(Warp& warp, const Instruction& instruction, uint32_t active) {
  for (int lane = 0; lane < lane_count; ++lane) {
    if (!is_active(active, lane)) {
      continue;
    }
    T values[count];
    std::memcpy(values,
                locate(warp, instruction, space, instruction.operands[count], lane, sizeof values),
                sizeof values);
    for (int i = 0; i < count; ++i) {
      const Operand to = instruction.operands[i];
      if (to.is_wide) {
        results<uint64_t>(warp, to)[lane] = (uint64_t)values[i];
      } else {
        results<uint32_t>(warp, to)[lane] = (uint32_t)values[i];
      }
    }
  }
}

template <typename T, Space space, int count>
void store(Warp& warp, const Instruction& instruction, uint32_t active) {
  for (int lane = 0; lane < lane_count; ++lane) {
    if (!is_active(active, lane)) {
      continue;
    }
    T values[count];
    for (int i = 0; i < count; ++i) {
      const Operand from = instruction.operands[1 + i];
      values[i] =
          sizeof(T) == 8 ? (T)slots<uint64_t>(warp, from)[lane] : (T)bits_of_lane(warp, from, lane);
    }
    std::memcpy(locate(warp, instruction, space, instruction.operands[0], lane, sizeof values),
                values, sizeof values);
  }
}

template <typename T, Space space, auto f>
void change(Warp& warp, const Instruction& instruction, uint32_t active) {
  for (int lane = 0; lane < lane_count; ++lane) {
    if (is_active(active, lane)) {
      const Operand* const operands = instruction.operands;
      char* const at = locate(warp, instruction, space, operands[1], lane, sizeof(T));
      T old;
      std::memcpy(&old, at, sizeof old);
      const T changed = f(old, slots<T>(warp, operands[2])[lane]);
      std::memcpy(at, &changed, sizeof changed);
      results<T>(warp, operands[0])[lane] = old;
    }
  }
}

// The old contents are lost at once, the new ones arrive when they are waited for.
void start_copy(Warp& warp, const Instruction& instruction, uint32_t active) {
  const Operand* const operands = instruction.operands;
  for (int lane = 0; lane < lane_count; ++lane) {
    if (!is_active(active, lane)) {
      continue;
    }
    Copy copy = {};
    require(slots<uint32_t>(warp, operands[2])[lane] == sizeof copy.bytes, "a copy of other than ",
            sizeof copy.bytes, " bytes");
    const uint32_t bytes =
        instruction.operand_count > 3 ? slots<uint32_t>(warp, operands[3])[lane] : 16;
    require(bytes <= sizeof copy.bytes, "a copy that reads ", bytes, " bytes");
    copy.to = shared_row(warp, slots<uint32_t>(warp, operands[0])[lane]);
    copy.group = warp.copy_group[lane];
    const uint64_t from = slots<uint64_t>(warp, operands[1])[lane];
    require(from % 16 == 0, "a copy from address ", from, ", which is not aligned");
    std::memcpy(copy.bytes, reinterpret_cast<const char*>(from), bytes);
    std::memset(copy.to, 0xff, sizeof copy.bytes);
    warp.copies[lane].push_back(copy);
  }
}

void close_group(Warp& warp, const Instruction&, uint32_t active) {
  for (int lane = 0; lane < lane_count; ++lane) {
    warp.copy_group[lane] += is_active(active, lane);
  }
}

void wait_for_groups(Warp& warp, const Instruction& instruction, uint32_t active) {
  for (int lane = 0; lane < lane_count; ++lane) {
    if (is_active(active, lane)) {
      const int64_t under_way = slots<uint32_t>(warp, instruction.operands[0])[lane];
      auto& copies = warp.copies[lane];
      const auto later = std::find_if(copies.begin(), copies.end(), [&](const Copy& copy) {
        return copy.group >= warp.copy_group[lane] - under_way;
      });
      std::for_each(copies.begin(), later,
                    [](const Copy& copy) { std::memcpy(copy.to, copy.bytes, sizeof copy.bytes); });
      copies.erase(copies.begin(), later);
    }
  }
}

// What a pointer to anything is, and what its instructions take.
template <int sign>
void turn_address(Warp& warp, const Instruction& instruction, uint32_t active) {
  const auto start = reinterpret_cast<uint64_t>(warp.block->shared) - shared_start;
  for (int lane = 0; lane < lane_count; ++lane) {
    if (is_active(active, lane)) {
      results<uint64_t>(warp, instruction.operands[0])[lane] =
          slots<uint64_t>(warp, instruction.operands[1])[lane] + sign * start;
    }
  }
}

template <typename T, Space space, int count>
void add_accesses(Meanings& all, const std::string& where, const std::string& type,
                  const std::string& vector) {
  for (const char* const kept : {"", ".cs", ".nc"}) {
    all["ld." + where + kept + vector + type] = {Kind::plain, load<T, space, count>};
  }
  all["st." + where + vector + type] = {Kind::plain, store<T, space, count>};
}

template <typename T, Space space>
void add_accesses(Meanings& all, const std::string& where, const std::string& type) {
  add_accesses<T, space, 1>(all, where, type, "");
  add_accesses<T, space, 2>(all, where, type, ".v2");
  if constexpr (sizeof(T) < 8) {
    add_accesses<T, space, 4>(all, where, type, ".v4");
  }
}

template <Space space>
void add_space(Meanings& all, const std::string& where) {
  for (const std::string kind : {".b", ".u", ".f"}) {
    add_accesses<uint8_t, space>(all, where, kind + "8");
    add_accesses<uint16_t, space>(all, where, kind + "16");
    add_accesses<uint32_t, space>(all, where, kind + "32");
    add_accesses<uint64_t, space>(all, where, kind + "64");
  }
  add_accesses<int8_t, space>(all, where, ".s8");
  add_accesses<int16_t, space>(all, where, ".s16");
  add_accesses<int32_t, space>(all, where, ".s32");
}

template <typename T, Space space>
void add_atomics(Meanings& all, const std::string& where, const std::string& type) {
  all["atom." + where + ".add." + type] = {Kind::plain,
                                           change<T, space, [](T a, T b) { return a + b; }>};
  all["atom." + where + ".max." + type] = {
      Kind::plain, change<T, space, [](T a, T b) { return std::max(a, b); }>};
}

}  // namespace

char* shared_row(const Warp& warp, uint32_t address) {
  return locate(warp, Space::shared, address, 16);
}

void add_memory(Meanings& all) {
  add_space<Space::global>(all, "global");
  add_space<Space::shared>(all, "shared");
  add_space<Space::parameters>(all, "param");
  add_atomics<uint32_t, Space::global>(all, "global", "u32");
  add_atomics<uint64_t, Space::global>(all, "global", "u64");
  add_atomics<uint32_t, Space::shared>(all, "shared", "u32");
  add_atomics<uint64_t, Space::shared>(all, "shared", "u64");
  all["cvta.to.global.u64"] = all["mov.u64"];
  all["cvta.shared.u64"] = {Kind::plain, turn_address<1>};
  all["cvta.to.shared.u64"] = {Kind::plain, turn_address<-1>};
  all["cp.async.cg.shared.global"] = {Kind::plain, start_copy};
  all["cp.async.commit_group"] = {Kind::plain, close_group};
  all["cp.async.wait_group"] = {Kind::plain, wait_for_groups};
}

}  // namespace openseg::ptx
