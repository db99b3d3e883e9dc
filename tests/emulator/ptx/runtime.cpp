// SPDX-License-Identifier: MIT
// What nvcc's objects ask of the CUDA runtime, with kernels run on the CPU from the PTX that lies
// beside this library: NAME.ptx for NAME.so.
#include <dlfcn.h>

#include <cstring>
#include <map>
#include <stdexcept>
#include <string>

#include "ptx/machine.h"

namespace {

using openseg::ptx::Program;
using openseg::ptx::Programs;

enum Error { success = 0, launch_failure = 719 };
enum Attribute { processors = 16, major_version = 75, minor_version = 76, shared_limit = 97 };

struct Kernel {
  std::string name;
  int64_t shared_limit = 48 << 10;
};

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
};

struct {
  uint64_t seed = 0;
  int64_t shared_limit = 99 << 10;
} settings;

// By the address of the host's function.
std::map<const void*, Kernel>& kernels() {
  static std::map<const void*, Kernel> all;
  return all;
}

Configuration configuration;
std::string error;
int state = success;

Programs& programs() {
  static Programs all = [] {
    Dl_info info;
    dladdr((const void*)&programs, &info);
    const std::string library = info.dli_fname;
    return Programs(library.substr(0, library.rfind('.')) + ".ptx");
  }();
  return all;
}

void launch(const Kernel& kernel, const void* parameters) {
  const auto& [grid, block, shared_bytes] = configuration;
  OPENSEG_CHECK((int64_t)shared_bytes <= kernel.shared_limit, "ptx: ", shared_bytes,
                " bytes of shared memory, the kernel may have ", kernel.shared_limit);
  OPENSEG_CHECK(grid.y < 65536 && grid.z < 65536 && block.y == 1 && block.z == 1, "ptx: a grid of ",
                grid.x, " x ", grid.y, " x ", grid.z, " blocks");
  openseg::ptx::run(programs().find(kernel.name), grid, (int)block.x, (int64_t)shared_bytes,
                    parameters, settings.seed);
}

}  // namespace

extern "C" {

void emulator_configure(uint64_t seed, int64_t shared_limit) {
  settings.seed = seed;
  settings.shared_limit = shared_limit;
}

// What has run since the last call.
const char* emulator_instructions() {
  static std::string rows;
  rows = programs().take_counts();
  return rows.c_str();
}

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}

void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*,
                            void*, void*, void*, int*) {
  kernels()[function].name = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, void*) {
  configuration = {grid, block, shared_bytes};
  return success;
}

int __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared_bytes = configuration.shared_bytes;
  std::memset(stream, 0, sizeof(void*));
  return success;
}

int __cudaGetKernel(const Kernel** kernel, const void* function) {
  *kernel = &kernels().at(function);
  return success;
}

int __cudaLaunchKernel(const Kernel* kernel, dim3, dim3, void** parameters, size_t, void*) {
  try {
    launch(*kernel, parameters[0]);
  } catch (const std::exception& exception) {
    error = exception.what();
    state = launch_failure;
  }
  return state;
}

int cudaFuncSetAttribute(const void* function, int, int value) {
  OPENSEG_CHECK(value <= settings.shared_limit, "ptx: a kernel asks for ", value, " bytes");
  kernels().at(function).shared_limit = value;
  return success;
}

int cudaGetLastError() {
  const int last = state;
  state = success;
  return last;
}

const char* cudaGetErrorString(int) {
  return error.c_str();
}

int cudaGetDevice(int* device) {
  *device = 0;
  return success;
}

int cudaDeviceGetAttribute(int* value, int attribute, int) {
  const bool has_groups = settings.shared_limit == 227 << 10;
  switch (attribute) {
    case processors:
      *value = 2;
      break;
    case major_version:
      *value = has_groups ? 9 : 8;
      break;
    case minor_version:
      *value = 0;
      break;
    case shared_limit:
      *value = (int)settings.shared_limit;
      break;
    default:
      return launch_failure;
  }
  return success;
}

}  // extern "C"
