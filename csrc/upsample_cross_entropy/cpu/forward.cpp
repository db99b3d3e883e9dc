// SPDX-License-Identifier: MIT
// Output rows are independent: first log(sum(exp)) of all pixels of a row, in the order of slots,
// then the loss of each pixel from the two values of its own class.
#include "common/parallel.h"
#include "upsample_cross_entropy/cpu/blended_row.h"

namespace openseg::OPENSEG_ISA {
namespace {

class Forward {
 public:
  Forward(const UpsampleCrossEntropy& call, const CrossEntropyForward& result)
      : call_(call),
        result_(result),
        geometry_(call),
        blended_(call, geometry_),
        scratch_(bytes()) {
    if (!scratch_) {
      return;
    }
    geometry_.build(&scratch_);
    weight_ = scratch_.take<float>(call.classes);
    copy_weights(call, weight_);
    blended_.build(&scratch_, weight_);
    log_sums_ = scratch_.take<float>(geometry_.steps * geometry_.pitch);
    shifts_ = scratch_.take<float>(geometry_.steps * geometry_.pitch);
    labels_ = scratch_.take<int32_t>(call.out_width);
    nll_ = scratch_.take<float>(round_up(call.out_width, lanes));
    std::memset(nll_, 0, round_up(call.out_width, lanes) * sizeof(float));
  }

  explicit operator bool() const { return (bool)scratch_; }

  void run(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      blended_.move_to(row / call_.out_height, source_of(row % call_.out_height, call_.in_height,
                                                         call_.out_height, call_.align_corners));
      for (int first = 0; first < geometry_.steps; first += most_steps) {
        const int rest = geometry_.steps - first;
        with_steps<most_steps>(rest < most_steps ? rest : most_steps,
                               [&](auto steps) { find_log_sums<decltype(steps)::value>(first); });
      }
      read_labels(call_, row, labels_);
      result_.totals[row] = finish(row);
    }
  }

 private:
  int64_t bytes() const {
    const int64_t slots = geometry_.steps * geometry_.pitch;
    const int64_t words = call_.classes + 2 * slots + 2 * call_.out_width + lanes;
    return geometry_.bytes() + blended_.bytes() + words * 4 + 5 * 64;
  }

  template <int Steps>
  void find_log_sums(int first) {
    for (int64_t c = 0; c < geometry_.pitch; c += lanes) {
      const int64_t slot = first * geometry_.pitch + c;
      vfloat sums[Steps] = {};
      if (blended_.is_steep()) {
        sum_plainly<Steps>(slot, sums);
      } else {
        sum_sequences<Steps>(c, load<vfloat>(geometry_.right + slot), sums);
      }
      for (int i = 0; i < Steps; ++i) {
        store(log_sums_ + slot + i * geometry_.pitch, log(sums[i]));
      }
    }
  }

  template <int Steps>
  void sum_sequences(int64_t c, vfloat start, vfloat (&sums)[Steps]) const {
    for (int64_t k = 0; k < call_.classes; ++k) {
      const vfloat a = load<vfloat>(blended_.row(k) + c);
      const vfloat difference = load<vfloat>(blended_.row(k) + c + 1) - a;
      vfloat term = exp(a + start * difference);
      const vfloat ratio = exp(geometry_.step * difference);
      for (int i = 0; i < Steps; ++i) {
        sums[i] += term;
        term *= ratio;
      }
    }
  }

  template <int Steps>
  void sum_plainly(int64_t slot, vfloat (&sums)[Steps]) {
    for (int i = 0; i < Steps; ++i, slot += geometry_.pitch) {
      const vfloat shift = blended_.greatest(slot);
      for (int64_t k = 0; k < call_.classes; ++k) {
        sums[i] += exp(blended_.values(k, slot) - shift);
      }
      store(shifts_ + slot, shift);
    }
  }

  RowTotals finish(int64_t row) {
    const int64_t start = row * call_.out_width;
    RowTotals totals{};
    for (int64_t x = 0; x < call_.out_width; ++x) {
      const bool enters = labels_[x] >= 0 || (start + x == 0 && result_.first_enters);
      const int32_t label = labels_[x] >= 0 ? labels_[x] : 0;
      float loss = 0.0f, nll = -1.0f;
      const float log_sum = log_sums_[geometry_.slot[x]];
      if (enters) {
        const float log_p = value(label, x) - log_sum;
        nll = log_p > 0.0f ? 0.0f : -log_p;
      }
      if (labels_[x] >= 0) {
        loss = weight_[label] * nll;
        if (call_.label_smoothing > 0) {
          const float uniform = log_sum - value(call_.classes, x);  // the mean of -log(p)
          loss += call_.label_smoothing * (uniform * blended_.weights() / call_.classes - loss);
        }
        totals.loss += loss;
        totals.divisor += weight_[label];
      } else if (labels_[x] == invalid && totals.invalid++ == 0) {
        totals.first_invalid = start + x;
      }
      result_.lse[start + x] = labels_[x] >= 0 ? log_sum : __builtin_inff();
      if (result_.loss) {
        result_.loss[start + x] = loss;
      }
      nll_[x] = nll;
    }
    if (result_.probability) {
      find_probabilities(result_.probability + start);
    }
    return totals;
  }

  // The logit of a pixel, shifted.
  float value(int64_t k, int64_t x) const {
    const float* const at = blended_.row(k) + geometry_.cell[x];
    const float value = interpolate(at[0], at[1], geometry_.right[geometry_.slot[x]]);
    return blended_.is_steep() ? value - shifts_[geometry_.slot[x]] : value;
  }

  // A NaN is as hard as can be: it belongs into the loss.
  void find_probabilities(float* probability) const {
    for (int64_t x = 0; x < call_.out_width; x += lanes) {
      const vfloat nll = load<vfloat>(nll_ + x);
      const vfloat known = nll == nll ? exp(-nll) : vfloat{};
      const vfloat p = nll < 0.0f ? splat(-1.0f) : known;
      const int64_t rest = call_.out_width - x;
      std::memcpy(probability + x, &p, (rest < lanes ? rest : lanes) * sizeof(float));
    }
  }

  const UpsampleCrossEntropy& call_;
  const CrossEntropyForward& result_;
  Geometry geometry_;
  BlendedRow blended_;
  Scratch scratch_;
  float* weight_ = nullptr;    // [classes]
  float* log_sums_ = nullptr;  // [steps * pitch]
  float* shifts_ = nullptr;    // [steps * pitch] in the plain way alone
  int32_t* labels_ = nullptr;  // [out_width]
  float* nll_ = nullptr;       // [out_width] -log(probability), -1 if ignored
};

}  // namespace

bool upsample_cross_entropy_forward_cpu(const UpsampleCrossEntropy& call,
                                        const CrossEntropyForward& result) {
  struct Context {
    const UpsampleCrossEntropy& call;
    const CrossEntropyForward& result;
    int failed;
  } context{call, result, 0};
  run_parallel(
      call.batch * call.out_height, 1 + grain_values / (call.out_width * call.classes),
      [](int64_t begin, int64_t end, void* pointer) {
        Context& context = *(Context*)pointer;
        Forward forward(context.call, context.result);
        if (forward) {
          forward.run(begin, end);
        } else {
          __atomic_store_n(&context.failed, 1, __ATOMIC_RELAXED);
        }
      },
      &context);
  return context.failed == 0;
}

}  // namespace openseg::OPENSEG_ISA
