// SPDX-License-Identifier: MIT
// A product of small integers, exact in every format, by copy_async, load_matrices and mma: the
// first thing to run on a new GPU, for the layouts of all three are wrong together or right
// together.
#include <exception>
#include <string>

#include "common/device.cuh"

namespace openseg {
namespace {

constexpr int depth = 32;

struct Product {
  const uint16_t* a;  // [16, valid]
  const uint16_t* b;  // [depth, 8]
  float* c;           // [16, 8]
  int valid;          // columns of a, a multiple of 8; the others are zeros
};

template <typename T>
__global__ void __launch_bounds__(warp_size) product_kernel(Product product) {
  SharedMemory shared;
  uint16_t* const a = shared.take<uint16_t>(16 * depth);
  uint16_t* const b = shared.take<uint16_t>(depth * 8);
  const int lane = lane_index();
  for (int piece = lane; piece < 16 * depth / 8; piece += warp_size) {
    const int row = piece / (depth / 8);
    const int column = piece % (depth / 8) * 8;
    copy_async(&a[row * depth + column], &product.a[row * product.valid + column],
               column < product.valid);
  }
  commit_copies();
  copy_async(&b[lane * 8], &product.b[lane * 8], true);
  commit_copies();
  wait_for_copies<1>();
  sync_warp();
  uint32_t left[2][4];
  for (int step = 0; step < 2; ++step) {
    load_matrices<false>(left[step], &a[lane % 16 * depth + step * 16 + lane / 16 * 8]);
  }
  wait_for_copies<0>();
  sync_warp();
  uint32_t right[4];
  load_matrices<true>(right, &b[lane * 8]);
  float c[4] = {};
  mma<T>(c, left[0], {right[0], right[1]});
  mma<T>(c, left[1], {right[2], right[3]});
  for (int e = 0; e < 4; ++e) {
    product.c[(lane / 4 + 8 * (e / 2)) * 8 + 2 * (lane % 4) + e % 2] = c[e];
  }
}

std::string message;

}  // namespace
}  // namespace openseg

extern "C" const char* product(const uint16_t* a, const uint16_t* b, float* c, int valid,
                               bool is_bfloat16) {
  using namespace openseg;
  const Product call{a, b, c, valid};
  const int64_t bytes = (16 * depth + depth * 8) * sizeof(uint16_t);
  try {
    launch(is_bfloat16 ? product_kernel<bfloat16> : product_kernel<float16>, 1, warp_size, bytes,
           nullptr, call);
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}
