// SPDX-License-Identifier: MIT
// Backward: all that a block sums belongs to the pixels that it owns, so that there are neither
// atomics nor partial sums. For own pixel i and another j, with the weight P_ij of query i and key
// j, the pair gives
//
// * to i as a query: P_ij (dO_i v_j - delta_i) k_j, its gradient but for the scale;
// * to i as a key: P_ji (dO_j v_i - delta_j) q_j, and P_ji dO_j to the gradient of its value;
//
// where delta_i = dO_i O_i. Where key is query, one score serves both roles: five products for a
// tile. Else one launch has the pixels as queries (three products) and one as keys (four).
#include "common/cuda/attention.cuh"
#include "common/cuda/attention.h"
#include "common/cuda/attention_backward_sm90.h"
#include "common/cuda/whole_sets.h"

namespace openseg {
namespace {

enum PhaseIndex { query_phase, scores_phase, key_phase, value_phase, map_phase };

struct BackwardCall {
  Program program;    // of the phases above, those that are there
  Source grad_map;    // of query or key, in the role that the block has its pixels in
  Source grad_value;  // with key_phase
  int64_t value_channels;
  const float* most;  // the statistics of Attention
  const float* inverse;
  const float* delta;
  float scale;
};

// Of a pixel as a query: the weight of a score is exp(score - most) * inverse.
struct Statistics {
  float most, inverse, delta;
};

template <typename Shape>
struct Memory {
  using T = typename Shape::Number;
  T* weights;          // P_ji
  T* grad_weights;     // the factors of k_j and q_j above, summed
  Statistics* owned;   // of the own pixels
  Statistics* others;  // of the pixels of the tile
  StreamMemory<Shape> stream;

  __host__ __device__ Memory(SharedMemory& shared, const Program& program)
      : weights(shared.take<T>(Shape::rows * Shape::weights_stride)),
        grad_weights(shared.take<T>(Shape::rows * Shape::weights_stride)),
        owned(shared.take<Statistics>(Shape::rows)),
        others(shared.take<Statistics>(tile_pixels)),
        stream(shared, program) {}
};

template <typename Shape>
class Backward {
 public:
  using T = typename Shape::Number;
  using Scores = typename WarpShare<Shape>::Scores;
  using Sums = typename WarpShare<Shape>::Sums[Shape::chunks];

  __device__ Backward(const BackwardCall& call, SharedMemory& shared)
      : call_(call),
        memory_(shared, call.program),
        place_(call.program.sets, call.program.row_blocks),
        stream_(call.program, place_, memory_.stream) {
    if (threadIdx.x < Shape::rows) {
      memory_.owned[threadIdx.x] = statistics_of(place_.own((int)threadIdx.x));
    }
  }

  __device__ void run() {
    const Program& program = call_.program;
    Sums grad_map = {};
    Sums grad_value = {};
    for (int tile = 0; tile < program.tiles; ++tile) {
      const int thread = thread_anew();
      if (thread < tile_pixels) {
        memory_.others[thread] = statistics_of(tile * tile_pixels + thread);
      }
      weigh(place_.length() - tile * tile_pixels);
      multiply_values(grad_value, value_phase, program.phases[value_phase].pieces, memory_.weights,
                      stream_, share_);
      multiply_values(grad_map, map_phase, program.phases[map_phase].pieces, memory_.grad_weights,
                      stream_, share_);
    }
    write(call_.grad_map, grad_map, call_.scale);
    if (program.phases[value_phase].pieces > 0) {
      write(call_.grad_value, grad_value, 1);
    }
  }

 private:
  // Pixels that are not there have no weights.
  __device__ Statistics statistics_of(int n) const {
    if (n >= place_.length()) {
      return {};
    }
    const int at = place_.number(n);
    return {call_.most[at], call_.inverse[at], call_.delta[at]};
  }

  __device__ void write(const Source& to, const Sums& sums, float factor) {
    float factors[Shape::row_tiles][2];
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) {
      factors[r][0] = factors[r][1] = factor;
    }
    write_own(to, place_, share_, sums, factors);
  }

  // body(row tile, column tile, number) for all scores of the lane.
  template <typename Body>
  __device__ static void for_scores(const Body& body) {
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) {
#pragma unroll
      for (int tile = 0; tile < Shape::score_tiles; ++tile) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          body(r, tile, e);
        }
      }
    }
  }

  __device__ void multiply_channels(Scores& products, int phase) {
    for_scores([&](int r, int tile, int e) { products[r][tile][e] = 0; });
#pragma unroll 1
    for (int piece = 0; piece < call_.program.phases[phase].pieces; ++piece) {
      const T* const streamed = stream_.next(phase, piece);
      share_.add_scores(products, stream_.own(streamed, phase, piece), streamed);
    }
  }

  // The weights of a tile of which the first `columns` count, and the gradients of its scores.
  __device__ void weigh(int columns) {
    Scores grads = {};
#pragma unroll 1
    for (int phase = query_phase; phase <= key_phase; ++phase) {
      if (call_.program.phases[phase].pieces == 0) {
        continue;
      }
      Scores products;
      multiply_channels(products, phase);
      if (phase == query_phase) {
        for_scores([&](int r, int tile, int e) { grads[r][tile][e] = products[r][tile][e]; });
      } else if (phase == scores_phase) {
        if (call_.program.phases[query_phase].pieces > 0) {
          differentiate_as_query(grads, products, columns);
        }
        if (call_.program.phases[key_phase].pieces > 0) {
          store_weights(products);
        }
      } else {
        add_as_key(grads, products);
      }
    }
    share_.store_scores(memory_.grad_weights, grads);
  }

  // Products of gradients and values become gradients of scores.
  __device__ void differentiate_as_query(Scores& grads, const Scores& scores, int columns) const {
    for_scores([&](int r, int tile, int e) {
      const Statistics& own = memory_.owned[share_.row(r, e)];
      const bool counts = share_.score_column(tile, e) < columns;
      const float weight = exp_fast(scores[r][tile][e] * call_.scale - own.most) * own.inverse;
      grads[r][tile][e] = counts ? weight * (grads[r][tile][e] - own.delta) : 0;
    });
  }

  // Of the own pixels as keys. They wait in shared memory, where products need them: there are not
  // registers enough.
  __device__ void store_weights(Scores& scores) const {
    for_scores([&](int r, int tile, int e) {
      const Statistics& other = memory_.others[share_.score_column(tile, e)];
      scores[r][tile][e] = exp_fast(scores[r][tile][e] * call_.scale - other.most) * other.inverse;
    });
    share_.store_scores(memory_.weights, scores);
  }

  __device__ void add_as_key(Scores& grads, const Scores& products) const {
    for_scores([&](int r, int tile, int e) {
      const int column = share_.score_column(tile, e);
      const T weight =
          memory_.weights[share_.row(r, e) * Shape::weights_stride + depth_position<T>(column)];
      const float delta = memory_.others[column].delta;
      grads[r][tile][e] += to_float(weight) * (products[r][tile][e] - delta);
    });
  }

  const BackwardCall& call_;
  const Memory<Shape> memory_;
  const Place<Shape::rows> place_;
  const WarpShare<Shape> share_;
  Stream<Shape> stream_;
};

template <typename Shape>
__global__ void __launch_bounds__(attention_threads)
    attention_backward_kernel(const __grid_constant__ BackwardCall call) {
  SharedMemory shared;
  Backward<Shape>(call, shared).run();
}

struct DeltaCall {
  Program program;
  Map out;
  Map grad;
  float* delta;
};

// A warp has one pixel where channels lie side by side, else a thread has.
template <typename T>
__global__ void __launch_bounds__(attention_threads)
    attention_delta_kernel(const __grid_constant__ DeltaCall call) {
  const Place<attention_threads> place(call.program.sets, call.program.row_blocks);
  const T* const outs =
      static_cast<const T*>(call.out.data) + place.image() * call.out.stride_batch;
  const T* const grads =
      static_cast<const T*>(call.grad.data) + place.image() * call.grad.stride_batch;
  const bool by_warp = call.out.stride_channel == 1;
  for (int i = 0; i < (by_warp ? warp_size : 1); ++i) {
    const int n = place.own(by_warp ? warp_index() * warp_size + i : (int)threadIdx.x);
    float sum = 0;
    if (n < place.length()) {
      const int64_t pixel = place.pixel(n);
      for (int c = by_warp ? lane_index() : 0; c < call.out.channels;
           c += by_warp ? warp_size : 1) {
        sum += to_float(outs[pixel * call.out.stride_pixel + c * call.out.stride_channel]) *
               to_float(grads[pixel * call.grad.stride_pixel + c * call.grad.stride_channel]);
      }
    }
    if (by_warp) {
      sum = warp_sum(sum);
    }
    if (n < place.length() && (!by_warp || lane_index() == 0)) {
      call.delta[place.number(n)] = sum;
    }
  }
}

template <typename Shape>
void launch_shape(BackwardCall call, void* stream) {
  const int64_t shared_bytes = plan_memory<Memory<Shape>>(call.program);
  const dim3 blocks = plan_blocks(call.program, Shape::rows, call.grad_map.map.batch);
  launch(attention_backward_kernel<Shape>, blocks, attention_threads, shared_bytes, stream, call);
}

// The sums of a block stay in registers: for more than 256 channels it has half as many pixels.
template <typename T>
void launch_backward(const BackwardCall& call, void* stream) {
  if (call.grad_map.map.channels <= 256 && call.value_channels <= 256) {
    launch_shape<Shape<T, 64, 256, sizeof(T) == 2 ? 2 : 4, 2>>(call, stream);
  } else {
    launch_shape<Shape<T, 32, 512, 2, 2>>(call, stream);
  }
}

template <typename T>
void launch_delta(DeltaCall call, void* stream) {
  const dim3 blocks = plan_blocks(call.program, attention_threads, call.out.batch);
  launch(attention_delta_kernel<T>, blocks, attention_threads, 0, stream, call);
}

// With the pixels in one role, or in both where key is query.
BackwardCall call_of(const AttentionBackward& call, const float* delta, bool as_query,
                     bool as_key) {
  const Attention& forward = call.forward;
  const Map& own = as_query ? forward.query : forward.key;
  const Map& others = as_query ? forward.key : forward.query;
  BackwardCall result{
      .program = make_program(forward.sets),
      .grad_map = source_of(as_query ? call.grad_query : call.grad_key),
      .grad_value = source_of(call.grad_value),
      .value_channels = forward.value.channels,
      .most = forward.statistics,
      .inverse = forward.statistics + statistics_count(forward),
      .delta = delta,
      .scale = forward.scale,
  };
  Phase* const phases = result.program.phases;
  phases[scores_phase] = over_channels(own, others);
  phases[map_phase] = over_pixels(others);
  if (as_query) {
    phases[query_phase] = over_channels(call.grad_out, forward.value);
  }
  if (as_key) {
    phases[key_phase] = over_channels(forward.value, call.grad_out);
    phases[value_phase] = over_pixels(call.grad_out);
  }
  return result;
}

void launch_backward(const BackwardCall& call, bool allow_tf32, void* stream) {
  OPENSEG_DISPATCH_PRODUCTS(call.grad_map.map.dtype, allow_tf32,
                            launch_backward<scalar_t>(call, stream))
}

}  // namespace

void attention_backward_cuda(const AttentionBackward& call, float* delta, bool allow_tf32,
                             void* stream) {
  const Attention& forward = call.forward;
  check_attention(forward);
  if (whole_sets_backward_cuda(call, allow_tf32, stream)) {
    return;
  }
  const DeltaCall delta_call{make_program(forward.sets), forward.out, call.grad_out, delta};
  OPENSEG_DISPATCH_FLOATING(forward.out.dtype, launch_delta<scalar_t>(delta_call, stream))
  if (attention_backward_sm90(call, delta, stream)) {
    return;
  }
  if (forward.shared) {
    launch_backward(call_of(call, delta, true, true), allow_tf32, stream);
  } else {
    launch_backward(call_of(call, delta, true, false), allow_tf32, stream);
    launch_backward(call_of(call, delta, false, true), allow_tf32, stream);
  }
}

}  // namespace openseg
