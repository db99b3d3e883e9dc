// SPDX-License-Identifier: MIT
#include "common/torch.h"

#include <string>

#include "common/parallel.h"

// torch >= 2.13 keeps the text of the error that a C call returned as a code; older ones do not.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace openseg {

DType floating_dtype(const char* operator_name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    default:
      fail(operator_name, ": the kernel serves float32, bfloat16 and float16");
  }
}

DType integral_dtype(const char* operator_name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Byte:
      return DType::uint8;
    case ScalarType::Int:
      return DType::int32;
    case ScalarType::Long:
      return DType::int64;
    default:
      fail(operator_name, ": the kernel serves uint8, int32 and int64");
  }
}

Tensor allocate(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  try {
    return torch::stable::new_empty(like, sizes, dtype);
  } catch (const std::exception& error) {
    const char* what = torch_exception_get_what_without_backtrace
                           ? torch_exception_get_what_without_backtrace()
                           : nullptr;
    fail("openseg: no memory for a result: ", what ? what : error.what());
  }
}

void run_parallel(int64_t count, int64_t grain, ParallelBody body, void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, body, context));
}

}  // namespace openseg
