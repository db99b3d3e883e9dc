// SPDX-License-Identifier: MIT
// Squares are summed about a value near the mean, and pieces merged with their own means (Chan,
// Golub, LeVeque 1983), so that nothing cancels: the mean of the first piece, then that of all
// pieces so far.
#include "inplace_abn/inplace_abn.h"

#include "inplace_abn/cpu/walk.h"

namespace openseg::OPENSEG_ISA {
namespace {

// Values of a channel, and pixels of all channels, that are summed in float32.
constexpr int64_t chunk = 1024, rows = 32;

struct Moments {
  double count = 0, mean = 0, squares = 0;  // the squares about the mean

  void add(double more, double other_mean, double other_squares) {
    const double all = count + more, share = more / all, difference = other_mean - mean;
    mean += share * difference;
    squares += other_squares + count * share * difference * difference;
    count = all;
  }

  // Values whose sum about `shift`, and that of their squares, are known.
  void add_sums(double more, double shift, double sum, double square) {
    const double offset = sum * (1 / more);
    add(more, shift + offset, square - sum * offset);
  }

  void store_to(double* statistics, int64_t channel, int64_t channels) const {
    statistics[channel] = mean;
    statistics[channels + channel] = count > 0 ? squares / count : 0;
    statistics[2 * channels + channel] = count;
  }
};

template <typename T>
float mean_of(const T* x, int64_t count) {
  vfloat sum{};
  for_vectors(count, [&](int64_t i, int64_t left) { sum += load_some(x + i, left); });
  return sum_of(sum) / (float)count;
}

template <typename T>
Moments channel_moments(const Map& x, int64_t channel) {
  Moments moments;
  for (int64_t image = 0; image < x.batch; ++image) {
    for (int64_t pixel = 0; pixel < x.pixels; pixel += chunk) {
      const T* const from = at<T>(x, image, channel, pixel);
      const int64_t count = x.pixels - pixel < chunk ? x.pixels - pixel : chunk;
      const float shift = moments.count > 0 ? (float)moments.mean : mean_of(from, count);
      vfloat sum{}, square{};
      for_vectors(count, [&](int64_t i, int64_t left) {
        const vfloat offset = first_of(load_some(from + i, left) - shift, left);
        sum += offset;
        square += offset * offset;
      });
      moments.add_sums((double)count, shift, sum_of(sum), sum_of(square));
    }
  }
  return moments;
}

// The sums of a task: for each channel mean, squares about it and, the same for all, their number.
struct Partials {
  double* start;  // [tasks, 2, channels]
  int64_t channels;

  double* means(int64_t task) const { return start + task * 2 * channels; }
  double* squares(int64_t task) const { return means(task) + channels; }
};

// `buffers`: [3, pitch]
template <typename T>
void task_moments(const Map& x, const Run& run, double* means, double* squares, float* buffers) {
  const int64_t channels = x.channels, pitch = pitch_of(x);
  float *const shift = buffers, *const sum = shift + pitch, *const square = sum + pitch;
  std::memset(means, 0, 2 * channels * sizeof(double));
  std::memset(buffers, 0, 3 * pitch * sizeof(float));
  const int64_t first = run.end - run.begin < rows ? run.end - run.begin : rows;
  const float share = 1.0f / (float)first;
  for (int64_t row = 0; row < first; ++row) {
    const T* const from = at<T>(x, run.image, 0, run.begin + row);
    for_vectors(channels, [&](int64_t c, int64_t left) {
      store(shift + c, load<vfloat>(shift + c) + load_some(from + c, left) * share);
    });
  }
  for (int64_t begin = run.begin; begin < run.end; begin += rows) {
    const int64_t count = run.end - begin < rows ? run.end - begin : rows;
    std::memset(sum, 0, 2 * pitch * sizeof(float));
    for (int64_t row = 0; row < count; ++row) {
      const T* const from = at<T>(x, run.image, 0, begin + row);
      for_vectors(channels, [&](int64_t c, int64_t left) {
        const vfloat offset = load_some(from + c, left) - load<vfloat>(shift + c);
        store(sum + c, load<vfloat>(sum + c) + offset);
        store(square + c, load<vfloat>(square + c) + offset * offset);
      });
    }
    for (int64_t c = 0; c < channels; ++c) {
      Moments moments{(double)(begin - run.begin), means[c], squares[c]};
      moments.add_sums((double)count, shift[c], sum[c], square[c]);
      means[c] = moments.mean;
      squares[c] = moments.squares;
      shift[c] = (float)moments.mean;
    }
  }
}

template <typename T>
bool find_moments_of_tasks(const Map& x, const Partials& partials) {
  int failed = 0;
  in_parallel(tasks_of(x), task_pixels * x.channels, [&](int64_t begin, int64_t end) {
    Scratch scratch(3 * pitch_of(x) * (int64_t)sizeof(float));
    if (!scratch) {
      __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
      return;
    }
    float* const buffers = scratch.take<float>(3 * pitch_of(x));
    for (int64_t task = begin; task < end; ++task) {
      task_moments<T>(x, run_of(x, task), partials.means(task), partials.squares(task), buffers);
    }
  });
  return failed == 0;
}

void merge(const Map& x, const Partials& partials, double* statistics) {
  in_parallel(x.channels, 4 * tasks_of(x), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      Moments moments;
      for (int64_t task = 0; task < tasks_of(x); ++task) {
        const Run run = run_of(x, task);
        moments.add((double)(run.end - run.begin), partials.means(task)[c],
                    partials.squares(task)[c]);
      }
      moments.store_to(statistics, c, x.channels);
    }
  });
}

bool find_statistics(const Map& x, double* statistics) {
  bool done = true;
  OPENSEG_DISPATCH_FLOATING(x.dtype, {
    if (!channels_are_neighbours(x)) {
      in_parallel(x.channels, x.batch * x.pixels, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          channel_moments<scalar_t>(x, c).store_to(statistics, c, x.channels);
        }
      });
    } else {
      const int64_t size = tasks_of(x) * 2 * x.channels;
      Scratch scratch(size * (int64_t)sizeof(double) + 64);
      const Partials partials{scratch.take<double>(size), x.channels};
      done = scratch && find_moments_of_tasks<scalar_t>(x, partials);
      if (done) {
        merge(x, partials, statistics);
      }
    }
  })
  return done;
}

constexpr int coefficients = 3;  // y = (x - c₀) c₁ + c₂

// c₀ is near x, where x - c₀ is exact; what rounding it to float32 took away is in c₂.
void find_coefficients(const InPlaceAbn& call, int64_t channel, float* to, int64_t pitch) {
  const int64_t channels = call.x.channels;
  const double mean = call.statistics[channel], variance = call.statistics[channels + channel];
  const double scale = call.affine[channel] / __builtin_sqrt(variance + (double)call.eps);
  to[0] = (float)mean;
  to[pitch] = (float)scale;
  to[2 * pitch] = (float)(((double)to[0] - mean) * scale + call.affine[channels + channel]);
}

template <Activation kind>
inline vfloat activate(vfloat y, float parameter) {
  if constexpr (kind == Activation::leaky_relu) {
    return y > 0.0f ? y : y * parameter;
  } else if constexpr (kind == Activation::relu) {
    return y < 0.0f ? vfloat{} : y;
  } else {
    return y > 0.0f ? y : parameter * (exp(y) - 1.0f);
  }
}

template <typename T, Activation kind, typename Coefficients>
void apply(const T* x, T* z, int64_t count, float parameter, bool streamed, const Coefficients& c) {
  write_vectors(z, count, streamed, [&](int64_t i, int64_t left) {
    const vfloat y = (load_some(x + i, left) - c(0, i)) * c(1, i) + c(2, i);
    return activate<kind>(y, parameter);
  });
}

template <typename T, Activation kind>
void apply_to_channel(const InPlaceAbn& call, int64_t channel) {
  float values[coefficients];
  find_coefficients(call, channel, values, 1);
  const Uniform<coefficients> c(values);
  for (int64_t image = 0; image < call.x.batch; ++image) {
    apply<T, kind>(at<T>(call.x, image, channel, 0), at<T>(call.z, image, channel, 0),
                   call.x.pixels, call.parameter, is_streamed<T>(call.z, call.x), c);
  }
}

template <typename T, Activation kind>
void run_channels(const InPlaceAbn& call) {
  in_parallel(call.x.channels, call.x.batch * call.x.pixels, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      if (!call.known) {
        channel_moments<T>(call.x, c).store_to(call.statistics, c, call.x.channels);
      }
      apply_to_channel<T, kind>(call, c);
    }
  });
}

template <typename T, Activation kind>
bool run_tasks(const InPlaceAbn& call) {
  const Map& x = call.x;
  const int64_t pitch = pitch_of(x);
  Scratch scratch(coefficients * pitch * (int64_t)sizeof(float));
  if (!scratch || (!call.known && !find_statistics(x, call.statistics))) {
    return false;
  }
  float* const values = scratch.take<float>(coefficients * pitch);
  for (int64_t c = 0; c < x.channels; ++c) {
    find_coefficients(call, c, values + c, pitch);
  }
  const bool streamed = is_streamed<T>(call.z, x);
  in_parallel(tasks_of(x), task_pixels * x.channels, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const Run run = run_of(x, task);
      for (int64_t pixel = run.begin; pixel < run.end; ++pixel) {
        apply<T, kind>(at<T>(x, run.image, 0, pixel), at<T>(call.z, run.image, 0, pixel),
                       x.channels, call.parameter, streamed, Rows{values, pitch});
      }
    }
  });
  return true;
}

}  // namespace

bool inplace_abn_statistics_cpu(const Map& x, double* statistics) {
  return find_statistics(x, statistics);
}

bool inplace_abn_cpu(const InPlaceAbn& call) {
  if (call.known) {
    std::memcpy(call.statistics, call.known, 3 * call.x.channels * sizeof(double));
  }
  bool done = true;
  OPENSEG_DISPATCH_FLOATING(call.x.dtype, with_kind(call.activation, [&](auto kind) {
                              if (!channels_are_neighbours(call.x)) {
                                run_channels<scalar_t, decltype(kind)::value>(call);
                              } else {
                                done = run_tasks<scalar_t, decltype(kind)::value>(call);
                              }
                            }))
  return done;
}

}  // namespace openseg::OPENSEG_ISA
