// SPDX-License-Identifier: MIT
#include "common/attention_torch.h"

#if defined(OPENSEG_CUDA)
#include "common/cuda/attention.h"
#include "common/torch_cuda.h"
#endif

namespace openseg {
namespace {

bool fits(const Tensor& map, const Tensor& like, int64_t channels) {
  return map.dim() == 4 && map.scalar_type() == like.scalar_type() && map.size(0) == like.size(0) &&
         map.size(1) == channels && map.size(2) == like.size(2) && map.size(3) == like.size(3);
}

Map part_of(Map map, int64_t first, int64_t pixels) {
  OPENSEG_DISPATCH_FLOATING(map.dtype,
                            map.data = static_cast<scalar_t*>(map.data) + first * map.stride_pixel);
  map.pixels = pixels;
  return map;
}

// The tensors as kernels walk them, kept as long as the call that points into them.
struct Inputs {
  const char* name;
  Tensor query, key, value;
  bool shared;

  Inputs(const char* name, const Tensor& query, const std::optional<Tensor>& key,
         const Tensor& value)
      : name(name),
        query(walkable(query)),
        key(key ? walkable(*key) : this->query),
        value(walkable(value)),
        shared(!key) {
    OPENSEG_CHECK(query.dim() == 4 && value.dim() == 4 && fits(this->key, query, query.size(1)) &&
                      fits(value, query, value.size(1)),
                  name, ": expected query and key [B, D, H, W] and value [B, Dv, H, W], all of one",
                  " dtype");
  }

  // Calls for one part after another; `statistics` are those of all.
  std::vector<Attention> calls(double scale, const std::vector<MapPart>& parts, const Tensor& out,
                               float* statistics) const {
    std::vector<Attention> calls;
    int64_t covered = 0;
    for (const auto& [first, sets] : parts) {
      const int64_t pixels = sets.count() * sets.pixels();
      const auto map = [&](const Tensor& tensor) {
        return part_of(map_of(name, tensor), first, pixels);
      };
      calls.push_back({map(query), map(key), map(value), shared, (float)scale, sets, map(out),
                       statistics + 2 * query.size(0) * covered});
      covered += pixels;
    }
    OPENSEG_CHECK(covered == query.size(2) * query.size(3), name,
                  ": the groups do not divide the map");
    return calls;
  }
};

}  // namespace

std::tuple<Tensor, Tensor> attention(const char* name, const Tensor& query,
                                     const std::optional<Tensor>& key, const Tensor& value,
                                     double scale, const std::vector<MapPart>& parts,
                                     [[maybe_unused]] bool allow_tf32) {
  const Inputs inputs(name, query, key, value);
  const Tensor out = allocate_map(query, value.size(1));
  const Tensor statistics =
      allocate(query, {2, query.size(0), query.size(2) * query.size(3)}, ScalarType::Float);
  const std::vector<Attention> calls =
      inputs.calls(scale, parts, out, static_cast<float*>(statistics.mutable_data_ptr()));
#if defined(OPENSEG_CUDA)
  if (query.is_cuda()) {
    const CudaScope scope(query);
    for (const Attention& call : calls) {
      attention_cuda(call, allow_tf32, scope.stream());
    }
    return {out, statistics};
  }
#endif
  for (const Attention& call : calls) {
    OPENSEG_CHECK(OPENSEG_VARIANT(cpu_isa(), attention_cpu)(call), name,
                  ": no memory for the sums of pixels");
  }
  return {out, statistics};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(
    const char* name, const Tensor& grad, const Tensor& query, const std::optional<Tensor>& key,
    const Tensor& value, const Tensor& out, const Tensor& statistics, double scale,
    const std::vector<MapPart>& parts, [[maybe_unused]] bool allow_tf32) {
  const Inputs inputs(name, query, key, value);
  const Tensor grad_out = walkable(grad), result = walkable(out);
  const Tensor known = torch::stable::contiguous(statistics);
  OPENSEG_CHECK(fits(grad, query, value.size(1)) && fits(out, query, value.size(1)) &&
                    known.scalar_type() == ScalarType::Float &&
                    known.numel() == 2 * query.size(0) * query.size(2) * query.size(3),
                name, ": the gradient or the statistics do not fit the result");
  const Tensor grad_query = allocate_map(query, query.size(1));
  const Tensor grad_key =
      key ? allocate_map(*key, query.size(1)) : allocate(query, {0}, query.scalar_type());
  const Tensor grad_value = allocate_map(value, value.size(1));
  std::vector<AttentionBackward> calls;
  for (const Attention& forward :
       inputs.calls(scale, parts, result,
                    const_cast<float*>(static_cast<const float*>(known.const_data_ptr())))) {
    const auto map = [&](const Tensor& tensor) {
      return part_of(map_of(name, tensor), parts[calls.size()].first, forward.query.pixels);
    };
    calls.push_back(
        {forward, map(grad_out), map(grad_query), key ? map(grad_key) : Map{}, map(grad_value)});
  }
#if defined(OPENSEG_CUDA)
  if (query.is_cuda()) {
    const CudaScope scope(query);
    const Tensor delta =
        allocate(query, {query.size(0), query.size(2) * query.size(3)}, ScalarType::Float);
    for (const AttentionBackward& call : calls) {
      attention_backward_cuda(call, static_cast<float*>(delta.mutable_data_ptr()), allow_tf32,
                              scope.stream());
    }
    return {grad_query, grad_key, grad_value};
  }
#endif
  for (const AttentionBackward& call : calls) {
    OPENSEG_CHECK(OPENSEG_VARIANT(cpu_isa(), attention_backward_cpu)(call), name,
                  ": no memory for the sums of pixels");
  }
  return {grad_query, grad_key, grad_value};
}

}  // namespace openseg
