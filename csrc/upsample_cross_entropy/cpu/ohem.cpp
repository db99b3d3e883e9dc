// SPDX-License-Identifier: MIT
// Online hard example mining without a sort. Probabilities are not negative, so their bits, read as
// integers, have their order, and the k-th smallest is found exactly by three histograms of 11, 11
// and 10 bits. The -1 of an ignored pixel lies above all of them.
#include "common/parallel.h"
#include "common/simd.h"
#include "upsample_cross_entropy/upsample_cross_entropy.h"

namespace openseg::OPENSEG_ISA {
namespace {

constexpr uint32_t everything = 0x80000000u;
constexpr int bins = 1 << 11;
constexpr int64_t grain = 1 << 16;

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

struct Histogram {
  const float* values;
  uint32_t prefix;  // counts the values whose leading bits these are,
  int shift;        // by those that follow, but for the last `shift` bits
  int width;        // of a bin's number, in bits
  int64_t counts[bins];

  // Integer sums are the same in every order, therefore the atomics leave them deterministic.
  void add(int64_t begin, int64_t end) {
    uint32_t local[bins] = {};
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t bits = bits_of(values[i]);
      if (bits >> (shift + width) == prefix) {
        ++local[bits >> shift & ((1u << width) - 1)];
      }
    }
    for (int bin = 0; bin < bins; ++bin) {
      if (local[bin] != 0) {
        __atomic_fetch_add(&counts[bin], local[bin], __ATOMIC_RELAXED);
      }
    }
  }
};

// Pixels are hard whose probability has bits below the result.
uint32_t find_limit(const float* probability, int64_t count, const Ohem& ohem) {
  const uint32_t thresh = bits_of(ohem.thresh + 0.0f);  // no negative zero
  const uint32_t inclusive = ohem.openseg ? 0 : 1;
  int64_t rank = ohem.openseg ? ohem.min_kept : ohem.min_kept - 1;
  uint32_t prefix = 0;
  constexpr int shifts[] = {21, 10, 0};
  for (int shift : shifts) {
    Histogram histogram{probability, prefix, shift, shift > 0 ? 11 : 10, {}};
    run_parallel(
        count, grain,
        [](int64_t begin, int64_t end, void* pointer) { ((Histogram*)pointer)->add(begin, end); },
        &histogram);
    if (shift == 21) {
      int64_t entered = 0;
      for (int bin = 0; bin < bins / 2; ++bin) {
        entered += histogram.counts[bin];
      }
      if (!ohem.openseg && ohem.min_kept >= entered) {
        return everything;
      }
      rank = rank < entered ? rank : entered - 1;
      if (rank < 0) {
        return thresh + inclusive;
      }
    }
    uint32_t bin = 0;
    for (; rank >= histogram.counts[bin]; ++bin) {
      rank -= histogram.counts[bin];
    }
    prefix = prefix << histogram.width | bin;
    if ((prefix + 1) << shift <= thresh) {
      return thresh + inclusive;
    }
  }
  return (prefix > thresh ? prefix : thresh) + inclusive;
}

void keep_hard(const UpsampleCrossEntropy& call, const Ohem& ohem, uint32_t limit, int64_t row,
               const CrossEntropyForward& result) {
  RowTotals& totals = result.totals[row];
  totals.loss = totals.divisor = 0;
  OPENSEG_DISPATCH_INTEGRAL(call.target_dtype, {
    const scalar_t* target = (const scalar_t*)call.target;
    for (int64_t i = row * call.out_width; i < (row + 1) * call.out_width; ++i) {
      if (bits_of(result.probability[i]) >= limit) {
        result.loss[i] = 0.0f;
        result.lse[i] = __builtin_inff();
        continue;
      }
      totals.loss += result.loss[i];
      totals.divisor += ohem.openseg || !call.weight ? 1.0f : call.weight[target[i]];
    }
  })
}

}  // namespace

void mine_hard_pixels_cpu(const UpsampleCrossEntropy& call, const Ohem& ohem,
                          const CrossEntropyForward& result) {
  struct Context {
    const UpsampleCrossEntropy& call;
    const Ohem& ohem;
    const CrossEntropyForward& result;
    uint32_t limit;
  } context{call, ohem, result, 0};
  const int64_t rows = call.batch * call.out_height;
  context.limit = find_limit(result.probability, rows * call.out_width, ohem);
  run_parallel(
      rows, 1 + grain / call.out_width,
      [](int64_t begin, int64_t end, void* pointer) {
        const Context& context = *(Context*)pointer;
        for (int64_t row = begin; row < end; ++row) {
          keep_hard(context.call, context.ohem, context.limit, row, context.result);
        }
      },
      &context);
}

}  // namespace openseg::OPENSEG_ISA
