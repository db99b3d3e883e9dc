// SPDX-License-Identifier: MIT
// Forward: a block owns 64 pixels and meets all pixels of their set with a running softmax. The
// weights of a tile go through shared memory, so that the warps share the channels of the values
// among themselves and 512 of them fit into registers.
#include "common/cuda/attention.cuh"
#include "common/cuda/attention.h"
#include "common/cuda/whole_sets.h"

namespace openseg {
namespace {

constexpr int own_rows = 64;

struct ForwardCall {
  Program program;  // scores, then values
  Source out;
  float* most;  // the statistics of Attention
  float* inverse;
  float scale;
};

template <typename Shape>
struct Memory {
  using T = typename Shape::Number;
  T* kept;
  T* ring;
  T* weights;
  float* by_row;  // [column_warps, rows]: of the warps that share a row

  __host__ __device__ Memory(SharedMemory& shared, const Program& program)
      : kept(shared.take<T>(program.keeps_own ? program.phases[0].pieces * Shape::own_piece : 0)),
        ring(shared.take<T>(ring_stages * Shape::slot(program.keeps_own))),
        weights(shared.take<T>(Shape::rows * Shape::weights_stride)),
        by_row(shared.take<float>(Shape::column_warps * Shape::rows)) {}
};

// The running softmax of the two rows that a lane has part in.
template <typename Shape>
class Softmax {
 public:
  using Share = WarpShare<Shape>;

  // Turns scores, where `columns` count, into weights, and says what earlier sums are worth now.
  __device__ void weigh(float (&scores)[Shape::score_tiles][4], int columns, float scale,
                        const Share& share, float* by_row, float (&worth)[2]) {
    float most[2] = {best_[0], best_[1]};
#pragma unroll
    for (int tile = 0; tile < Shape::score_tiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool counts = share.score_column(tile, e) < columns;
        scores[tile][e] = counts ? scores[tile][e] * scale : -infinity();
        most[e / 2] = fmaxf(most[e / 2], scores[tile][e]);
      }
    }
    for (int half = 0; half < 2; ++half) {
      most[half] = fmaxf(most[half], shuffle_xor(most[half], 1));
      most[half] = fmaxf(most[half], shuffle_xor(most[half], 2));
      publish(most[half], half, share, by_row);
    }
    sync_block();
    for (int half = 0; half < 2; ++half) {
      for (int warp = 0; warp < Shape::column_warps; ++warp) {
        most[half] = fmaxf(most[half], by_row[warp * Shape::rows + share.row(2 * half)]);
      }
      worth[half] = exp_fast(best_[half] - most[half]);
      best_[half] = most[half];
      sum_[half] *= worth[half];
    }
    float sum[2] = {0, 0};  // small weights would be lost one by one in a sum that is large
#pragma unroll
    for (int tile = 0; tile < Shape::score_tiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        scores[tile][e] = exp_fast(scores[tile][e] - best_[e / 2]);
        sum[e / 2] += scores[tile][e];
      }
    }
    sum_[0] += sum[0];
    sum_[1] += sum[1];
  }

  // Sums over all columns, in place of those over the lane's own.
  __device__ void finish(const Share& share, float* by_row) {
    for (int half = 0; half < 2; ++half) {
      sum_[half] += shuffle_xor(sum_[half], 1);
      sum_[half] += shuffle_xor(sum_[half], 2);
      publish(sum_[half], half, share, by_row);
    }
    sync_block();
    for (int half = 0; half < 2; ++half) {
      sum_[half] = 0;
      for (int warp = 0; warp < Shape::column_warps; ++warp) {
        sum_[half] += by_row[warp * Shape::rows + share.row(2 * half)];
      }
    }
  }

  __device__ float sum(int half) const { return sum_[half]; }
  __device__ float most(int half) const { return best_[half]; }

 private:
  __device__ void publish(float value, int half, const Share& share, float* by_row) const {
    if (lane_index() % 4 == 0) {
      by_row[share.column_warp * Shape::rows + share.row(2 * half)] = value;
    }
  }

  float best_[2] = {-infinity(), -infinity()};
  float sum_[2] = {0, 0};
};

template <typename T, int width>
__global__ void __launch_bounds__(attention_threads)
    attention_forward_kernel(const __grid_constant__ ForwardCall call) {
  using Tiles = Shape<T, own_rows, width>;
  const Program& program = call.program;
  SharedMemory shared;
  const Memory<Tiles> memory(shared, program);
  const Place place(program, own_rows);
  const WarpShare<Tiles> share;
  Stream<Tiles> stream(program, place, memory.kept, memory.ring);

  Softmax<Tiles> softmax;
  float out[Tiles::out_tiles][4] = {};
  for (int tile = 0; tile < program.tiles; ++tile) {
    float scores[Tiles::score_tiles][4] = {};
#pragma unroll 1
    for (int piece = 0; piece < program.phases[0].pieces; ++piece) {
      const T* const keys = stream.next();
      share.add_scores(scores, stream.own(keys, piece), keys);
    }
    float worth[2];
    softmax.weigh(scores, place.length - tile * tile_pixels, call.scale, share, memory.by_row,
                  worth);
#pragma unroll
    for (int i = 0; i < Tiles::out_tiles; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        out[i][e] *= worth[e / 2];
      }
    }
    share.store_scores(memory.weights, scores);
#pragma unroll 1
    for (int piece = 0; piece < program.phases[1].pieces; ++piece) {
      const T* const values = stream.next();
      share.add_values(out, memory.weights + piece * step_depth<T>, values);
    }
  }

  softmax.finish(share, memory.by_row);
  const float inverse[2] = {1.0f / softmax.sum(0), 1.0f / softmax.sum(1)};
  write_own(call.out, place, share, out, inverse[0], inverse[1]);
  for (int half = 0; half < 2; ++half) {
    const int n = place.first + share.row(2 * half);
    if (share.column_warp == 0 && lane_index() % 4 == 0 && n < place.length) {
      call.most[place.set * place.length + n] = softmax.most(half);
      call.inverse[place.set * place.length + n] = inverse[half];
    }
  }
}

template <typename T, int width>
void launch_forward(ForwardCall call, void* stream) {
  const int64_t shared_bytes = plan_memory<Memory<Shape<T, own_rows, width>>>(call.program);
  const int64_t blocks = plan_blocks(call.program, own_rows, call.out.map.batch);
  launch(attention_forward_kernel<T, width>, blocks, attention_threads, shared_bytes, stream, call);
}

template <typename T>
void launch_forward(const ForwardCall& call, void* stream) {
  if (call.out.map.channels <= 256) {
    launch_forward<T, 256>(call, stream);
  } else {
    launch_forward<T, 512>(call, stream);
  }
}

}  // namespace

void attention_cuda(const Attention& attention, bool allow_tf32, void* stream) {
  check_attention(attention);
  if (whole_sets_forward_cuda(attention, allow_tf32, stream)) {
    return;
  }
  ForwardCall call{
      .program = make_program(attention.sets),
      .out = source_of(attention.out),
      .most = attention.statistics,
      .inverse = attention.statistics + statistics_count(attention),
      .scale = attention.scale,
  };
  call.program.phases[0] = over_channels(attention.query, attention.key);
  call.program.phases[1] = over_pixels(attention.value);
  OPENSEG_DISPATCH_PRODUCTS(attention.query.dtype, allow_tf32,
                            launch_forward<scalar_t>(call, stream))
}

}  // namespace openseg
