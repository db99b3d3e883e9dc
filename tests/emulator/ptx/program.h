// SPDX-License-Identifier: MIT
// A kernel as nvcc leaves it: PTX, read into instructions that run for the lanes of a warp at once.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace openseg::ptx {

constexpr int lane_count = 32;
constexpr uint32_t all_lanes = ~0u;

// A register or a constant. Registers of up to 32 bits have 32 words, a lane each; those of 64 bits
// have 32 double words; predicates have one word, a bit a lane. Constants have the double words,
// then the words.
struct Operand {
  int32_t offset;  // in bytes
  bool is_constant;
  bool is_wide;  // a register of 64 bits
};

struct Warp;
struct Instruction;
using Execute = void (*)(Warp& warp, const Instruction& instruction, uint32_t active);

enum class Kind {
  plain,       // of the active lanes
  branch,      // to `target`, of those active lanes for which the guard holds
  collective,  // of all lanes of a warp
  barrier,     // of all threads of a block
  leave,
};

struct Instruction {
  Kind kind = Kind::plain;
  Execute execute = nullptr;
  const Operand* operands = nullptr;
  int operand_count = 0;
  int64_t offset = 0;  // of an address, in bytes
  bool has_guard = false, guard = true;
  Operand guard_predicate = {};
  int target = 0;
  int line = 0;  // of the file
  std::string_view name;
  std::string_view source;  // FILE:LINE, and of what that is inlined into, where it is known
  int64_t count = 0;        // how many warps have run it
};

struct Program {
  std::string name;
  int max_threads = 1024;
  int64_t parameter_bytes = 0;
  int64_t register_bytes = 0;
  std::vector<Instruction> instructions;
  std::vector<std::vector<Operand>> operands;  // of each instruction
  std::vector<uint64_t> constants;
  std::unordered_set<std::string> sources;  // where the code of instructions comes from
  // Where registers are that the machine sets: %tid.x and the like.
  std::unordered_map<std::string, Operand> special;
};

// Names of the sources of a module, by their numbers in it.
using Files = std::unordered_map<int, std::string>;

// The kernels of a file, each read when it is first asked for.
class Programs {
 public:
  explicit Programs(const std::string& path);

  Program& find(const std::string& name);

  // Rows of kernel, source, instruction and count, with tabs between: what has run since the last
  // call.
  std::string take_counts();

 private:
  struct Text {
    std::string_view text;  // from the list of parameters on
    int line;
    const Files* files;
  };

  std::string all_;
  std::list<Files> files_;  // of each module
  std::unordered_map<std::string, Text> texts_;
  std::unordered_map<std::string, Program> programs_;
};

struct Meaning {
  Kind kind;
  Execute execute;
};

// The instructions, by their names with all suffixes.
using Meanings = std::unordered_map<std::string, Meaning>;
const Meanings& meanings();

constexpr uint32_t shared_start = 1024;  // the address of a block's shared memory

}  // namespace openseg::ptx
