// SPDX-License-Identifier: MIT
#include "inplace_abn/inplace_abn.h"

#include <optional>
#include <string>
#include <tuple>

#include "common/torch.h"
#if defined(OPENSEG_CUDA)
#include "common/torch_cuda.h"
#include "inplace_abn/cuda/inplace_abn.h"
#endif

namespace openseg {
namespace {

constexpr const char* name = "inplace_abn";

struct Function {
  Activation activation;
  float parameter;
};

Function function_of(const std::string& activation, double parameter) {
  if (activation == "identity") {
    return {Activation::leaky_relu, 1.0f};
  }
  OPENSEG_CHECK(activation == "leaky_relu" || activation == "relu" || activation == "elu", name,
                ": no activation ", activation);
  return {activation == "elu"    ? Activation::elu
          : activation == "relu" ? Activation::relu
                                 : Activation::leaky_relu,
          static_cast<float>(parameter)};
}

// The data of a [rows, C] beside the map x [B, C, H, W].
template <typename T>
const T* table_of(const Tensor& table, const Tensor& x, int64_t rows) {
  OPENSEG_CHECK(x.dim() == 4, name, ": the map must be [B, C, H, W]");
  const auto dtype = sizeof(T) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
  OPENSEG_CHECK(table.scalar_type() == dtype && table.is_contiguous() && table.dim() == 2 &&
                    table.size(0) == rows && table.size(1) == x.size(1),
                name, ": a table beside the map must be contiguous [", rows, ", C] of ",
                8 * sizeof(T), " bits");
  return static_cast<const T*>(table.const_data_ptr());
}

const double* known_of(const std::optional<Tensor>& table, const Tensor& x, int64_t rows) {
  return table ? table_of<double>(*table, x, rows) : nullptr;
}

double* allocated(const Tensor& table) {
  return static_cast<double*>(table.mutable_data_ptr());
}

// The map itself where it lies as `like`, which is walkable; else a copy that does.
Tensor as_lies(const Tensor& map, const Tensor& like) {
  using torch::headeronly::MemoryFormat;
  OPENSEG_CHECK(map.dim() == 4 && map.size(0) == like.size(0) && map.size(1) == like.size(1) &&
                    map.size(2) == like.size(2) && map.size(3) == like.size(3) &&
                    map.scalar_type() == like.scalar_type(),
                name, ": the gradient must have the shape and dtype of the map");
  const Tensor walked = walkable(map);
  if (channels_are_neighbours(map_of(name, walked)) ==
      channels_are_neighbours(map_of(name, like))) {
    return walked;
  }
  return torch::stable::contiguous(map, channels_are_neighbours(map_of(name, like))
                                            ? MemoryFormat::ChannelsLast
                                            : MemoryFormat::Contiguous);
}

void check_memory(bool done) {
  OPENSEG_CHECK(done, name, ": no memory for the sums of pieces of the map");
}

#if defined(OPENSEG_CUDA)
#define RETURN_FROM_GPU(launcher, tensor, ...)                                               \
  if (tensor.is_cuda()) {                                                                    \
    const CudaScope scope(tensor);                                                           \
    const Tensor partials =                                                                  \
        allocate(tensor, {inplace_abn_partials(map_of(name, tensor))}, ScalarType::Float);   \
    launcher(__VA_ARGS__, static_cast<float*>(partials.mutable_data_ptr()), scope.stream()); \
    return;                                                                                  \
  }
#else
#define RETURN_FROM_GPU(launcher, tensor, ...) static_cast<void>(tensor);
#endif

void run(const Tensor& x, const InPlaceAbn& call) {
  RETURN_FROM_GPU(inplace_abn_cuda, x, call)
  check_memory(OPENSEG_VARIANT(cpu_isa(), inplace_abn_cpu)(call));
}

void run_statistics(const Tensor& x, double* statistics) {
  const Map map = map_of(name, x);
  RETURN_FROM_GPU(inplace_abn_statistics_cuda, x, map, statistics)
  check_memory(OPENSEG_VARIANT(cpu_isa(), inplace_abn_statistics_cpu)(map, statistics));
}

void run_backward(const Tensor& kept, const InPlaceAbnBackward& call) {
  RETURN_FROM_GPU(inplace_abn_backward_cuda, kept, call)
  check_memory(OPENSEG_VARIANT(cpu_isa(), inplace_abn_backward_cpu)(call));
}

void run_sums(const Tensor& kept, const InPlaceAbnBackward& call) {
  RETURN_FROM_GPU(inplace_abn_backward_sums_cuda, kept, call)
  check_memory(OPENSEG_VARIANT(cpu_isa(), inplace_abn_backward_sums_cpu)(call));
}

Tensor normalise(const Tensor& x, const Tensor& z, const std::optional<Tensor>& known,
                 const Tensor& affine, double eps, const std::string& activation,
                 double parameter) {
  const Tensor statistics = allocate(x, {3, x.size(1)}, ScalarType::Double);
  const Function function = function_of(activation, parameter);
  const InPlaceAbn call{
      .x = map_of(name, x),
      .z = map_of(name, z),
      .known = known_of(known, x, 3),
      .affine = table_of<float>(affine, x, 2),
      .eps = static_cast<float>(eps),
      .activation = function.activation,
      .parameter = function.parameter,
      .statistics = allocated(statistics),
  };
  run(x, call);
  return statistics;
}

std::tuple<Tensor, Tensor> inplace_abn(const Tensor& x, const std::optional<Tensor>& known,
                                       const Tensor& affine, double eps,
                                       const std::string& activation, double parameter) {
  OPENSEG_CHECK(x.dim() == 4, name, ": the map must be [B, C, H, W]");
  const Tensor from = walkable(x), z = allocate_map(x, x.size(1));
  return {z, normalise(from, z, known, affine, eps, activation, parameter)};
}

Tensor inplace_abn_overwrite(Tensor x, const std::optional<Tensor>& known, const Tensor& affine,
                             double eps, const std::string& activation, double parameter) {
  OPENSEG_CHECK(x.dim() == 4 && walkable(x).const_data_ptr() == x.const_data_ptr(), name,
                ": a map with gaps cannot be overwritten");
  return normalise(x, x, known, affine, eps, activation, parameter);
}

Tensor inplace_abn_statistics(const Tensor& x) {
  OPENSEG_CHECK(x.dim() == 4, name, ": the map must be [B, C, H, W]");
  const Tensor from = walkable(x);
  const Tensor statistics = allocate(x, {3, x.size(1)}, ScalarType::Double);
  run_statistics(from, allocated(statistics));
  return statistics;
}

struct Backward {
  Tensor grad, kept, grad_x, sums;
  InPlaceAbnBackward call;
};

Backward backward_of(const Tensor& grad, const Tensor& kept, const Tensor& statistics,
                     const Tensor& affine, const std::optional<Tensor>& known, double eps,
                     const std::string& activation, double parameter, bool kept_input,
                     bool sums_alone) {
  OPENSEG_CHECK(kept.dim() == 4, name, ": the map must be [B, C, H, W]");
  const Function function = function_of(activation, parameter);
  OPENSEG_CHECK(kept_input || function.activation != Activation::relu, name,
                ": the gradient of relu needs the input");
  const Tensor from = walkable(kept), grad_z = as_lies(grad, from);
  const Tensor grad_x = sums_alone ? from : allocate_map(kept, kept.size(1));
  const Tensor sums = allocate(kept, {2, kept.size(1)}, ScalarType::Double);
  return {grad_z,
          from,
          grad_x,
          sums,
          {
              .grad_z = map_of(name, grad_z),
              .kept = map_of(name, from),
              .kept_input = kept_input,
              .statistics = table_of<double>(statistics, kept, 3),
              .affine = table_of<float>(affine, kept, 2),
              .eps = static_cast<float>(eps),
              .activation = function.activation,
              .parameter = function.parameter,
              .grad_x = map_of(name, grad_x),
              .known = known_of(known, kept, 2),
              .sums = allocated(sums),
          }};
}

std::tuple<Tensor, Tensor> inplace_abn_backward(const Tensor& grad, const Tensor& kept,
                                                const Tensor& statistics, const Tensor& affine,
                                                const std::optional<Tensor>& known, double eps,
                                                const std::string& activation, double parameter,
                                                bool kept_input) {
  const Backward backward = backward_of(grad, kept, statistics, affine, known, eps, activation,
                                        parameter, kept_input, /*sums_alone=*/false);
  run_backward(backward.kept, backward.call);
  return {backward.grad_x, backward.sums};
}

Tensor inplace_abn_backward_sums(const Tensor& grad, const Tensor& kept, const Tensor& statistics,
                                 const Tensor& affine, double eps, const std::string& activation,
                                 double parameter, bool kept_input) {
  const Backward backward = backward_of(grad, kept, statistics, affine, std::nullopt, eps,
                                        activation, parameter, kept_input, /*sums_alone=*/true);
  run_sums(backward.kept, backward.call);
  return backward.sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(openseg, CPU, m) {
  m.impl("inplace_abn", TORCH_BOX(&inplace_abn));
  m.impl("inplace_abn_", TORCH_BOX(&inplace_abn_overwrite));
  m.impl("inplace_abn_statistics", TORCH_BOX(&inplace_abn_statistics));
  m.impl("inplace_abn_backward", TORCH_BOX(&inplace_abn_backward));
  m.impl("inplace_abn_backward_sums", TORCH_BOX(&inplace_abn_backward_sums));
}

#if defined(OPENSEG_CUDA)
STABLE_TORCH_LIBRARY_IMPL(openseg, CUDA, m) {
  m.impl("inplace_abn", TORCH_BOX(&inplace_abn));
  m.impl("inplace_abn_", TORCH_BOX(&inplace_abn_overwrite));
  m.impl("inplace_abn_statistics", TORCH_BOX(&inplace_abn_statistics));
  m.impl("inplace_abn_backward", TORCH_BOX(&inplace_abn_backward));
  m.impl("inplace_abn_backward_sums", TORCH_BOX(&inplace_abn_backward_sums));
}
#endif

}  // namespace openseg
