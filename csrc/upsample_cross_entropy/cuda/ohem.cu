// SPDX-License-Identifier: MIT
// Online hard example mining without a sort and without the host. Probabilities are not negative,
// so their bits, read as integers, have their order, and the k-th smallest is found exactly by
// three histograms of 11, 11 and 10 bits; -1 lies above all. What a histogram says is worked out by
// every block of the kernels after it: that is less work than to wait for one that does.
#include "common/device.cuh"
#include "upsample_cross_entropy/cuda/upsample_cross_entropy.h"

namespace openseg {
namespace {

constexpr int threads = 256;
constexpr int group_count = 64;  // each added up by a thread
constexpr int group_bins = ohem_bins / group_count;
constexpr int blocks_per_multiprocessor = 4;
constexpr uint32_t everything = 0x80000000u;
constexpr uint32_t unknown = 0xffffffffu;

struct Call {
  UpsampleCrossEntropy loss;
  Ohem ohem;
  CrossEntropyForwardCuda result;
  int64_t pixels;
  int pass;  // that counts
};

// The bits of a pass: those before it are the prefix of what it counts.
__device__ int shift_of(int pass) {
  return pass == 0 ? 21 : pass == 1 ? 10 : 0;
}

__device__ int width_of(int pass) {
  return pass == 2 ? 10 : 11;
}

// What the passes so far have found: pixels are hard below `limit` unless that is unknown: then the
// limit has the leading bits `prefix` and is the rank-th of those that have them.
struct Found {
  int64_t rank;
  uint32_t prefix;
  uint32_t limit;
};

// Shared memory of a block.
struct Counters {
  uint32_t* bins;
  uint32_t* groups;
  Found* found;

  __host__ __device__ explicit Counters(SharedMemory& shared)
      : bins(shared.take<uint32_t>(ohem_bins)),
        groups(shared.take<uint32_t>(group_count)),
        found(shared.take<Found>(1)) {}
};

// Goes on by one pass, whose histogram and its sums by groups are in shared memory.
__device__ Found next_found(const Ohem& ohem, const Counters& counters, int pass, Found found) {
  const uint32_t thresh = bits_of(ohem.thresh + 0.0f);  // no negative zero
  const uint32_t inclusive = ohem.openseg ? 0 : 1;
  if (pass == 0) {
    int64_t entered = 0;
    for (int group = 0; group < group_count / 2; ++group) {
      entered += counters.groups[group];
    }
    if (!ohem.openseg && ohem.min_kept >= entered) {
      return {0, 0, everything};
    }
    found.rank = found.rank < entered ? found.rank : entered - 1;
    if (found.rank < 0) {
      return {0, 0, thresh + inclusive};
    }
  }
  int group = 0;
  for (; found.rank >= counters.groups[group]; ++group) {
    found.rank -= counters.groups[group];
  }
  uint32_t bin = group * group_bins;
  for (; found.rank >= counters.bins[bin]; ++bin) {
    found.rank -= counters.bins[bin];
  }
  found.prefix = found.prefix << width_of(pass) | bin;
  const uint64_t end = ((uint64_t)found.prefix + 1) << shift_of(pass);
  if (end <= thresh) {
    return {0, 0, thresh + inclusive};
  }
  if (pass == 2) {
    return {0, 0, (found.prefix > thresh ? found.prefix : thresh) + inclusive};
  }
  return found;
}

// What the passes before call.pass have found, in every thread.
__device__ Found found_so_far(const Call& call, const Counters& counters) {
  const Ohem& ohem = call.ohem;
  if (threadIdx.x == 0) {
    *counters.found = {ohem.openseg ? ohem.min_kept : ohem.min_kept - 1, 0, unknown};
  }
  sync_block();
  for (int pass = 0; pass < call.pass; ++pass) {
    for (int bin = threadIdx.x; bin < ohem_bins; bin += blockDim.x) {
      counters.bins[bin] = call.result.counts[pass * ohem_bins + bin];
    }
    sync_block();
    if (threadIdx.x < group_count) {
      uint32_t sum = 0;
      for (int i = 0; i < group_bins; ++i) {
        // Each thread from a place of its own, lest all are in the same bank.
        sum += counters.bins[threadIdx.x * group_bins + (threadIdx.x + i) % group_bins];
      }
      counters.groups[threadIdx.x] = sum;
    }
    sync_block();
    if (threadIdx.x == 0 && counters.found->limit == unknown) {
      const Found next = next_found(ohem, counters, pass, *counters.found);
      *counters.found = next;
    }
    sync_block();  // the bins have been read
  }
  return *counters.found;
}

__global__ void __launch_bounds__(threads) ohem_count_kernel(Call call) {
  SharedMemory shared;
  const Counters counters(shared);
  const Found found = found_so_far(call, counters);
  if (found.limit != unknown) {  // in all threads
    return;
  }
  for (int bin = threadIdx.x; bin < ohem_bins; bin += threads) {
    counters.bins[bin] = 0;
  }
  sync_block();
  const int shift = shift_of(call.pass);
  const int width = width_of(call.pass);
  const int64_t stride = (int64_t)gridDim.x * threads;
  for (int64_t pixel = (int64_t)blockIdx.x * threads + threadIdx.x; pixel < call.pixels;
       pixel += stride) {
    const uint64_t bits = bits_of(call.result.probability[pixel]);
    if (bits >> (shift + width) == found.prefix) {
      atomic_add(&counters.bins[bits >> shift & ((1u << width) - 1)], 1u);
    }
  }
  sync_block();
  for (int bin = threadIdx.x; bin < ohem_bins; bin += threads) {
    if (counters.bins[bin] != 0) {
      atomic_add(&call.result.counts[call.pass * ohem_bins + bin], counters.bins[bin]);
    }
  }
}

// Takes the pixels that are not hard out of the result, and adds up those that are.
__global__ void __launch_bounds__(threads) ohem_keep_kernel(Call call) {
  SharedMemory shared;
  const Counters counters(shared);
  float* const loss_warps = shared.take<float>(warp_size);
  float* const weight_warps = shared.take<float>(warp_size);
  const uint32_t limit = found_so_far(call, counters).limit;
  const UpsampleCrossEntropy& loss = call.loss;
  const bool weighted = loss.weight && !call.ohem.openseg;
  float total = 0;
  float divisor = 0;
  const int64_t stride = (int64_t)gridDim.x * threads;
  for (int64_t pixel = (int64_t)blockIdx.x * threads + threadIdx.x; pixel < call.pixels;
       pixel += stride) {
    if (bits_of(call.result.probability[pixel]) >= limit) {
      call.result.loss[pixel] = 0;
      call.result.lse[pixel] = infinity();
      continue;
    }
    total += call.result.loss[pixel];
    const int64_t label = !weighted ? 0
                          : loss.target_dtype == DType::uint8
                              ? static_cast<const uint8_t*>(loss.target)[pixel]
                              : static_cast<const int64_t*>(loss.target)[pixel];
    divisor += weighted ? loss.weight[label] : 1.0f;
  }
  total = block_sum(total, loss_warps);
  divisor = block_sum(divisor, weight_warps);
  if (threadIdx.x == 0) {
    call.result.partials[blockIdx.x] = total;
    call.result.partials[gridDim.x + blockIdx.x] = divisor;
  }
}

}  // namespace

int64_t mine_hard_pixels_cuda(const UpsampleCrossEntropy& loss, const Ohem& ohem,
                              const CrossEntropyForwardCuda& result, void* stream) {
  Call call{loss, ohem, result, loss.batch * loss.out_height * loss.out_width, 0};
  const int64_t needed = ceil_div(call.pixels, threads);
  const int64_t most = (int64_t)multiprocessor_count() * blocks_per_multiprocessor;
  SharedMemory measure(nullptr);
  Counters counters(measure);
  for (; call.pass < ohem_passes; ++call.pass) {
    launch(ohem_count_kernel, needed < most ? needed : most, threads, measure.bytes(), stream,
           call);
  }
  measure.take<float>(warp_size);
  measure.take<float>(warp_size);
  const int64_t partials = upsample_cross_entropy_partials(loss);
  const int64_t blocks = partials < most ? partials : most;
  launch(ohem_keep_kernel, blocks, threads, measure.bytes(), stream, call);
  return blocks;
}

}  // namespace openseg
