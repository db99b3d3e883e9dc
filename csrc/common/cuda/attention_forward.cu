// SPDX-License-Identifier: MIT
// Forward: a block owns 64 or 128 pixels and meets all pixels of their set with a running softmax.
// The weights of a tile go through shared memory, so that the warps share the channels of the
// values among themselves and 512 of them fit into registers.
#include "common/cuda/attention.cuh"
#include "common/cuda/attention.h"
#include "common/cuda/whole_sets.h"

namespace openseg {
namespace {

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
  T* weights;
  float* by_row;  // [column_warps, rows]: of the warps that share a row
  StreamMemory<Shape> stream;

  __host__ __device__ Memory(SharedMemory& shared, const Program& program)
      : weights(shared.take<T>(Shape::rows * Shape::weights_stride)),
        by_row(shared.take<float>(Shape::column_warps * Shape::rows)),
        stream(shared, program) {}
};

// The running softmax of the rows that a lane has part in, two of each row tile.
template <typename Shape>
class Softmax {
 public:
  using Share = WarpShare<Shape>;
  using Rows = float[Shape::row_tiles][2];

  __device__ Softmax() {
    for_rows([&](int r, int half) {
      best_[r][half] = -infinity();
      sum_[r][half] = 0;
    });
  }

  // Turns scores, where `columns` count, into weights, and says what earlier sums are worth now.
  __device__ void weigh(typename Share::Scores& scores, int columns, float scale,
                        const Share& share, float* by_row, Rows& worth) {
    Rows most;
    for_rows([&](int r, int half) {
      most[r][half] = best_[r][half];
#pragma unroll
      for (int tile = 0; tile < Shape::score_tiles; ++tile) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          const bool counts = share.score_column(tile, e) < columns;
          scores[r][tile][e] = counts ? scores[r][tile][e] * scale : -infinity();
          most[r][half] = fmaxf(most[r][half], scores[r][tile][e]);
        }
      }
      most[r][half] = fmaxf(most[r][half], shuffle_xor(most[r][half], 1));
      most[r][half] = fmaxf(most[r][half], shuffle_xor(most[r][half], 2));
      publish(most[r][half], r, half, share, by_row);
    });
    sync_block();
    for_rows([&](int r, int half) {
      for (int warp = 0; warp < Shape::column_warps; ++warp) {
        const float other = by_row[warp * Shape::rows + share.row(r, 2 * half)];
        most[r][half] = fmaxf(most[r][half], other);
      }
      worth[r][half] = exp_fast(best_[r][half] - most[r][half]);
      best_[r][half] = most[r][half];
      float sum = 0;  // small weights would be lost one by one in a sum that is large
#pragma unroll
      for (int tile = 0; tile < Shape::score_tiles; ++tile) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          scores[r][tile][e] = exp_fast(scores[r][tile][e] - most[r][half]);
          sum += scores[r][tile][e];
        }
      }
      sum_[r][half] = sum_[r][half] * worth[r][half] + sum;
    });
  }

  // Sums over all columns, in place of those over the lane's own.
  __device__ void finish(const Share& share, float* by_row) {
    for_rows([&](int r, int half) {
      sum_[r][half] += shuffle_xor(sum_[r][half], 1);
      sum_[r][half] += shuffle_xor(sum_[r][half], 2);
      publish(sum_[r][half], r, half, share, by_row);
    });
    sync_block();
    for_rows([&](int r, int half) {
      sum_[r][half] = 0;
      for (int warp = 0; warp < Shape::column_warps; ++warp) {
        sum_[r][half] += by_row[warp * Shape::rows + share.row(r, 2 * half)];
      }
    });
  }

  __device__ float sum(int r, int half) const { return sum_[r][half]; }
  __device__ float most(int r, int half) const { return best_[r][half]; }

  template <typename Body>
  __device__ static void for_rows(const Body& body) {
#pragma unroll
    for (int r = 0; r < Shape::row_tiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        body(r, half);
      }
    }
  }

 private:
  __device__ void publish(float value, int r, int half, const Share& share, float* by_row) const {
    if (lane_index() % 4 == 0) {
      by_row[share.column_warp * Shape::rows + share.row(r, 2 * half)] = value;
    }
  }

  Rows best_, sum_;
};

template <typename Tiles>
__global__ void __launch_bounds__(attention_threads, Tiles::blocks)
    attention_forward_kernel(const __grid_constant__ ForwardCall call) {
  using T = typename Tiles::Number;
  using Rows = Softmax<Tiles>;
  const Program& program = call.program;
  SharedMemory shared;
  const Memory<Tiles> memory(shared, program);
  const Place<Tiles::rows> place(program.sets, program.row_blocks);
  const WarpShare<Tiles> share;
  Stream<Tiles> stream(program, place, memory.stream);

  Rows softmax;
  typename WarpShare<Tiles>::Sums out[Tiles::chunks] = {};
  for (int tile = 0; tile < program.tiles; ++tile) {
    typename WarpShare<Tiles>::Scores scores = {};
#pragma unroll 1
    for (int piece = 0; piece < program.phases[0].pieces; ++piece) {
      const T* const keys = stream.next(0, piece);
      share.add_scores(scores, stream.own(keys, 0, piece), keys);
    }
    typename Rows::Rows worth;
    softmax.weigh(scores, place.length() - tile * tile_pixels, call.scale, share, memory.by_row,
                  worth);
#pragma unroll
    for (int chunk = 0; chunk < Tiles::chunks; ++chunk) {
      Rows::for_rows([&](int r, int half) {
#pragma unroll
        for (int i = 0; i < Tiles::value_tiles; ++i) {
          out[chunk][r][i][2 * half] *= worth[r][half];
          out[chunk][r][i][2 * half + 1] *= worth[r][half];
        }
      });
    }
    share.store_scores(memory.weights, scores);
    multiply_values(out, 1, program.phases[1].pieces, memory.weights, stream, share);
  }

  softmax.finish(share, memory.by_row);
  typename Rows::Rows inverse;
  Rows::for_rows([&](int r, int half) {
    inverse[r][half] = 1.0f / softmax.sum(r, half);
    const int n = place.own(share.row(r, 2 * half));
    if (share.column_warp == 0 && lane_index() % 4 == 0 && n < place.length()) {
      call.most[place.number(n)] = softmax.most(r, half);
      call.inverse[place.number(n)] = inverse[r][half];
    }
  });
  write_own(call.out, place, share, out, inverse);
}

template <typename Tiles>
void launch_shape(ForwardCall call, void* stream) {
  const int64_t bytes = plan_memory<Memory<Tiles>>(call.program);
  const dim3 blocks = plan_blocks(call.program, Tiles::rows, call.out.map.batch);
  launch(attention_forward_kernel<Tiles>, blocks, attention_threads, bytes, stream, call);
}

// Whether blocks can keep their own pixels, and are as many as multiprocessors.
template <typename Tiles>
bool suits(ForwardCall call) {
  const int64_t bytes = plan_memory<Memory<Tiles>>(call.program);
  const dim3 blocks = plan_blocks(call.program, Tiles::rows, call.out.map.batch);
  return bytes <= shared_memory_limit() && call.program.keeps_own() &&
         (int64_t)blocks.x * blocks.y >= multiprocessor_count();
}

// Twice the pixels of a block halve what is read of the others.
template <typename T>
void launch_forward(const ForwardCall& call, void* stream) {
  if (call.out.map.channels > 256) {
    launch_shape<Shape<T, 64, 512, sizeof(T) == 2 ? 2 : 4, 1>>(call, stream);
  } else if (suits<Shape<T, 128, 256, 4, 1>>(call)) {
    launch_shape<Shape<T, 128, 256, 4, 1>>(call, stream);
  } else {
    launch_shape<Shape<T, 64, 256, 4, 1>>(call, stream);
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
