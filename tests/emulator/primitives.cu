// SPDX-License-Identifier: MIT
// Products of small integers, exact in every format, by copy_async, load_matrices and mma: the
// first thing to run on a new GPU, for the layouts of all three are wrong together or right
// together. And accesses whose costs are known.
#include "common/fragments.cuh"
#include "message_of.h"

namespace openseg {
namespace {

constexpr int size = 16;  // rows of a, columns of b
constexpr int depth = 32;

struct Product {
  const void* a;  // [size, valid]
  const void* b;  // [depth, size]
  float* c;       // [4, size, size]: a b, a aT, bT b and the product of halves of a and b
  int valid;      // columns of a, a multiple of 8; the others are zeros
};

template <typename T>
__device__ void copy_tile(T* to, int columns, const void* from, int valid, int rows) {
  constexpr int numbers = 16 / sizeof(T);
  for (int piece = lane_index(); piece < rows * columns / numbers; piece += warp_size) {
    const int row = piece / (columns / numbers);
    const int column = piece % (columns / numbers) * numbers;
    copy_async(&to[row * columns + column], static_cast<const T*>(from) + row * valid + column,
               column < valid);
  }
  commit_copies();
}

__device__ void write(float* to, const float (&c)[2][4]) {
  for (int half = 0; half < 2; ++half) {
    for (int e = 0; e < 4; ++e) {
      const int row = lane_index() / 4 + 8 * (e / 2);
      to[row * size + 8 * half + 2 * (lane_index() % 4) + e % 2] = c[half][e];
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(warp_size) product_kernel(Product product) {
  SharedMemory shared;
  T* const a = shared.take<T>(size * depth);
  T* const b = shared.take<T>(depth * size);
  T* const ordered = shared.take<T>(size * depth);  // a, as products over rows have it
  copy_tile(a, depth, product.a, product.valid, size);
  copy_tile(b, size, product.b, size, depth);
  wait_for_copies<1>();
  sync_warp();
  constexpr int steps = depth / step_depth<T>;
  uint32_t left[steps][4];
  float gram[2][4] = {};
  for (int step = 0; step < steps; ++step) {
    load_left(left[step], a + step * step_depth<T>, depth);
    uint32_t right[2][2];
    load_right_transposed(right, a + step * step_depth<T>, depth);
    multiply<T>(gram[0], left[step], right[0]);
    multiply<T>(gram[1], left[step], right[1]);
  }
  for (int i = lane_index(); i < size * depth / 2; i += warp_size) {
    const int row = 2 * i / depth * depth;
    const int column = 2 * i % depth;
    store_left(ordered + row, column, to_float(a[row + column]), to_float(a[row + column + 1]));
  }
  wait_for_copies<0>();
  sync_warp();
  float c[2][4] = {};
  float other_gram[2][4] = {};
  for (int step = 0; step < steps; ++step) {
    const T* const rows = b + step * step_depth<T> * size;
    uint32_t right[2][2];
    load_right(right, rows, size);
    load_left(left[step], ordered + step * step_depth<T>, depth);
    uint32_t turned[4];
    load_left_transposed(turned, rows, size);
    for (int half = 0; half < 2; ++half) {
      multiply<T>(c[half], left[step], right[half]);
      multiply<T>(other_gram[half], turned, right[half]);
    }
  }
  float results[2][4];
  for (int half = 0; half < 2; ++half) {
    for (int e = 0; e < 4; ++e) {
      results[half][e] = to_float(
          a[(lane_index() / 4 + 8 * (e / 2)) * depth + 8 * half + 2 * (lane_index() % 4) + e % 2]);
    }
  }
  uint32_t factors[size / step_depth<T>][4];
  left_factors<T>(factors, results);
  float product_of_results[2][4] = {};
  for (int step = 0; step < size / step_depth<T>; ++step) {
    uint32_t right[2][2];
    load_right(right, b + step * step_depth<T> * size, size);
    multiply<T>(product_of_results[0], factors[step], right[0]);
    multiply<T>(product_of_results[1], factors[step], right[1]);
  }
  write(product.c, c);
  write(product.c + size * size, gram);
  write(product.c + 2 * size * size, other_gram);
  write(product.c + 3 * size * size, product_of_results);
}

template <typename T>
void run(const Product& call) {
  launch(product_kernel<T>, 1, warp_size, 3 * size * depth * sizeof(T), nullptr, call);
}

struct LongProduct {
  const float* a;  // [size, depth]
  const float* b;  // [depth, 8]
  float* c;        // [size, 8]
  int depth;       // a multiple of 8
};

// Plain floats straight from memory to the registers of mma.
__global__ void __launch_bounds__(warp_size) long_product_kernel(LongProduct call) {
  const int row = lane_index() / 4;
  const int column = lane_index() % 4;
  float sums[4] = {};
  for (int k = column; k < call.depth; k += 8) {
    uint32_t left[4];
    uint32_t right[2];
    for (int half = 0; half < 2; ++half) {
      left[2 * half] = bits_of(call.a[row * call.depth + k + 4 * half]);
      left[2 * half + 1] = bits_of(call.a[(row + 8) * call.depth + k + 4 * half]);
      right[half] = bits_of(call.b[(k + 4 * half) * 8 + row]);
    }
    multiply<float>(sums, left, right);
  }
  for (int e = 0; e < 4; ++e) {
    call.c[(row + e / 2 * 8) * 8 + 2 * column + e % 2] = sums[e];
  }
}

struct Strides {
  float* numbers;  // [warp_size * stride]
  int stride;      // of lanes, in floats
};

// Each lane writes and reads a number of its own in shared memory, then adds it to one in memory.
__global__ void __launch_bounds__(warp_size) strided_kernel(Strides call) {
  SharedMemory shared;
  float* const numbers = shared.take<float>(warp_size * call.stride);
  const int at = lane_index() * call.stride;
  numbers[at] = 1.0f;
  sync_warp();
  call.numbers[at] += numbers[at];
}

}  // namespace
}  // namespace openseg

extern "C" const char* product(const void* a, const void* b, float* c, int valid, int dtype,
                               bool tf32) {
  using namespace openseg;
  const Product call{a, b, c, valid};
  return message_of([&] {
    if (tf32) {
      run<tfloat32>(call);
    } else {
      OPENSEG_DISPATCH_FLOATING((DType)dtype, run<scalar_t>(call))
    }
  });
}

extern "C" const char* long_product(const float* a, const float* b, float* c, int depth) {
  using namespace openseg;
  return message_of(
      [&] { launch(long_product_kernel, 1, warp_size, 0, nullptr, LongProduct{a, b, c, depth}); });
}

extern "C" const char* strided(float* numbers, int stride) {
  using namespace openseg;
  return message_of([&] {
    launch(strided_kernel, 1, warp_size, warp_size * stride * sizeof(float), nullptr,
           Strides{numbers, stride});
  });
}
