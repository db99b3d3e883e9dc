// SPDX-License-Identifier: MIT
// What a CUDA launcher needs of torch. CUDA's own runtime is linked statically, and libtorch_cuda
// is never linked: one binary serves a torch with CUDA and one without.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "common/torch.h"

namespace openseg {

// Makes the device of a tensor the current one while it lives.
class CudaScope {
 public:
  explicit CudaScope(const Tensor& tensor);

  void* stream() const { return stream_; }  // torch's current one, a cudaStream_t

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace openseg
