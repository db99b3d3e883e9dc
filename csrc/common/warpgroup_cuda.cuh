// SPDX-License-Identifier: MIT
// The primitives of warpgroup.cuh for nvcc; tests/emulator/warpgroup.h has the same names.
#pragma once

namespace openseg {

// Of the thread. The compiler sees that a warp has one, and keeps factors that depend on it in
// uniform registers, where products take them from.
__device__ inline int warpgroup_index() {
  return __shfl_sync(0xffffffffu, (int)threadIdx.x / warpgroup_size, 0);
}

// Of products in shared memory.
class Factor {
 public:
  // `lead`: bytes from 64 columns to the next ones, where depth is over rows; else of no account.
  __device__ explicit Factor(const void* start, int lead = unit)
      : low_((uint32_t)__cvta_generic_to_shared(start) / unit | lead / unit << 16) {}

  __device__ Factor advanced(int bytes) const {
    Factor result = *this;
    result.low_ += bytes / unit;
    return result;
  }

  // The two halves of the descriptor.
  __device__ uint32_t low() const { return low_; }
  __device__ static constexpr uint32_t high() {
    constexpr uint32_t swizzle_128_bytes = 1u << 30;
    return swizzle_128_bytes | block_bytes / unit;
  }

 private:
  static constexpr int unit = 16;

  uint32_t low_;
};

__device__ inline void show_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void start_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// What has been computed in the registers of a lane is not read before this.
template <int tiles>
__device__ void take_results(float (&d)[tiles][4]) {
#pragma unroll
  for (int i = 0; i < 4 * tiles; ++i) {
    asm volatile("" : "+f"(d[i / 4][i % 4])::"memory");
  }
}

// Waits until no more than `groups` of the last groups are under way; `results` are of the others.
template <int groups, typename... Results>
__device__ void wait_for_products(Results&... results) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory");
  (take_results(results), ...);
}

#define OPENSEG_RESULTS_4(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define OPENSEG_RESULTS_16(d, i)                                                     \
  OPENSEG_RESULTS_4(d, i), OPENSEG_RESULTS_4(d, i + 1), OPENSEG_RESULTS_4(d, i + 2), \
      OPENSEG_RESULTS_4(d, i + 3)
#define OPENSEG_FIRST_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define OPENSEG_FIRST_64                                                             \
  OPENSEG_FIRST_16                                                                   \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// The strings name what comes behind the results: the halves of both descriptors, whether to add,
// and whether b is over rows.
#define OPENSEG_MULTIPLY(columns, type, results, A, B, HIGH, ADD, ROWS, ...)                     \
  asm volatile("{\n.reg .pred add;\n.reg .b64 a, b;\nsetp.ne.b32 add, " ADD                      \
               ", 0;\n"                                                                          \
               "mov.b64 a, {" A ", " HIGH "};\nmov.b64 b, {" B ", " HIGH                         \
               "};\n"                                                                            \
               "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" results \
               "}, a, b, add, 1, 1, 0, " ROWS ";\n}"                                             \
               : __VA_ARGS__                                                                     \
               : "r"(a.low()), "r"(b.low()), "n"(Factor::high()), "r"((int)add),                 \
                 "n"((int)over_rows)                                                             \
               : "memory")
#define OPENSEG_MULTIPLY_32(type)                                                   \
  OPENSEG_MULTIPLY("32", type, OPENSEG_FIRST_16, "%16", "%17", "%18", "%19", "%20", \
                   OPENSEG_RESULTS_16(d, 0))
#define OPENSEG_MULTIPLY_128(type)                                                               \
  OPENSEG_MULTIPLY("128", type, OPENSEG_FIRST_64, "%64", "%65", "%66", "%67", "%68",             \
                   OPENSEG_RESULTS_16(d, 0), OPENSEG_RESULTS_16(d, 4), OPENSEG_RESULTS_16(d, 8), \
                   OPENSEG_RESULTS_16(d, 12))

// d = a b, or d += a b where `add`: a has 64 rows, b 8 * tiles columns, and the depth is 16. T is
// bfloat16 or float16. Warp w of the four has rows 16w … of d, of which a lane holds tiles as of
// mma in device_cuda.cuh. Rows of a, and of b unless `over_rows`, are rows or columns of the
// product, and the depth is along them; else rows of b are along the depth.
template <typename T, bool over_rows, int tiles>
__device__ void multiply_async(float (&d)[tiles][4], Factor a, Factor b, bool add) {
  static_assert(tiles == 4 || tiles == 16);
  constexpr bool is_bfloat16 = std::is_same_v<T, bfloat16>;
  if constexpr (tiles == 4 && is_bfloat16) {
    OPENSEG_MULTIPLY_32("bf16");
  } else if constexpr (tiles == 4) {
    OPENSEG_MULTIPLY_32("f16");
  } else if constexpr (is_bfloat16) {
    OPENSEG_MULTIPLY_128("bf16");
  } else {
    OPENSEG_MULTIPLY_128("f16");
  }
}

#undef OPENSEG_RESULTS_4
#undef OPENSEG_RESULTS_16
#undef OPENSEG_FIRST_16
#undef OPENSEG_FIRST_64
#undef OPENSEG_MULTIPLY
#undef OPENSEG_MULTIPLY_32
#undef OPENSEG_MULTIPLY_128

}  // namespace openseg
