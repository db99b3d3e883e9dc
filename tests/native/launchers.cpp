// SPDX-License-Identifier: MIT
// The raw CPU launchers: kernels under test without torch, on one thread or on two. Those of two
// operators take numpy arrays; the others are C functions of what tests/emulator gives to the
// launchers for GPUs, so that its cases serve both.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "common/attention.h"
#include "common/check.h"
#include "common/parallel.h"
#include "confusion_matrix/confusion_matrix.h"
#include "inplace_abn/inplace_abn.h"
#include "object_attention/object_attention.h"
#include "spatial_gather/spatial_gather.h"
#include "upsample_argmax/upsample_argmax.h"
#include "upsample_cross_entropy/cuda/upsample_cross_entropy.h"

namespace py = pybind11;

namespace openseg {

static bool two_threads = false;

void run_parallel(int64_t count, int64_t grain, ParallelBody body, void* context) {
  if (count <= 0) {
    return;
  }
  if (!two_threads || count <= grain) {
    body(0, count, context);
    return;
  }
  std::thread second(body, count / 2, count, context);
  body(0, count / 2, context);
  second.join();
}

static Isa running = Isa::baseline;

static Isa named(const char* isa) {
  return running = isa_named(isa);
}

bool tiles_are_used() {
  return running == Isa::amx;
}

static DType dtype_of(const py::array& array) {
  const std::string name = py::str(array.dtype());
  const std::pair<const char*, DType> known[] = {
      {"float32", DType::float32}, {"float16", DType::float16}, {"uint16", DType::bfloat16},
      {"uint8", DType::uint8},     {"int32", DType::int32},     {"int64", DType::int64}};
  for (const auto& [known_name, dtype] : known) {
    if (name == known_name) {
      return dtype;
    }
  }
  fail("unexpected dtype ", name);
}

// bfloat16 logits are given by their bits, as uint16.
static py::tuple upsample_argmax(const py::array& logits, int64_t height, int64_t width,
                                 bool align_corners, const std::string& isa) {
  const auto stride = [&](int axis) { return logits.strides(axis) / logits.itemsize(); };
  const auto batch = logits.shape(0), classes = logits.shape(1);
  const py::dtype label_dtype(classes <= most_uint8_classes ? "uint8" : "int64");
  py::array labels(label_dtype, {batch, (py::ssize_t)height, (py::ssize_t)width});
  py::array_t<float> confidence({batch, (py::ssize_t)height, (py::ssize_t)width});
  const UpsampleArgmax call{logits.data(),
                            dtype_of(logits),
                            batch,
                            classes,
                            logits.shape(2),
                            logits.shape(3),
                            stride(0),
                            stride(1),
                            stride(2),
                            stride(3),
                            height,
                            width,
                            align_corners,
                            labels.mutable_data(),
                            confidence.mutable_data()};
  OPENSEG_CHECK(OPENSEG_VARIANT(named(isa.c_str()), upsample_argmax_cpu)(call), "no memory");
  return py::make_tuple(labels, confidence);
}

static py::tuple confusion_matrix(const py::array& prediction, const py::array& target,
                                  int64_t num_classes, int64_t ignore_index,
                                  const std::string& isa) {
  py::array_t<int64_t> matrix({num_classes, num_classes}), invalid(2);
  matrix.attr("fill")(0);
  invalid.attr("fill")(0);
  const ConfusionMatrix call{prediction.data(), dtype_of(prediction),  target.data(),
                             dtype_of(target),  target.size(),         num_classes,
                             ignore_index,      matrix.mutable_data(), invalid.mutable_data()};
  OPENSEG_CHECK(OPENSEG_VARIANT(named(isa.c_str()), confusion_matrix_cpu)(call), "no memory");
  return py::make_tuple(matrix, invalid);
}

// What went wrong, or null.
template <typename Run>
static const char* message_of(const Run& run) {
  static std::string message;
  try {
    return run() ? nullptr : "no memory";
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

static bool cross_entropy(Isa isa, const UpsampleCrossEntropy& call,
                          const CrossEntropyForwardCuda& out, const Ohem* ohem) {
  std::vector<RowTotals> rows(call.batch * call.out_height);
  const CrossEntropyForward result{out.loss, out.lse, out.probability, out.first_enters,
                                   rows.data()};
  if (!OPENSEG_VARIANT(isa, upsample_cross_entropy_forward_cpu)(call, result)) {
    return false;
  }
  if (ohem) {
    OPENSEG_VARIANT(isa, mine_hard_pixels_cpu)(call, *ohem, result);
  }
  double* const totals = out.totals;
  totals[0] = totals[1] = totals[2] = totals[3] = 0;
  for (const RowTotals& row : rows) {
    totals[0] += row.loss;
    totals[1] += row.divisor;
    totals[3] = totals[2] == 0 ? (double)row.first_invalid : totals[3];
    totals[2] += (double)row.invalid;
  }
  return true;
}

// Checks that tiles which this thread has configured are configured so afterwards.
template <typename Run>
static bool beside_tiles(const Run& run) {
#if defined(OPENSEG_HAS_TILES)
  if (running == Isa::amx) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {8, 16};
      uint8_t rows[16] = {3, 5};
    } const before;
    auto after = before;
    __asm__ volatile("ldtilecfg %0" ::"m"(before));
    const bool ok = run();
    __asm__ volatile("sttilecfg %0" : "=m"(after));
    __asm__ volatile("tilerelease");
    OPENSEG_CHECK(std::memcmp(&before, &after, sizeof(before)) == 0, "tiles are configured anew");
    return ok;
  }
#endif
  return run();
}

extern "C" {

#define LAUNCHER(name, ...) \
  __attribute__((visibility("default"))) const char* name(const char* isa, __VA_ARGS__)
#define LAUNCHER_OF(name, Call)                                                        \
  LAUNCHER(name, const Call* call) {                                                   \
    return message_of([&] { return OPENSEG_VARIANT(named(isa), name##_cpu)(*call); }); \
  }

LAUNCHER_OF(inplace_abn, InPlaceAbn)
LAUNCHER_OF(inplace_abn_backward, InPlaceAbnBackward)
LAUNCHER_OF(inplace_abn_backward_sums, InPlaceAbnBackward)

// Products are of float32 where a GPU may round to TF32: the last argument is not asked.
#define LAUNCHER_OF_PRODUCTS(name, Call)                           \
  LAUNCHER(name, const Call* call, bool) {                         \
    return message_of([&] {                                        \
      const auto kernel = OPENSEG_VARIANT(named(isa), name##_cpu); \
      return beside_tiles([&] { return kernel(*call); });          \
    });                                                            \
  }

LAUNCHER_OF_PRODUCTS(attention, Attention)
LAUNCHER_OF_PRODUCTS(attention_backward, AttentionBackward)
LAUNCHER_OF_PRODUCTS(object_attention, ObjectAttention)
LAUNCHER_OF_PRODUCTS(object_attention_backward, ObjectAttentionBackward)
LAUNCHER_OF_PRODUCTS(spatial_gather, SpatialGather)
LAUNCHER_OF_PRODUCTS(spatial_gather_backward, SpatialGatherBackward)

LAUNCHER(upsample_cross_entropy, const UpsampleCrossEntropy* call,
         const CrossEntropyForwardCuda* result, const Ohem* ohem) {
  return message_of([&] { return cross_entropy(named(isa), *call, *result, ohem); });
}

LAUNCHER(upsample_cross_entropy_backward, const UpsampleCrossEntropy* call,
         const CrossEntropyBackward* result) {
  return message_of([&] {
    return OPENSEG_VARIANT(named(isa), upsample_cross_entropy_backward_cpu)(*call, *result);
  });
}

}  // extern "C"

}  // namespace openseg

PYBIND11_MODULE(openseg_launchers, m) {
  m.def("use_two_threads", [](bool two) { openseg::two_threads = two; });
  m.def("cpu_isa", [] { return openseg::isa_name(openseg::cpu_isa()); });
  m.def("upsample_argmax", &openseg::upsample_argmax);
  m.def("confusion_matrix", &openseg::confusion_matrix);
}
