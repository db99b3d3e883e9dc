// SPDX-License-Identifier: MIT
#if defined(OPENSEG_CUDA)
#include "common/torch_cuda.h"

#include <dlfcn.h>

namespace openseg {

// torch loads its libraries privately: the symbol is found only by asking for the library by name.
CudaScope::CudaScope(const Tensor& tensor) : guard_(tensor.get_device_index()) {
  using CurrentStream = AOTITorchError (*)(int32_t, void**);
  static const auto current_stream = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? (CurrentStream)dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  }();
  OPENSEG_CHECK(current_stream, "openseg: this torch has no CUDA streams");
  TORCH_ERROR_CODE_CHECK(current_stream(tensor.get_device_index(), &stream_));
}

}  // namespace openseg
#endif
