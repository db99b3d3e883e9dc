// SPDX-License-Identifier: MIT
// A block owns some channels of a slab of pixels: lanes side by side along the channels where those
// lie side by side, each with a vector of them, else one channel alone; the other threads are rows,
// which take the pixels in turns. Nothing else depends on the layout.
//
// Sums of a slab are added in a tree, those of slabs in their order, in float64; no float atomics.
// The coefficients of the channels of a block are computed once, by a thread each.
#include "inplace_abn/cuda/inplace_abn.h"

#include "inplace_abn/cuda/values.cuh"
#include "inplace_abn/cuda/walk.cuh"

namespace openseg {
namespace {

constexpr int sum_parts = threads / warp_size;  // that share the slabs of a channel
constexpr int moments_partials = 3;             // a slab's shift, and the sums about it

// What a thread has found of its channels in a slab, to partials [kind, slab, channel].
template <int count, int width>
__device__ void write_partials(const float (&found)[count], float* partials, const Split& split,
                               int64_t channels, const Place<width>& place) {
  constexpr int piece = float_piece<width>;
#pragma unroll
  for (int i = 0; i < count; i += piece) {
    Vector<float, piece> some;
#pragma unroll
    for (int v = 0; v < piece; ++v) {
      some.values[v] = found[i + v];
    }
    const int64_t row = (int64_t)(i / width) * split.all_slabs + place.slab;
    float* const to = partials + row * channels + place.channel + i % width;
    *reinterpret_cast<Vector<float, piece>*>(to) = some;
  }
}

int64_t tree_bytes(int width) {
  return 2 * width * threads * sizeof(float);
}

struct StatisticsCall {
  Map x;
  Split split;
  const double* known;
  double* statistics;
  float* partials;
  double count;  // values of a channel
  double share;  // of one of them: a division in float64 would spill there
};

// Squares about the first value of the slab: that it may be far out only matters as much as it
// itself adds to the variance.
template <typename T, int width>
__global__ void __launch_bounds__(threads) inplace_abn_moments_kernel(StatisticsCall call) {
  SharedMemory shared;
  float* const tree = shared.take<float>(2 * width * threads);
  const Place<width> place(call.split, call.x, Order::from_start);
  float shift[width] = {};
  float sums[2 * width] = {};
  if (place.inside) {
    const Column<T, width> x(call.x, place);
    const Vector<T, width> start = x.read(0);
#pragma unroll
    for (int v = 0; v < width; ++v) {
      shift[v] = to_float(start.values[v]);
    }
    for (int first = place.row; first < place.pixels; first += batch<width> * place.rows) {
      Vector<T, width> values[batch<width>];
#pragma unroll
      for (int i = 0; i < batch<width>; ++i) {
        const int pixel = first + i * place.rows;
        values[i] = x.read(pixel < place.pixels ? pixel : 0);  // which adds nothing
      }
#pragma unroll
      for (int i = 0; i < batch<width>; ++i) {
#pragma unroll
        for (int v = 0; v < width; ++v) {
          const float offset = to_float(values[i].values[v]) - shift[v];
          sums[v] += offset;
          sums[width + v] += offset * offset;
        }
      }
    }
  }
  add_rows(sums, tree, place);
  if (place.inside && place.row == 0) {
    float* const sum_partials = call.partials + call.split.all_slabs * call.x.channels;
    write_partials(shift, call.partials, call.split, call.x.channels, place);
    write_partials(sums, sum_partials, call.split, call.x.channels, place);
  }
}

// A thread for each channel and part of the slabs; the first part adds up. All in float64, about
// the shift of the first slab.
__global__ void __launch_bounds__(threads) inplace_abn_statistics_kernel(StatisticsCall call) {
  SharedMemory shared;
  double* const parts = shared.take<double>(2 * threads);
  const int64_t channels = call.x.channels;
  const int64_t channel = blockIdx.x * warp_size + lane_index();
  const bool summed = channel < channels && !call.known && call.split.all_slabs > 0;
  const float* const partials = call.partials + channel;
  const double shift = summed ? partials[0] : 0.0f;
  double sum = 0;
  double square = 0;
  if (summed) {
    const int64_t kind = call.split.all_slabs * channels;
#pragma unroll 2  // unrolled further, it spills
    for (int slab = warp_index(); slab < call.split.all_slabs; slab += sum_parts) {
      const float* const partial = partials + slab * channels;
      const int64_t left = call.x.pixels - (int64_t)(slab % call.split.slabs) * call.split.slab;
      const double count = left < call.split.slab ? (double)left : (double)call.split.slab;
      const double offset = partial[0] - shift;
      sum += partial[kind] + count * offset;
      square += partial[2 * kind] + offset * (2.0 * partial[kind] + count * offset);
    }
  }
  parts[threadIdx.x] = sum;
  parts[threads + threadIdx.x] = square;
  sync_block();
  if (warp_index() != 0 || channel >= channels) {
    return;
  }
  for (int part = 1; part < sum_parts; ++part) {
    sum += parts[part * warp_size + threadIdx.x];
    square += parts[threads + part * warp_size + threadIdx.x];
  }
  const double offset = call.share * sum;
  const double variance = call.share * (square - sum * offset);
  const double* const known = call.known;
  double* const to = call.statistics + channel;
  to[0] = known ? known[channel] : shift + offset;
  to[channels] = known ? known[channels + channel] : variance < 0 ? 0 : variance;
  to[2 * channels] = known ? known[2 * channels + channel] : call.count;
}

struct ForwardCall {
  InPlaceAbn abn;
  Split split;
};

template <typename T, int width>
__global__ void __launch_bounds__(threads) inplace_abn_kernel(ForwardCall call) {
  SharedMemory shared;
  float* const found = shared.take<float>(forward_kinds * width * call.split.lanes);
  const InPlaceAbn& abn = call.abn;
  const Place<width> place(call.split, abn.x, Order::from_end);
  find_for_block<forward_kinds, width>(abn, abn.x.channels, call.split.lanes, place.group, found);
  if (!place.inside) {
    return;
  }
  float c[forward_kinds][width];
  take_own(call.split.lanes, place.lane, found, c);
  const Column<T, width> x(abn.x, place);
  const Column<T, width> z(abn.z, place);
  for (int first = place.row; first < place.pixels; first += batch<width> * place.rows) {
    Vector<T, width> values[batch<width>];
#pragma unroll
    for (int i = 0; i < batch<width>; ++i) {
      const int pixel = first + i * place.rows;
      values[i] = x.read(pixel < place.pixels ? pixel : first);
    }
    with_kind(abn, [&](auto kind) {
#pragma unroll
      for (int i = 0; i < batch<width>; ++i) {
        if (first + i * place.rows < place.pixels) {
          z.write(first + i * place.rows, rounded<T, width>([&](int v) {
                    const float y = (to_float(values[i].values[v]) - c[0][v]) * c[1][v] + c[2][v];
                    return activate(kind, abn, y);
                  }));
        }
      }
    });
  }
}

struct BackwardCall {
  InPlaceAbnBackward abn;
  Split split;
  float* partials;
  float inverse;  // 1 / parameter
};

// body(kind, pixel, gradients, kept) for every pixel of a thread.
template <typename T, int width, typename Body>
__device__ void for_pixels(const InPlaceAbnBackward& abn, const Place<width>& place,
                           const Body& body) {
  constexpr int count = batch<width> / 2;  // of two maps
  const Column<T, width> grads(abn.grad_z, place);
  const Column<T, width> kept(abn.kept, place);
  for (int first = place.row; first < place.pixels; first += count * place.rows) {
    Vector<T, width> values[2][count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int pixel = first + i * place.rows;
      values[0][i] = grads.read(pixel < place.pixels ? pixel : first);
      values[1][i] = kept.read(pixel < place.pixels ? pixel : first);
    }
    with_kind(abn, [&](auto kind) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        if (first + i * place.rows < place.pixels) {
          body(kind, first + i * place.rows, values[0][i], values[1][i]);
        }
      }
    });
  }
}

template <typename T, int width>
__global__ void __launch_bounds__(threads) inplace_abn_backward_sums_kernel(BackwardCall call) {
  SharedMemory shared;
  float* const found = shared.take<float>(recovery_kinds * width * call.split.lanes);
  float* const tree = shared.take<float>(2 * width * threads);
  const InPlaceAbnBackward& abn = call.abn;
  const Place<width> place(call.split, abn.kept, Order::from_start);
  find_for_block<recovery_kinds, width>(abn, abn.kept.channels, call.split.lanes, place.group,
                                        found);
  float sums[2 * width] = {};
  if (place.inside) {
    float c[recovery_kinds][width];
    take_own(call.split.lanes, place.lane, found, c);
    for_pixels<T>(abn, place, [&](auto kind, int, const auto& grads, const auto& kept) {
#pragma unroll
      for (int v = 0; v < width; ++v) {
        const Recovered value =
            recover(kind, abn, call.inverse, to_float(grads.values[v]), kept.values[v], c, v);
        sums[v] += value.grad;
        sums[width + v] += value.grad * value.centered;
      }
    });
  }
  add_rows(sums, tree, place);
  if (place.inside && place.row == 0) {
    write_partials(sums, call.partials, call.split, abn.kept.channels, place);
  }
}

// As for the statistics: a thread for each channel and part of the slabs.
__global__ void __launch_bounds__(threads) inplace_abn_sums_kernel(BackwardCall call) {
  SharedMemory shared;
  double* const parts = shared.take<double>(threads);
  const int64_t channels = call.abn.kept.channels;
  const int64_t channel = blockIdx.x * warp_size + lane_index();
  const float* const partials =
      call.partials + (int64_t)blockIdx.y * call.split.all_slabs * channels + channel;
  double sum = 0;
  if (channel < channels && !call.abn.known) {
    for (int slab = warp_index(); slab < call.split.all_slabs; slab += sum_parts) {
      sum += partials[slab * channels];
    }
  }
  parts[threadIdx.x] = sum;
  sync_block();
  if (warp_index() != 0 || channel >= channels) {
    return;
  }
  for (int part = 1; part < sum_parts; ++part) {
    sum += parts[part * warp_size + threadIdx.x];
  }
  const int64_t at = blockIdx.y * channels + channel;
  call.abn.sums[at] = call.abn.known ? call.abn.known[at] : sum;
}

template <typename T, int width>
__global__ void __launch_bounds__(threads) inplace_abn_backward_kernel(BackwardCall call) {
  SharedMemory shared;
  float* const found = shared.take<float>(backward_kinds * width * call.split.lanes);
  const InPlaceAbnBackward& abn = call.abn;
  const Place<width> place(call.split, abn.kept, Order::from_end);
  find_for_block<backward_kinds, width>(abn, abn.kept.channels, call.split.lanes, place.group,
                                        found);
  if (!place.inside) {
    return;
  }
  float c[backward_kinds][width];
  take_own(call.split.lanes, place.lane, found, c);
  const Column<T, width> grad_x(abn.grad_x, place);
  for_pixels<T>(abn, place, [&](auto kind, int pixel, const auto& grads, const auto& kept) {
    grad_x.write(pixel, rounded<T, width>([&](int v) {
                   const Recovered value = recover(kind, abn, call.inverse,
                                                   to_float(grads.values[v]), kept.values[v], c, v);
                   return c[4][v] * value.grad + c[5][v] * value.centered + c[6][v];
                 }));
  });
}

void find_statistics(const Map& x, const double* known, double* statistics, float* partials,
                     void* stream) {
  const double count = (double)(x.batch * x.pixels);
  const StatisticsCall call{
      x, split_of(x), known, statistics, partials, count, count > 0 ? 1 / count : 0};
  if (!call.known) {
    OPENSEG_DISPATCH_FLOATING(call.x.dtype, {
      const bool wide = in_vectors<scalar_t>(call.x);
      const int width = wide ? widest<scalar_t> : 1;
      StatisticsCall split = call;
      split.split = split_of(call.x, width);
      launch(wide ? inplace_abn_moments_kernel<scalar_t, widest<scalar_t>>
                  : inplace_abn_moments_kernel<scalar_t, 1>,
             blocks_of(call.x, split.split, width), threads, tree_bytes(width), stream, split);
    })
  }
  launch(inplace_abn_statistics_kernel, ceil_div(call.x.channels, warp_size), threads,
         2 * threads * sizeof(double), stream, call);
}

// What blocks need for coefficients of their channels.
int64_t found_bytes(int kinds, const Split& split, int width) {
  SharedMemory measure(nullptr);
  measure.take<float>(kinds * width * split.lanes);
  return measure.bytes();
}

void find_sums(const BackwardCall& call, void* stream) {
  const Map& map = call.abn.kept;
  if (!call.abn.known) {
    OPENSEG_DISPATCH_FLOATING(map.dtype, {
      const bool wide = in_vectors<scalar_t>(map, call.abn.grad_z);
      const int width = wide ? widest<scalar_t> : 1;
      BackwardCall split = call;
      split.split = split_of(map, width);
      launch(wide ? inplace_abn_backward_sums_kernel<scalar_t, widest<scalar_t>>
                  : inplace_abn_backward_sums_kernel<scalar_t, 1>,
             blocks_of(map, split.split, width), threads,
             found_bytes(recovery_kinds, split.split, width) + tree_bytes(width), stream, split);
    })
  }
  launch(inplace_abn_sums_kernel, dim3(ceil_div(map.channels, warp_size), 2), threads,
         threads * sizeof(double), stream, call);
}

BackwardCall call_of(const InPlaceAbnBackward& abn, float* partials) {
  return {abn, split_of(abn.kept), partials, 1.0f / abn.parameter};
}

}  // namespace

int64_t inplace_abn_partials(const Map& map) {
  return moments_partials * map.channels * split_of(map).all_slabs;
}

void inplace_abn_statistics_cuda(const Map& x, double* statistics, float* partials, void* stream) {
  find_statistics(x, nullptr, statistics, partials, stream);
}

void inplace_abn_cuda(const InPlaceAbn& abn, float* partials, void* stream) {
  if (!abn.known && inplace_abn_whole_cuda(abn, stream)) {
    return;
  }
  find_statistics(abn.x, abn.known, abn.statistics, partials, stream);
  OPENSEG_DISPATCH_FLOATING(abn.x.dtype, {
    const bool wide = in_vectors<scalar_t>(abn.x, abn.z);
    const int width = wide ? widest<scalar_t> : 1;
    const ForwardCall call{abn, split_of(abn.x, width)};
    launch(wide ? inplace_abn_kernel<scalar_t, widest<scalar_t>> : inplace_abn_kernel<scalar_t, 1>,
           blocks_of(abn.x, call.split, width), threads,
           found_bytes(forward_kinds, call.split, width), stream, call);
  })
}

void inplace_abn_backward_sums_cuda(const InPlaceAbnBackward& abn, float* partials, void* stream) {
  find_sums(call_of(abn, partials), stream);
}

void inplace_abn_backward_cuda(const InPlaceAbnBackward& abn, float* partials, void* stream) {
  if (!abn.known && inplace_abn_backward_whole_cuda(abn, stream)) {
    return;
  }
  BackwardCall call = call_of(abn, partials);
  find_sums(call, stream);
  OPENSEG_DISPATCH_FLOATING(abn.kept.dtype, {
    const bool wide = in_vectors<scalar_t>(abn.kept, abn.grad_z, abn.grad_x);
    const int width = wide ? widest<scalar_t> : 1;
    call.split = split_of(abn.kept, width);
    launch(wide ? inplace_abn_backward_kernel<scalar_t, widest<scalar_t>>
                : inplace_abn_backward_kernel<scalar_t, 1>,
           blocks_of(abn.kept, call.split, width), threads,
           found_bytes(backward_kinds, call.split, width), stream, call);
  })
}

}  // namespace openseg
