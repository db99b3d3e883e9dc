// SPDX-License-Identifier: MIT
#include "common/torch.h"

#include <immintrin.h>

#include <string>

#include "common/isa.h"
#include "common/large_pages.h"
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

namespace {

template <typename Call>
Tensor allocated(const Call& call) {
  try {
    const Tensor tensor = call();
    if (!tensor.is_cuda()) {
      prefer_large_pages(tensor.mutable_data_ptr(),
                         tensor.numel() * (int64_t)tensor.element_size());
    }
    return tensor;
  } catch (const std::exception& error) {
    const char* what = torch_exception_get_what_without_backtrace
                           ? torch_exception_get_what_without_backtrace()
                           : nullptr;
    fail("openseg: no memory for a result: ", what ? what : error.what());
  }
}

// openseg/ops/_layout.py has the same rule for shapes without data.
bool is_channels_last(const Tensor& map) {
  return map.stride(1) == 1 && map.size(1) > 1;
}

struct Strides {
  int64_t channel, pixel;  // pixel: 0 when there is no single one
};

Strides strides_of(const Tensor& tensor) {
  if (tensor.dim() == 3) {
    return {tensor.stride(2), tensor.stride(1)};
  }
  const int64_t height = tensor.size(2), width = tensor.size(3);
  if (height == 1 || width == 1) {
    return {tensor.stride(1), tensor.stride(height == 1 ? 3 : 2)};
  }
  const bool even = tensor.stride(2) == width * tensor.stride(3);
  return {tensor.stride(1), even ? tensor.stride(3) : 0};
}

}  // namespace

Tensor allocate(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return allocated([&] { return torch::stable::new_empty(like, sizes, dtype); });
}

Tensor allocate_map(const Tensor& like, int64_t channels) {
  using torch::headeronly::MemoryFormat;
  const std::vector<int64_t> sizes{like.size(0), channels, like.size(2), like.size(3)};
  const auto format =
      is_channels_last(like) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return allocated([&] {
    return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(),
                                std::nullopt, format);
  });
}

Tensor allocate_like(const Tensor& like) {
  return allocated([&] { return torch::stable::empty_like(like); });
}

Tensor walkable(const Tensor& tensor) {
  using torch::headeronly::MemoryFormat;
  const Strides strides = strides_of(tensor);
  const bool last = tensor.dim() == 4 && is_channels_last(tensor);
  // results are in channels_last then, and kernels would take the map for one of planes
  const bool overlaps = last && strides.pixel == 1 && tensor.size(2) * tensor.size(3) > 1;
  const bool has_step = strides.pixel == 1 || (strides.channel == 1 && strides.pixel != 0);
  if ((has_step && !overlaps) || tensor.numel() == 0) {
    return tensor;
  }
  return torch::stable::contiguous(tensor,
                                   last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Map map_of(const char* operator_name, const Tensor& tensor) {
  const bool regions = tensor.dim() == 3;
  const Strides strides = strides_of(tensor);
  return {
      .data = const_cast<void*>(tensor.const_data_ptr()),
      .dtype = floating_dtype(operator_name, tensor),
      .batch = tensor.size(0),
      .channels = tensor.size(regions ? 2 : 1),
      .pixels = regions ? tensor.size(1) : tensor.size(2) * tensor.size(3),
      .stride_batch = tensor.stride(0),
      .stride_channel = strides.channel,
      .stride_pixel = strides.pixel,
  };
}

bool tiles_are_used() {
  return cpu_isa() == Isa::amx;
}

void run_parallel(int64_t count, int64_t grain, ParallelBody body, void* context) {
  struct Run {
    ParallelBody body;
    void* context;
  } run{body, context};
  const auto piece = [](int64_t begin, int64_t end, void* pointer) {
    const Run& run = *(const Run*)pointer;
    run.body(begin, end, run.context);
    _mm_sfence();  // for stores past the cache, which nothing else orders
  };
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, piece, &run));
}

}  // namespace openseg
