// SPDX-License-Identifier: MIT
// A block keeps all values of one channel in shared memory, and reads each of them once: for maps
// whose pixels are neighbours, where a channel fits.
//
// Where channels are neighbours, the least that a block can take of a pixel is a sector of memory,
// 32 bytes, and that of all pixels fits for none but the smallest maps. There, as for channels that
// do not fit, the second read is left to L2, which holds all of a map that is smaller than itself.
//
// A thread only ever touches its own vectors; blocks of threads add up in a tree. The order depends
// on shapes, and on where in 16 bytes rows start.
#include "inplace_abn/cuda/inplace_abn.h"
#include "inplace_abn/cuda/values.cuh"
#include "inplace_abn/cuda/walk.cuh"

namespace openseg {
namespace {

constexpr int whole_threads = 512;

// Vectors of 16 bytes in shared memory: for each image as many as a row of pixels can touch.
struct Rows {
  int vectors;
  int all;  // of all images
};

// What 16 bytes of memory hold of a row. At its ends they may hold other values too.
template <typename T>
class Chunk {
 public:
  using Values = Vector<T, widest<T>>;

  __device__ Chunk(const Map& map, const Rows& rows, int at)
      : row_(static_cast<T*>(map.data) + at / rows.vectors * map.stride_batch +
             blockIdx.y * map.stride_channel),
        first_(at % rows.vectors * widest<T> - (int)((uintptr_t)row_ / sizeof(T) % widest<T>)),
        pixels_((int)map.pixels) {}

  __device__ bool holds(int v) const { return (unsigned)(first_ + v) < (unsigned)pixels_; }

  // Values that are not of the row become 0.
  __device__ void start_copy(Values* to) const {
    if (whole()) {
      copy_async(to, row_ + first_, true);
      return;
    }
#pragma unroll
    for (int v = 0; v < widest<T>; ++v) {
      to->values[v] = holds(v) ? row_[first_ + v] : T{};
    }
  }

  __device__ void write(const Values& from) const {
    if (whole()) {
      store_whole(reinterpret_cast<Values*>(row_ + first_), from);
      return;
    }
#pragma unroll
    for (int v = 0; v < widest<T>; ++v) {
      if (holds(v)) {
        row_[first_ + v] = from.values[v];
      }
    }
  }

 private:
  __device__ bool whole() const { return first_ >= 0 && first_ + widest<T> <= pixels_; }

  T* row_;
  int first_, pixels_;
};

// The shared memory of a block.
template <typename T, int maps>
struct Memory {
  float* warps[3];  // for a sum over the block each
  float* found[2];
  Vector<T, widest<T>>* values[maps];

  __host__ __device__ Memory(SharedMemory& shared, const Rows& rows) {
    for (float*& sums : warps) {
      sums = shared.take<float>(warp_size);
    }
    for (float*& numbers : found) {
      numbers = shared.take<float>(backward_kinds);
    }
    for (Vector<T, widest<T>>*& map : values) {
      map = shared.take<Vector<T, widest<T>>>(rows.all);
    }
  }
};

struct ForwardCall {
  InPlaceAbn abn;
  Rows rows;
  double count;  // values of a channel
  double share;  // of one of them
};

template <typename T>
__global__ void __launch_bounds__(whole_threads) inplace_abn_whole_kernel(ForwardCall call) {
  SharedMemory shared;
  const Memory<T, 1> memory(shared, call.rows);
  const InPlaceAbn& abn = call.abn;
  Vector<T, widest<T>>* const kept = memory.values[0];
  for (int at = threadIdx.x; at < call.rows.all; at += whole_threads) {
    Chunk<T>(abn.x, call.rows, at).start_copy(&kept[at]);
  }
  commit_copies();
  wait_for_copies<0>();
  float sum = 0;
  for (int at = threadIdx.x; at < call.rows.all; at += whole_threads) {
    const Vector<T, widest<T>> x = kept[at];
#pragma unroll
    for (int v = 0; v < widest<T>; ++v) {
      sum += to_float(x.values[v]);
    }
  }
  // A value near the mean, about which squares lose nothing to cancellation.
  const float shift = (float)call.share * block_sum(sum, memory.warps[0]);
  float offsets = 0;
  float squares = 0;
  for (int at = threadIdx.x; at < call.rows.all; at += whole_threads) {
    const Vector<T, widest<T>> x = kept[at];
    const Chunk<T> chunk(abn.x, call.rows, at);
#pragma unroll
    for (int v = 0; v < widest<T>; ++v) {
      const float offset = chunk.holds(v) ? to_float(x.values[v]) - shift : 0.0f;
      offsets += offset;
      squares += offset * offset;
    }
  }
  offsets = block_sum(offsets, memory.warps[1]);
  squares = block_sum(squares, memory.warps[2]);
  if (threadIdx.x == 0) {
    const double offset = call.share * offsets;
    const double variance = call.share * squares - offset * offset;
    double* const to = abn.statistics + blockIdx.y;
    to[0] = shift + offset;
    to[abn.x.channels] = variance < 0 ? 0 : variance;
    to[2 * abn.x.channels] = call.count;
  }
  find_for_block<forward_kinds, 1>(abn, abn.x.channels, 1, blockIdx.y, memory.found[0]);
  float c[forward_kinds][1];
  take_own(1, 0, memory.found[0], c);
  for (int at = threadIdx.x; at < call.rows.all; at += whole_threads) {
    Vector<T, widest<T>> x = kept[at];
    with_kind(abn, [&](auto kind) {
      x = rounded<T, widest<T>>([&](int v) {
        const float y = (to_float(x.values[v]) - c[0][0]) * c[1][0] + c[2][0];
        return activate(kind, abn, y);
      });
    });
    Chunk<T>(abn.z, call.rows, at).write(x);
  }
}

struct BackwardCall {
  InPlaceAbnBackward abn;
  Rows rows;
  float inverse;  // 1 / parameter
};

template <typename T>
__global__ void __launch_bounds__(whole_threads)
    inplace_abn_backward_whole_kernel(BackwardCall call) {
  SharedMemory shared;
  const Memory<T, 2> memory(shared, call.rows);
  const InPlaceAbnBackward& abn = call.abn;
  Vector<T, widest<T>>* const grads = memory.values[0];
  Vector<T, widest<T>>* const kept = memory.values[1];
  for (int at = threadIdx.x; at < call.rows.all; at += whole_threads) {
    Chunk<T>(abn.grad_z, call.rows, at).start_copy(&grads[at]);
    Chunk<T>(abn.kept, call.rows, at).start_copy(&kept[at]);
  }
  commit_copies();
  find_for_block<recovery_kinds, 1>(abn, abn.kept.channels, 1, blockIdx.y, memory.found[0]);
  float recovery[recovery_kinds][1];
  take_own(1, 0, memory.found[0], recovery);
  wait_for_copies<0>();
  float sum = 0;
  float product = 0;
  for (int at = threadIdx.x; at < call.rows.all; at += whole_threads) {
    const Vector<T, widest<T>> grad = grads[at];
    const Vector<T, widest<T>> z = kept[at];
    with_kind(abn, [&](auto kind) {
#pragma unroll
      for (int v = 0; v < widest<T>; ++v) {  // gradients of 0 at the ends of rows add nothing
        const Recovered value =
            recover(kind, abn, call.inverse, to_float(grad.values[v]), z.values[v], recovery, 0);
        sum += value.grad;
        product += value.grad * value.centered;
      }
    });
  }
  sum = block_sum(sum, memory.warps[0]);
  product = block_sum(product, memory.warps[1]);
  if (threadIdx.x == 0) {
    abn.sums[blockIdx.y] = sum;
    abn.sums[abn.kept.channels + blockIdx.y] = product;
  }
  find_for_block<backward_kinds, 1>(abn, abn.kept.channels, 1, blockIdx.y, memory.found[1]);
  float c[backward_kinds][1];
  take_own(1, 0, memory.found[1], c);
  for (int at = threadIdx.x; at < call.rows.all; at += whole_threads) {
    const Vector<T, widest<T>> grad = grads[at];
    const Vector<T, widest<T>> z = kept[at];
    Vector<T, widest<T>> result;
    with_kind(abn, [&](auto kind) {
      result = rounded<T, widest<T>>([&](int v) {
        const Recovered value =
            recover(kind, abn, call.inverse, to_float(grad.values[v]), z.values[v], c, 0);
        return c[4][0] * value.grad + c[5][0] * value.centered + c[6][0];
      });
    });
    Chunk<T>(abn.grad_x, call.rows, at).write(result);
  }
}

// Whether rows start at the same place of 16 bytes in both maps.
template <typename T>
bool lie_alike(const Map& one, const Map& other) {
  const auto apart = [](int64_t some, int64_t others) { return (some - others) % widest<T>; };
  return ((uintptr_t)one.data - (uintptr_t)other.data) % 16 == 0 &&
         apart(one.stride_channel, other.stride_channel) == 0 &&
         (one.batch == 1 || apart(one.stride_batch, other.stride_batch) == 0);
}

// Starts `kernel` where channels fit, one to a block. Fewer channels than there are
// multiprocessors would leave some without work, and of a map as small as that L2 holds most.
template <typename T, int maps, typename Call>
bool launch_whole(void (*kernel)(Call), Call call, const Map& map, void* stream) {
  const int64_t vectors = ceil_div(map.pixels + widest<T> - 1, widest<T>);
  const int64_t most = shared_memory_limit();
  if (channels_are_neighbours(map) || map.batch * vectors > most / 16 ||
      map.channels < multiprocessor_count() || map.channels >= 1 << 16) {
    return false;
  }
  call.rows = {(int)vectors, (int)(map.batch * vectors)};
  SharedMemory shared(nullptr);
  Memory<T, maps>(shared, call.rows);
  if (shared.bytes() > most) {
    return false;
  }
  launch(kernel, dim3(1, map.channels), whole_threads, shared.bytes(), stream, call);
  return true;
}

}  // namespace

bool inplace_abn_whole_cuda(const InPlaceAbn& abn, void* stream) {
  const double count = (double)(abn.x.batch * abn.x.pixels);
  const ForwardCall call{abn, {}, count, count > 0 ? 1 / count : 0};
  bool done = false;
  OPENSEG_DISPATCH_FLOATING(abn.x.dtype, {
    done = lie_alike<scalar_t>(abn.x, abn.z) &&
           launch_whole<scalar_t, 1>(inplace_abn_whole_kernel<scalar_t>, call, abn.x, stream);
  })
  return done;
}

bool inplace_abn_backward_whole_cuda(const InPlaceAbnBackward& abn, void* stream) {
  const BackwardCall call{abn, {}, 1.0f / abn.parameter};
  bool done = false;
  OPENSEG_DISPATCH_FLOATING(abn.kept.dtype, {
    done = lie_alike<scalar_t>(abn.kept, abn.grad_z) && lie_alike<scalar_t>(abn.kept, abn.grad_x) &&
           launch_whole<scalar_t, 2>(inplace_abn_backward_whole_kernel<scalar_t>, call, abn.kept,
                                     stream);
  })
  return done;
}

}  // namespace openseg
