// SPDX-License-Identifier: MIT
// A race detector.
//
// For each byte, the last write and all reads since the last barrier fit into a cell of fixed size:
// if two warps have read, then any write races with one of them; if one has, a mask of its lanes
// tells.
#include "watch.h"

#include <cstdio>
#include <cstring>
#include <unordered_map>
#include <vector>

namespace openseg::emulator {

Place place;

namespace {

constexpr uint32_t nobody = 0;
constexpr uint32_t several = UINT32_MAX;
constexpr int page_bytes = 1024;
constexpr int report_limit = 8;

struct Cell {
  uint32_t write_block;  // 1 + block, nobody, or several (atomics)
  uint32_t write_phase, write_warp_phase;
  uint32_t write_thread;  // or several (atomics)
  uint32_t write_shows;   // how often the thread had shown what it wrote
  uint32_t read_block;    // 1 + block, nobody or several
  uint32_t read_phase, read_warp_phase;
  uint32_t read_warps;  // a bit for each warp that read in this phase
  uint32_t read_lanes;  // of the last of these warps, in its phase
  bool atomic;
  bool shared;
  const void* write_code;
  const void* read_code;
};

struct Page {
  uint64_t launch;
  Cell cells[page_bytes];
};

std::unordered_map<uintptr_t, Page>* pages;
uint64_t launch;
struct {
  uint32_t block;
  std::vector<uint32_t> phases;
} shows[1024];  // of a thread: when it has shown what it wrote
uintptr_t cached_number;
Page* cached_page;
uintptr_t stacks_begin, stacks_end;
char report[report_limit * 256];
int reports;
const void* reported[report_limit];

Cell& cell_of(uintptr_t address) {
  const uintptr_t number = address / page_bytes;
  if (cached_page == nullptr || number != cached_number) {
    cached_page = &(*pages)[number];
    cached_number = number;
    if (cached_page->launch != launch) {
      std::memset(cached_page, 0, sizeof(Page));
      cached_page->launch = launch;
    }
  }
  return cached_page->cells[address % page_bytes];
}

void complain(const char* what, const void* code, const void* other) {
  for (int i = 0; i < reports; ++i) {
    if (reported[i] == code) {
      return;
    }
  }
  if (reports < report_limit) {
    reported[reports++] = code;
    char* const end = report + std::strlen(report);
    std::snprintf(end, report + sizeof report - end, "\n%s: block %u thread %u at %p, and %p", what,
                  place.block, place.thread, code, other);
  }
}

bool follows_write(const Cell& cell) {
  if (cell.write_block != place.block + 1) {
    return cell.write_block == nobody;
  }
  const bool own_warp = cell.write_thread / 32 == place.thread / 32;
  return cell.write_thread == place.thread || cell.write_phase != place.block_phase ||
         (own_warp && cell.write_warp_phase != place.warp_phase);
}

auto& shows_of(uint32_t thread) {
  auto& [block, phases] = shows[thread];
  if (block != place.block) {
    block = place.block;
    phases.clear();
  }
  return phases;
}

// Before a barrier that the reader has passed.
bool was_shown(const Cell& cell) {
  if (cell.write_block != place.block + 1 || cell.write_thread == several) {
    return cell.write_block == nobody;
  }
  const auto& phases = shows_of(cell.write_thread);
  return cell.write_shows < phases.size() && phases[cell.write_shows] != place.block_phase;
}

bool follows_reads(const Cell& cell) {
  if (cell.read_block != place.block + 1) {
    return cell.read_block == nobody;
  }
  const uint32_t own_warp = 1u << place.thread / 32;
  const uint32_t own_lane = 1u << place.thread % 32;
  return cell.read_phase != place.block_phase ||
         (cell.read_warps == own_warp &&
          (cell.read_warp_phase != place.warp_phase || cell.read_lanes == own_lane));
}

void note_read(Cell& cell, const void* code) {
  const uint32_t block = place.block + 1;
  const uint32_t own_warp = 1u << place.thread / 32;
  if (cell.read_block != block || cell.read_phase != place.block_phase) {
    cell.read_block = cell.read_block == nobody || cell.read_block == block ? block : several;
    cell.read_phase = place.block_phase;
    cell.read_warps = 0;
  }
  if (cell.read_warps != own_warp || cell.read_warp_phase != place.warp_phase) {
    cell.read_lanes = 0;
  }
  cell.read_warps |= own_warp;
  cell.read_warp_phase = place.warp_phase;
  cell.read_lanes |= 1u << place.thread % 32;
  cell.read_code = code;
}

void note_write(Cell& cell, bool atomic, const void* code) {
  const uint32_t block = place.block + 1;
  const bool joins = atomic && cell.atomic && !follows_write(cell);
  cell.write_thread = joins ? several : place.thread;
  cell.write_block = joins && cell.write_block != block ? several : block;
  cell.write_phase = place.block_phase;
  cell.write_warp_phase = place.warp_phase;
  cell.write_shows = (uint32_t)shows_of(place.thread).size();
  cell.atomic = atomic;
  cell.write_code = code;
}

}  // namespace

void watch(const void* address, int64_t bytes, Access kind, const void* code) {
  const uintptr_t begin = (uintptr_t)address;
  if (!place.in_kernel || (begin >= stacks_begin && begin < stacks_end)) {
    return;
  }
  const bool is_read = kind == Access::read || kind == Access::product;
  for (uintptr_t byte = begin; byte < begin + bytes; ++byte) {
    Cell& cell = cell_of(byte);
    const bool both_atomic = kind == Access::atomic && cell.atomic;
    if (!follows_write(cell) && !both_atomic) {
      complain(is_read ? "race, read after write" : "race, write after write", code,
               cell.write_code);
    } else if (kind == Access::product && !was_shown(cell)) {
      complain("product of what was not shown to it before a barrier", code, cell.write_code);
    }
    if (kind != Access::write && cell.shared && cell.write_block == nobody) {
      complain("read of shared memory that was never written", code, nullptr);
    }
    if (is_read) {
      note_read(cell, code);
      continue;
    }
    if (!follows_reads(cell)) {
      complain("race, write after read", code, cell.read_code);
    }
    note_write(cell, kind == Access::atomic, code);
  }
}

void start_launch(const void* /*kernel*/, const void* stacks, int64_t stacks_bytes) {
  if (pages == nullptr) {
    pages = new std::unordered_map<uintptr_t, Page>;
  }
  ++launch;
  for (auto& [block, phases] : shows) {
    phases.clear();
  }
  cached_page = nullptr;
  stacks_begin = (uintptr_t)stacks;
  stacks_end = stacks_begin + stacks_bytes;
  reports = 0;
  report[0] = 0;
}

void new_shared_array(const void* address, int64_t bytes) {
  for (uintptr_t byte = (uintptr_t)address; byte < (uintptr_t)address + bytes; ++byte) {
    Cell& cell = cell_of(byte);
    std::memset(&cell, 0, sizeof cell);
    cell.shared = true;
  }
}

void count_collective(const char* /*name*/) {}
void count_group_product(int /*tiles*/, const void* /*code*/) {}

void note_shown() {
  shows_of(place.thread).push_back(place.block_phase);
}

const char* race_report() {
  return reports == 0 ? nullptr : report;
}

}  // namespace openseg::emulator
