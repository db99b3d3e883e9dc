// SPDX-License-Identifier: MIT
// dx = gain r (dy - S₁/n) - (y - bias) r S₂ / (gain n), with r = 1 / √(variance + eps), and S₁, S₂
// the sums of dy and of dy (y - bias): division-free for each value. y and dy come from the output
// alone, or from the input.
#include "inplace_abn/inplace_abn.h"

#include "inplace_abn/cpu/walk.h"

namespace openseg::OPENSEG_ISA {
namespace {

// Values of a channel, and pixels of all channels, that are summed in float32: few, for sums that
// nearly cancel.
constexpr int64_t chunk = 16 * lanes, rows = 16;

// Of each channel: what recovers y from what was kept, then dx = c₄ dy + c₅ (y - bias) + c₆.
//   from the output: bias, the greatest |y - bias|
//   from the input:  y - bias = (x - c₀) c₁ + c₂, bias
constexpr int recovery = 4;
constexpr int coefficients = recovery + 3;

void find_recovery(const InPlaceAbnBackward& call, int64_t channel, float* to, int64_t pitch) {
  const int64_t channels = call.kept.channels;
  const double mean = call.statistics[channel], variance = call.statistics[channels + channel];
  const double count = call.statistics[2 * channels + channel];
  const float gain = call.affine[channel], bias = call.affine[channels + channel];
  if (call.kept_input) {
    const double scale = gain / __builtin_sqrt(variance + (double)call.eps);
    to[0] = (float)mean;
    to[pitch] = (float)scale;
    to[2 * pitch] = (float)(((double)to[0] - mean) * scale);
    to[3 * pitch] = bias;
  } else {
    // No normalised value is further out; a rounded output may say so.
    to[0] = bias;
    to[pitch] = gain * (float)__builtin_sqrt(count > 1 ? count - 1 : 0);
    to[2 * pitch] = to[3 * pitch] = 0;
  }
}

// `sums`: [2, channels]
void find_gradient(const InPlaceAbnBackward& call, const double* sums, int64_t channel, float* to,
                   int64_t pitch) {
  const int64_t channels = call.kept.channels;
  const double variance = call.statistics[channels + channel];
  const double count = call.statistics[2 * channels + channel];
  const double gain = call.affine[channel];
  const double inverse = 1 / __builtin_sqrt(variance + (double)call.eps);
  to[recovery * pitch] = (float)(gain * inverse);
  const bool known = count == __builtin_inf();  // statistics that do not depend on the batch
  to[(recovery + 1) * pitch] =
      known ? 0 : (float)(-inverse * sums[channels + channel] / (gain * count));
  to[(recovery + 2) * pitch] = known ? 0 : (float)(-inverse * gain * sums[channel] / count);
}

struct Recovered {
  vfloat grad;      // of y
  vfloat centered;  // y - bias
};

// The lowest output of ELU over its α, above -1, which numbers of few digits reach.
template <typename T>
constexpr float lowest_elu = -1.0f + 0x1p-24f;
template <>
constexpr float lowest_elu<bfloat16> = -1.0f + 0x1p-8f;
template <>
constexpr float lowest_elu<float16> = -1.0f + 0x1p-11f;

// Where y is 0, the gradient is that of its negative side, as in torch.
template <typename T, Activation kind, bool from_input>
struct Recover {
  float parameter, inverse;

  explicit Recover(const InPlaceAbnBackward& call)
      : parameter(call.parameter), inverse(1.0f / call.parameter) {}

  template <typename Coefficients>
  Recovered operator()(vfloat grad, vfloat kept, const Coefficients& c, int64_t i) const {
    if constexpr (from_input) {
      const vfloat centered = (kept - c(0, i)) * c(1, i) + c(2, i);
      const vfloat y = centered + c(3, i);
      if constexpr (kind == Activation::leaky_relu) {
        return {y > 0.0f ? grad : grad * parameter, centered};
      } else if constexpr (kind == Activation::relu) {
        return {y > 0.0f ? grad : vfloat{}, centered};
      } else {
        return {y > 0.0f ? grad : grad * (parameter * exp(y)), centered};
      }
    } else {
      Recovered value;
      vfloat y;
      if constexpr (kind == Activation::leaky_relu) {
        value.grad = kept > 0.0f ? grad : grad * parameter;
        y = kept > 0.0f ? kept : kept * inverse;
      } else {
        value.grad = kept > 0.0f ? grad : grad * (kept + parameter);
        y = kept > 0.0f ? kept : log(max(kept * inverse, splat(lowest_elu<T>)) + 1.0f);
      }
      const vfloat centered = y - c(0, i), most = c(1, i);
      // Written so that NaN stays NaN.
      value.centered = centered > most ? most : centered < -most ? -most : centered;
      return value;
    }
  }
};

template <typename T, Activation kind, bool from_input>
class Backward {
 public:
  explicit Backward(const InPlaceAbnBackward& call)
      : call_(call),
        kept_(call.kept),
        recover_(call),
        pitch_(pitch_of(kept_)),
        streamed_(is_streamed<T>(call.grad_x, call.grad_z)) {}

  // Both halves, or the sums alone.
  bool run(bool sums_alone) const {
    return channels_are_neighbours(kept_) ? run_tasks(sums_alone) : run_channels(sums_alone);
  }

 private:
  bool run_channels(bool sums_alone) const {
    in_parallel(kept_.channels, kept_.batch * kept_.pixels, [&](int64_t begin, int64_t end) {
      for (int64_t channel = begin; channel < end; ++channel) {
        float values[coefficients] = {};
        find_recovery(call_, channel, values, 1);
        if (sums_alone || !call_.known) {
          sum_channel(channel, Uniform<recovery>(values));
        }
        if (!sums_alone) {
          find_gradient(call_, sums(), channel, values, 1);
          const Uniform<coefficients> c(values);
          for (int64_t image = 0; image < kept_.batch; ++image) {
            apply(image, channel, 0, kept_.pixels, c);
          }
        }
      }
    });
    return true;
  }

  void sum_channel(int64_t channel, const Uniform<recovery>& c) const {
    double total = 0, product = 0;
    for (int64_t image = 0; image < kept_.batch; ++image) {
      for (int64_t pixel = 0; pixel < kept_.pixels; pixel += chunk) {
        const T* const grad = at<T>(call_.grad_z, image, channel, pixel);
        const T* const kept = at<T>(kept_, image, channel, pixel);
        const int64_t count = kept_.pixels - pixel < chunk ? kept_.pixels - pixel : chunk;
        vfloat grads{}, products{};
        for_vectors(count, [&](int64_t i, int64_t left) {
          const Recovered value =
              recover_(load_some(grad + i, left), load_some(kept + i, left), c, i);
          grads += value.grad;  // 0 beyond the end, as the gradient is there
          products += value.grad * value.centered;
        });
        total += sum_of(grads);
        product += sum_of(products);
      }
    }
    call_.sums[channel] = total;
    call_.sums[kept_.channels + channel] = product;
  }

  bool run_tasks(bool sums_alone) const {
    const int64_t size = coefficients * pitch_;
    Scratch scratch(size * (int64_t)sizeof(float));
    if (!scratch) {
      return false;
    }
    float* const values = scratch.take<float>(size);
    std::memset(values, 0, size * sizeof(float));
    for (int64_t c = 0; c < kept_.channels; ++c) {
      find_recovery(call_, c, values + c, pitch_);
    }
    const Rows coefficients{values, pitch_};
    if ((sums_alone || !call_.known) && !sum_tasks(coefficients)) {
      return false;
    }
    if (sums_alone) {
      return true;
    }
    for (int64_t c = 0; c < kept_.channels; ++c) {
      find_gradient(call_, sums(), c, values + c, pitch_);
    }
    in_parallel(tasks_of(kept_), task_pixels * kept_.channels, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const Run run = run_of(kept_, task);
        for (int64_t pixel = run.begin; pixel < run.end; ++pixel) {
          apply(run.image, 0, pixel, kept_.channels, coefficients);
        }
      }
    });
    return true;
  }

  bool sum_tasks(const Rows& c) const {
    const int64_t tasks = tasks_of(kept_), both = 2 * kept_.channels;
    Scratch scratch(tasks * both * (int64_t)sizeof(double) + 64);
    if (!scratch) {
      return false;
    }
    double* const partials = scratch.take<double>(tasks * both);
    int failed = 0;
    in_parallel(tasks, task_pixels * kept_.channels, [&](int64_t begin, int64_t end) {
      Scratch buffers(2 * pitch_ * (int64_t)sizeof(float));
      if (!buffers) {
        __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        return;
      }
      float* const sums = buffers.take<float>(2 * pitch_);
      for (int64_t task = begin; task < end; ++task) {
        sum_task(run_of(kept_, task), c, sums, partials + task * both);
      }
    });
    std::memset(call_.sums, 0, both * sizeof(double));
    for (int64_t task = 0; task < tasks; ++task) {
      for (int64_t i = 0; i < both; ++i) {
        call_.sums[i] += partials[task * both + i];
      }
    }
    return failed == 0;
  }

  // `sums`: [2, pitch]; `totals`: [2, channels]
  void sum_task(const Run& run, const Rows& c, float* sums, double* totals) const {
    const int64_t channels = kept_.channels;
    std::memset(totals, 0, 2 * channels * sizeof(double));
    for (int64_t begin = run.begin; begin < run.end; begin += rows) {
      const int64_t end = begin + rows < run.end ? begin + rows : run.end;
      std::memset(sums, 0, 2 * pitch_ * sizeof(float));
      for (int64_t pixel = begin; pixel < end; ++pixel) {
        const T* const grad = at<T>(call_.grad_z, run.image, 0, pixel);
        const T* const kept = at<T>(kept_, run.image, 0, pixel);
        for_vectors(channels, [&](int64_t i, int64_t left) {
          const Recovered value =
              recover_(load_some(grad + i, left), load_some(kept + i, left), c, i);
          float *const total = sums + i, *const product = total + pitch_;
          store(total, load<vfloat>(total) + value.grad);
          store(product, load<vfloat>(product) + value.grad * value.centered);
        });
      }
      for (int64_t i = 0; i < channels; ++i) {
        totals[i] += sums[i];
        totals[channels + i] += sums[pitch_ + i];
      }
    }
  }

  template <typename Coefficients>
  void apply(int64_t image, int64_t channel, int64_t pixel, int64_t count,
             const Coefficients& c) const {
    const T* const grad = at<T>(call_.grad_z, image, channel, pixel);
    const T* const kept = at<T>(kept_, image, channel, pixel);
    T* const grad_x = at<T>(call_.grad_x, image, channel, pixel);
    write_vectors(grad_x, count, streamed_, [&](int64_t i, int64_t left) {
      const Recovered value = recover_(load_some(grad + i, left), load_some(kept + i, left), c, i);
      return c(recovery, i) * value.grad + c(recovery + 1, i) * value.centered + c(recovery + 2, i);
    });
  }

  const double* sums() const { return call_.known ? call_.known : call_.sums; }

  const InPlaceAbnBackward& call_;
  const Map& kept_;
  const Recover<T, kind, from_input> recover_;
  const int64_t pitch_;
  const bool streamed_;
};

bool run(const InPlaceAbnBackward& call, bool sums_alone) {
  bool done = true;
  OPENSEG_DISPATCH_FLOATING(call.kept.dtype, with_kind(call.activation, [&](auto kind) {
                              constexpr Activation activation = decltype(kind)::value;
                              if (call.kept_input) {
                                done = Backward<scalar_t, activation, true>(call).run(sums_alone);
                              } else if constexpr (activation != Activation::relu) {
                                done = Backward<scalar_t, activation, false>(call).run(sums_alone);
                              }
                            }))
  return done;
}

}  // namespace

bool inplace_abn_backward_sums_cpu(const InPlaceAbnBackward& call) {
  return run(call, true);
}

bool inplace_abn_backward_cpu(const InPlaceAbnBackward& call) {
  if (call.known) {
    std::memcpy(call.sums, call.known, 2 * call.kept.channels * sizeof(double));
  }
  return run(call, false);
}

}  // namespace openseg::OPENSEG_ISA
