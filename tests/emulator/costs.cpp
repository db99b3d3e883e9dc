// SPDX-License-Identifier: MIT
// Counts what the accesses of kernels cost on a GPU, whose unit is a warp's request:
//
// * shared memory: wavefronts, each of which serves one word of every bank. Lanes with 8 or 16
// bytes
//   are served by halves or quarters of a warp.
// * global memory: sectors of 32 bytes that go beyond the L1 cache. Writes and asynchronous copies
//   all do; for reads the last `cached_sectors` of a block are known.
// * memory: of those, the sectors that are read and not among the last `l2_sectors` of all blocks,
//   which run one after the other, and those that are written and not since they came there. What
//   was read for the last time is the first to go.
//
// The lanes of a request are those that come to the same place in the code equally often.
#include <link.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "watch.h"

namespace openseg::emulator {

Place place;

namespace {

constexpr int lanes = 32;
constexpr int banks = 32;
constexpr int word_bytes = 4;
constexpr int sector_bytes = 32;
constexpr int vector_bytes = 16;
constexpr size_t cached_sectors = 1024;
constexpr size_t l2_sectors = 2 * (50 << 20) / 132 / sector_bytes;  // of 2 multiprocessors of 132

struct Range {
  uintptr_t begin = 0, end = 0;

  bool has(uintptr_t address) const { return address >= begin && address < end; }
};

struct Request {
  uint32_t present = 0;
  bool shared;
  uintptr_t addresses[lanes];
};

struct Line {
  const void* kernel;
  const void* code;
  Access kind;
  int64_t bytes;  // of a lane

  auto key() const { return std::tuple(kernel, code, (int)kind, bytes); }
  bool operator<(const Line& other) const { return key() < other.key(); }
};

// Of one line and one warp.
struct Requests {
  Line line;
  uint32_t block = UINT32_MAX;
  uint32_t arrivals[lanes];
  uint32_t complete;  // requests that are counted
  std::vector<Request> open;
};

struct Cost {
  int64_t requests = 0, wavefronts = 0, least_wavefronts = 0, sectors = 0, memory_sectors = 0;
};

struct Cache {
  uint32_t block = UINT32_MAX;
  size_t oldest = 0;
  std::vector<uintptr_t> order;
  std::set<uintptr_t> sectors;
};

class L2 {
 public:
  // Whether memory has to be moved for it, now or later.
  bool access(uintptr_t sector, Access kind) {
    const auto [found, is_new] = entries_.try_emplace(sector);
    Entry& entry = found->second;
    if (is_new) {
      entry.turn = turns_.insert(turns_.end(), sector);
    }
    turns_.splice(kind == Access::last_read ? turns_.begin() : turns_.end(), turns_, entry.turn);
    const bool writes = kind == Access::write || kind == Access::atomic;
    const bool moves = writes ? !entry.written : is_new;
    entry.written |= writes;
    if (entries_.size() > l2_sectors) {
      entries_.erase(turns_.front());
      turns_.pop_front();
    }
    return moves;
  }

 private:
  struct Entry {
    std::list<uintptr_t>::iterator turn;
    bool written = false;
  };

  std::list<uintptr_t> turns_;  // to leave
  std::unordered_map<uintptr_t, Entry> entries_;
};

const void* kernel;
Range stacks, library;
std::vector<Range> shared_arrays;
std::map<std::pair<const void*, uint32_t>, Requests> requests_of;  // code and warp
std::map<Line, Cost> costs;
int64_t products;
Cache cache;
L2 l2;

bool hits(uintptr_t sector) {
  if (cache.block != place.block) {
    cache = {place.block, 0, std::vector<uintptr_t>(cached_sectors), {}};
  }
  if (!cache.sectors.insert(sector).second) {
    return true;
  }
  uintptr_t& oldest = cache.order[cache.oldest];
  cache.sectors.erase(oldest);
  oldest = sector;
  cache.oldest = (cache.oldest + 1) % cached_sectors;
  return false;
}

// The units of `size` bytes that some lanes of a request touch.
std::set<uintptr_t> units(const Request& request, int64_t bytes, int first, int count, int size) {
  std::set<uintptr_t> result;
  for (int lane = first; lane < first + count; ++lane) {
    if (request.present >> lane & 1) {
      const uintptr_t last = (request.addresses[lane] + bytes - 1) / size;
      for (uintptr_t unit = request.addresses[lane] / size; unit <= last; ++unit) {
        result.insert(unit);
      }
    }
  }
  return result;
}

void count_shared(Cost& cost, const Request& request, int64_t bytes) {
  const int together = bytes <= word_bytes ? lanes : bytes < vector_bytes ? lanes / 2 : lanes / 4;
  for (int first = 0; first < lanes; first += together) {
    const std::set<uintptr_t> words = units(request, bytes, first, together, word_bytes);
    int64_t in_bank[banks] = {};
    for (const uintptr_t word : words) {
      ++in_bank[word % banks];
    }
    cost.wavefronts += *std::max_element(in_bank, in_bank + banks);
    cost.least_wavefronts += (int64_t)(words.size() + banks - 1) / banks;
  }
}

void count(const Line& line, const Request& request) {
  Cost& cost = costs[line];
  ++cost.requests;
  if (request.shared) {
    count_shared(cost, request, line.bytes);
    return;
  }
  for (const uintptr_t sector : units(request, line.bytes, 0, lanes, sector_bytes)) {
    const bool reads = line.kind == Access::read || line.kind == Access::last_read;
    if (reads && line.bytes < vector_bytes && hits(sector)) {
      continue;
    }
    ++cost.sectors;
    cost.memory_sectors += l2.access(sector, line.kind);
  }
}

void count_open(Requests& requests) {
  for (const Request& request : requests.open) {
    if (request.present != 0) {
      count(requests.line, request);
    }
  }
  requests.open.clear();
}

void count_all_open() {
  for (auto& [_, requests] : requests_of) {
    count_open(requests);
  }
  requests_of.clear();
}

// Where this library lies, with the emulator's variables.
Range find_library() {
  Range found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* result) {
        Range range{UINTPTR_MAX, 0};
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type == PT_LOAD) {
            const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
            range = {std::min(range.begin, begin), std::max(range.end, begin + header.p_memsz)};
          }
        }
        const bool ours = range.has((uintptr_t)&place);
        if (ours) {
          *static_cast<Range*>(result) = range;
        }
        return (int)ours;
      },
      &found);
  return found;
}

}  // namespace

void watch(const void* address, int64_t bytes, Access kind, const void* code) {
  const uintptr_t begin = (uintptr_t)address;
  if (!place.in_kernel || kind == Access::product || stacks.has(begin) || library.has(begin)) {
    return;
  }
  kind = kind == Access::read && place.last_use ? Access::last_read : kind;
  Requests& requests = requests_of[{code, place.thread / lanes}];
  if (requests.block != place.block) {
    count_open(requests);
    requests.line = {kernel, code, kind, bytes};
    requests.block = place.block;
    requests.complete = 0;
    std::fill_n(requests.arrivals, lanes, 0);
  }
  const int lane = (int)(place.thread % lanes);
  const size_t index = requests.arrivals[lane]++ - requests.complete;
  if (index >= requests.open.size()) {
    requests.open.resize(index + 1);
  }
  Request& request = requests.open[index];
  if (request.present == 0) {  // now: a request of less than a warp is counted after its block
    request.shared = std::any_of(shared_arrays.begin(), shared_arrays.end(),
                                 [&](const Range& array) { return array.has(begin); });
  }
  request.present |= 1u << lane;
  request.addresses[lane] = begin;
  if (index == 0 && request.present == UINT32_MAX) {
    const auto is_open = [](const Request& other) { return other.present != UINT32_MAX; };
    const auto end = std::find_if(requests.open.begin(), requests.open.end(), is_open);
    std::for_each(requests.open.begin(), end,
                  [&](const Request& full) { count(requests.line, full); });
    requests.complete += (uint32_t)(end - requests.open.begin());
    requests.open.erase(requests.open.begin(), end);
  }
}

void start_launch(const void* launched, const void* stacks_begin, int64_t stacks_bytes) {
  count_all_open();
  kernel = launched;
  stacks = {(uintptr_t)stacks_begin, (uintptr_t)stacks_begin + stacks_bytes};
  library = find_library();
  cache = {};
  shared_arrays.clear();
}

void new_shared_array(const void* address, int64_t bytes) {
  const Range array{(uintptr_t)address, (uintptr_t)address + bytes};
  const auto overlaps = [&](const Range& other) {
    return other.begin < array.end && array.begin < other.end;
  };
  std::erase_if(shared_arrays, overlaps);
  shared_arrays.push_back(array);
}

void count_collective(const char* name) {
  products += std::strcmp(name, "mma") == 0;
}

// A warp reads its rows of the left factor; the right one is read for four warps.
void count_group_product(int tiles, const void* code) {
  constexpr int mma_bytes = 32;  // of depth
  const int left_rows = 16;
  const int right_rows = place.thread / lanes % 4 == 0 ? 8 * tiles : 0;
  const int64_t wavefronts = (left_rows + right_rows) * mma_bytes / (banks * word_bytes);
  products += tiles;
  Cost& cost = costs[{kernel, code, Access::product, mma_bytes}];
  ++cost.requests;
  cost.wavefronts += wavefronts;
  cost.least_wavefronts += wavefronts;
}

void note_shown() {}

const char* race_report() {
  return nullptr;
}

}  // namespace openseg::emulator

// What has been counted since the last call: products, then a line for each kernel and place in the
// code.
extern "C" const char* emulator_costs() {
  using namespace openseg::emulator;
  static std::string text;
  count_all_open();
  std::ostringstream lines;
  lines << "products " << products << '\n';
  for (const auto& [line, cost] : costs) {
    lines << line.kernel << ' ' << line.code << ' ' << "rwapl"[(int)line.kind] << line.bytes << ' '
          << cost.requests << ' ' << cost.wavefronts << ' ' << cost.least_wavefronts << ' '
          << cost.sectors << ' ' << cost.memory_sectors << '\n';
  }
  costs.clear();
  l2 = {};
  products = 0;
  text = lines.str();
  return text.c_str();
}
