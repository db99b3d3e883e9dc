// SPDX-License-Identifier: MIT
// Which lanes of which warp go on. Lanes that took different ways go on apart, those that are
// furthest behind first, and together again where they meet.
#include "ptx/machine.h"

#include <algorithm>
#include <memory>

namespace openseg::ptx {
namespace {

class Turns {
 public:
  explicit Turns(uint64_t seed) : seed_(seed), state_(seed) {}

  uint64_t below(uint64_t bound) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ >> 33) % bound;
  }

  // 0 takes the warps in their order, 1 in the reverse one, each as far as it gets; others in a new
  // order each time, for a number of instructions.
  int choose(const std::vector<int>& ready) {
    return seed_ == 0 ? ready.front() : seed_ == 1 ? ready.back() : ready[below(ready.size())];
  }

  int64_t length() { return seed_ < 2 ? INT64_MAX : 1 + below(1000); }

 private:
  uint64_t seed_, state_;
};

void add_group(Warp& warp, Group group) {
  if (group.lanes == 0) {
    return;
  }
  auto& groups = warp.groups;
  const auto at = std::lower_bound(groups.begin(), groups.end(), group.next,
                                   [](const Group& g, int next) { return g.next < next; });
  if (at != groups.end() && at->next == group.next) {
    at->lanes |= group.lanes;
  } else {
    groups.insert(at, group);
  }
}

bool waits(const Program& program, const Group& group) {
  const Kind kind = program.instructions[group.next].kind;
  return (kind == Kind::collective || kind == Kind::barrier) && group.lanes != all_lanes;
}

Group take_group(const Program& program, Warp& warp) {
  const auto found = std::find_if(warp.groups.begin(), warp.groups.end(),
                                  [&](const Group& group) { return !waits(program, group); });
  require(found != warp.groups.end(), "not all lanes of warp ", warp.index,
          " come to the instruction of line ", program.instructions[warp.groups.front().next].line);
  const Group group = *found;
  warp.groups.erase(found);
  return group;
}

void leave(const Warp& warp, uint32_t lanes) {
  for (int lane = 0; lane < lane_count; ++lane) {
    require(!is_active(lanes, lane) || warp.copies[lane].empty(), "a thread of warp ", warp.index,
            " returns with copies under way");
  }
  require(!warp.products_started, "warp ", warp.index, " returns with products under way");
}

// Until it waits for others, ends or has had its turn.
void go_on(Program& program, Warp& warp, int64_t length) {
  while (!warp.groups.empty()) {
    Group group = take_group(program, warp);
    const auto ahead = std::find_if(warp.groups.begin(), warp.groups.end(),
                                    [&](const Group& other) { return other.next > group.next; });
    const int meeting = ahead == warp.groups.end() ? INT32_MAX : ahead->next;
    for (bool together = true; together; --length) {
      Instruction& instruction = program.instructions[group.next];
      if (waits(program, group) || group.next == meeting || length <= 0) {
        add_group(warp, group);
        break;
      }
      warp.line = instruction.line;
      ++instruction.count;
      ++group.next;
      switch (instruction.kind) {
        case Kind::plain:
        case Kind::collective:
          instruction.execute(warp, instruction, group.lanes);
          break;
        case Kind::branch: {
          uint32_t taken = group.lanes;
          if (instruction.has_guard) {
            const uint32_t holds = predicate(warp, instruction.guard_predicate);
            taken &= instruction.guard ? holds : ~holds;
          }
          if (taken == 0) {
            break;
          }
          add_group(warp, {instruction.target, taken});
          add_group(warp, {group.next, group.lanes & ~taken});
          together = false;
          break;
        }
        case Kind::barrier:
          add_group(warp, group);
          warp.at_barrier = true;
          warp.barrier = instruction.line;
          return;
        case Kind::leave:
          leave(warp, group.lanes);
          together = false;
          break;
      }
    }
    if (length <= 0) {
      return;
    }
  }
}

void release_barrier(std::vector<Warp>& warps) {
  for (Warp& warp : warps) {
    require(warp.at_barrier, "warp ", warp.index, " has returned, others wait for it at line ",
            std::find_if(warps.begin(), warps.end(), [](const Warp& w) {
              return w.at_barrier;
            })->barrier);
    require(warp.barrier == warps[0].barrier, "warps wait at lines ", warp.barrier, " and ",
            warps[0].barrier);
    warp.at_barrier = false;
  }
}

void run_block(Program& program, std::vector<Warp>& warps, Turns& turns) {
  for (std::vector<int> ready;;) {
    ready.clear();
    bool any_waits = false;
    for (const Warp& warp : warps) {
      any_waits |= warp.at_barrier;
      if (!warp.at_barrier && !warp.groups.empty()) {
        ready.push_back(warp.index);
      }
    }
    if (!ready.empty()) {
      Warp& warp = warps[turns.choose(ready)];
      try {
        go_on(program, warp, turns.length());
      } catch (const std::exception& exception) {
        require(false, "warp ", warp.index, ", line ", warp.line, ": ", exception.what());
      }
    } else if (any_waits) {
      release_barrier(warps);
    } else {
      return;
    }
  }
}

void set_special(const Program& program, Warp& warp, const char* name, uint32_t value,
                 uint32_t step = 0) {
  uint32_t* const to = results<uint32_t>(warp, program.special.at(name));
  for (int lane = 0; lane < lane_count; ++lane) {
    to[lane] = value + step * lane;
  }
}

}  // namespace

void run(Program& program, dim3 grid, int threads, int64_t shared_bytes, const void* parameters,
         uint64_t seed) {
  require(threads <= program.max_threads && threads % lane_count == 0, "a block of ", threads,
          " threads");
  constexpr size_t alignment = 1024;
  size_t space = shared_bytes + alignment;
  std::vector<char> memory(space);
  void* shared = memory.data();
  std::align(alignment, shared_bytes, shared, space);
  Block block{static_cast<char*>(shared), shared_bytes, static_cast<const char*>(parameters),
              program.parameter_bytes};
  std::vector<Warp> warps(threads / lane_count);
  Turns turns(seed);
  for (Warp& warp : warps) {
    warp.block = &block;
    warp.index = (int)(&warp - warps.data());
    // What is read before it is written shows in the results.
    warp.registers.assign(program.register_bytes / sizeof(uint64_t), ~(uint64_t)0);
    const auto registers = reinterpret_cast<const char*>(warp.registers.data());
    const auto constants = reinterpret_cast<const char*>(program.constants.data());
    warp.words[0] = warp.double_words[0] = registers;
    warp.double_words[1] = constants;
    warp.words[1] = constants + lane_count * sizeof(uint64_t);
    set_special(program, warp, "%tid.x", warp.index * lane_count, 1);
    set_special(program, warp, "%ntid.x", threads);
    set_special(program, warp, "%nctaid.x", grid.x);
    set_special(program, warp, "%nctaid.y", grid.y);
    set_special(program, warp, "%nctaid.z", grid.z);
  }
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        std::fill_n(block.shared, shared_bytes, (char)0xff);
        for (Warp& warp : warps) {
          warp.groups = {{0, all_lanes}};
          warp.at_barrier = warp.products_started = false;
          std::fill_n(warp.copy_group, lane_count, 0);
          set_special(program, warp, "%ctaid.x", x);
          set_special(program, warp, "%ctaid.y", y);
          set_special(program, warp, "%ctaid.z", z);
        }
        try {
          run_block(program, warps, turns);
        } catch (const std::exception& exception) {
          require(false, program.name, ", block (", x, ", ", y, ", ", z, "): ", exception.what());
        }
      }
    }
  }
}

const Meanings& meanings() {
  static const Meanings all = [] {
    Meanings made;
    add_arithmetic(made);
    add_memory(made);
    add_products(made);
    made["bra"] = made["bra.uni"] = {Kind::branch, nullptr};
    made["ret"] = {Kind::leave, nullptr};
    made["bar.sync"] = {Kind::barrier, nullptr};
    made["bar.warp.sync"] = {Kind::collective, [](Warp&, const Instruction&, uint32_t) {}};
    return made;
  }();
  return all;
}

}  // namespace openseg::ptx
