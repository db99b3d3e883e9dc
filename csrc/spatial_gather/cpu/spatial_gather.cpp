// SPDX-License-Identifier: MIT
// Each chunk of pixels has a softmax and a sum of features of its own; they are merged with the
// factor by which the chunk's greatest logit lies under the image's, in the order of chunks, so
// that results do not depend on the number of threads.
//
// The backward pass is one stream over the pixels: the mean that a softmax subtracts from its
// gradient is Σ_n weight · grad_weight = <region, grad_region>, known before.
#include "spatial_gather/spatial_gather.h"

#include "common/parallel.h"
#include "common/regions.h"

namespace openseg::OPENSEG_ISA {
namespace {

// exp of what is far under any logit and still finite: a chunk of -inf alone has weights of 0.
constexpr float lowest = -__FLT_MAX__;

// Scaled logits of up to `block` pixels, [K, block]; -inf beyond `count`.
void load_scores(const SpatialGather& call, int64_t image, int64_t pixel, int64_t count,
                 float* scores) {
  OPENSEG_DISPATCH_FLOATING(
      call.logits.dtype, pack(pixels_of<scalar_t>(call.logits, image, pixel, count), scores, block))
  for (int64_t k = 0; k < call.logits.channels; ++k) {
    float* const row = scores + k * block;
    for (int64_t x = 0; x < block; x += lanes) {
      store(row + x, load<vfloat>(row + x) * call.scale);
    }
    for (int64_t x = count; x < block; ++x) {
      row[x] = -__builtin_inff();
    }
  }
}

// The partial results of one chunk.
struct Partial {
  explicit Partial(const SpatialGather& call)
      : regions(call.logits.channels),
        pitch(round_up(call.features.channels, panel)),
        size(regions * (pitch + 2)),
        chunks((call.features.pixels + chunk - 1) / chunk) {}

  float* sums(float* partial) const { return partial; }                        // [K, pitch]
  float* greatest(float* partial) const { return partial + regions * pitch; }  // [K]
  float* totals(float* partial) const { return greatest(partial) + regions; }  // [K]

  int64_t regions, pitch;
  int64_t size;    // floats
  int64_t chunks;  // of an image
};

template <typename T, typename Word>
class Forward {
 public:
  Forward(const SpatialGather& call, float* partials)
      : call_(call),
        partial_(call),
        partials_(partials),
        scratch_(4 * partial_.regions * (block + lanes) +
                 Reduction<Word>::bytes(partial_.regions, call.features.channels) + 3 * 64),
        scores_(scratch_.take<float>(partial_.regions * block)),
        lanes_(scratch_.take<float>(partial_.regions * lanes)),
        sums_(scratch_, partial_.regions, call.features.channels) {}

  explicit operator bool() const { return (bool)scratch_; }

  void run(int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % partial_.chunks * chunk;
      const int64_t left = call_.features.pixels - first;
      gather(task / partial_.chunks, first, first + (left < chunk ? left : chunk),
             partials_ + task * partial_.size);
    }
  }

 private:
  // Calls visit(pixel, count) for each block, with its scores loaded.
  template <typename Visit>
  void for_each_block(int64_t image, int64_t begin, int64_t end, const Visit& visit) {
    for (int64_t pixel = begin; pixel < end; pixel += block) {
      const int64_t count = end - pixel < block ? end - pixel : block;
      load_scores(call_, image, pixel, count, scores_);
      visit(pixel, count);
    }
  }

  void gather(int64_t image, int64_t begin, int64_t end, float* partial) {
    const int64_t regions = partial_.regions;
    float* const greatest = partial_.greatest(partial);
    for (int64_t i = 0; i < regions * lanes; ++i) {
      lanes_[i] = lowest;
    }
    for_each_block(image, begin, end, [&](int64_t, int64_t) {
      for (int64_t k = 0; k < regions; ++k) {
        vfloat most = load<vfloat>(lanes_ + k * lanes);
        for (int64_t x = 0; x < block; x += lanes) {
          most = max(load<vfloat>(scores_ + k * block + x), most);
        }
        store(lanes_ + k * lanes, most);
      }
    });
    for (int64_t k = 0; k < regions; ++k) {
      greatest[k] = max_of(load<vfloat>(lanes_ + k * lanes));
    }
    std::memset(lanes_, 0, regions * lanes * sizeof(float));
    std::memset(partial_.sums(partial), 0, regions * partial_.pitch * sizeof(float));
    for_each_block(image, begin, end, [&](int64_t pixel, int64_t count) {
      for (int64_t k = 0; k < regions; ++k) {
        vfloat total{};
        for (int64_t x = 0; x < block; x += lanes) {
          float* const at = scores_ + k * block + x;
          const vfloat weight = exp(load<vfloat>(at) - greatest[k]);
          total += weight;
          store(at, weight);
        }
        store(lanes_ + k * lanes, load<vfloat>(lanes_ + k * lanes) + total);
      }
      sums_.template add<T>(scores_, call_.features, image, pixel, count, partial_.sums(partial));
    });
    for (int64_t k = 0; k < regions; ++k) {
      partial_.totals(partial)[k] = sum_of(load<vfloat>(lanes_ + k * lanes));
    }
  }

  const SpatialGather& call_;
  const Partial partial_;
  float* const partials_;  // [batch, chunks, Partial::size]
  Scratch scratch_;
  float* scores_;  // [K, block]
  float* lanes_;   // [K, lanes]: the greatest score, then the sum of weights, of each lane
  Reduction<Word> sums_;
  TilesFor<Word> tiles_;
};

// Rows b * K + k of the result.
void merge(const SpatialGather& call, float* partials, int64_t begin, int64_t end) {
  const Partial partial(call);
  const int64_t channels = call.features.channels;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / partial.regions, k = row % partial.regions;
    float* const first = partials + image * partial.chunks * partial.size;
    float* const factors = partial.greatest(first) + k;  // at a stride of partial.size
    const float* const totals = partial.totals(first) + k;
    float greatest = lowest, total = 0;
    for (int64_t i = 0; i < partial.chunks; ++i) {
      const float value = factors[i * partial.size];
      greatest = value > greatest ? value : greatest;
    }
    for (int64_t i = 0; i < partial.chunks; ++i) {
      float& factor = factors[i * partial.size];
      factor = exp(splat(factor - greatest))[0];
      total += factor * totals[i * partial.size];
    }
    const float inverse = 1.0f / total;
    call.statistics[image * 2 * partial.regions + k] = greatest;
    call.statistics[(image * 2 + 1) * partial.regions + k] = inverse;
    float* const to = (float*)call.out.data + row * channels;
    for (int64_t c = 0; c < channels; c += lanes) {
      const float* const sums = partial.sums(first) + k * partial.pitch + c;
      vfloat sum{};
      for (int64_t i = 0; i < partial.chunks; ++i) {
        sum += load<vfloat>(sums + i * partial.size) * factors[i * partial.size];
      }
      store_some(to + c, sum * inverse, channels - c);
    }
  }
}

template <typename T, typename Word>
class Backward {
 public:
  explicit Backward(const SpatialGatherBackward& call)
      : call_(call),
        in_(call.forward),
        regions_(in_.logits.channels),
        pitch_(round_up(in_.features.channels, panel)),
        scratch_(bytes()),
        projection_(scratch_, regions_, in_.features.channels),
        expansion_(scratch_, regions_, in_.features.channels),
        vectors_(scratch_.take<float>(2 * regions_ * pitch_)),
        means_(scratch_.take<float>(regions_)),
        weights_(scratch_.take<float>(regions_ * block)),
        grad_(scratch_.take<float>(regions_ * block)),
        packed_(scratch_.take<Word>(packed_words<Word>(regions_))) {}

  explicit operator bool() const { return (bool)scratch_; }

  void run(int64_t begin, int64_t end) {
    const int64_t blocks = (in_.features.pixels + block - 1) / block;
    int64_t loaded = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks, pixel = task % blocks * block;
      const int64_t left = in_.features.pixels - pixel;
      if (image != loaded) {
        load_image(image);
        loaded = image;
      }
      run_block(image, pixel, left < block ? left : block);
    }
  }

 private:
  void load_image(int64_t image) {
    projection_.template load_image<T>(call_.grad_out, image);
    expansion_.template load_image<T>(call_.grad_out, image);
    float* const grads = vectors_ + regions_ * pitch_;
    pack(image_of<float>(in_.out, image).transposed(), vectors_, pitch_);
    pack(image_of<T>(call_.grad_out, image).transposed(), grads, pitch_);
    for (int64_t k = 0; k < regions_; ++k) {
      vfloat sum{};
      for (int64_t c = k * pitch_; c < (k + 1) * pitch_; c += lanes) {
        sum += load<vfloat>(vectors_ + c) * load<vfloat>(grads + c);
      }
      means_[k] = sum_of(sum);
    }
  }

  void run_block(int64_t image, int64_t pixel, int64_t count) {
    load_scores(in_, image, pixel, count, weights_);
    projection_.project(pixels_of<T>(in_.features, image, pixel, count), packed_, grad_);
    const float* const greatest = in_.statistics + image * 2 * regions_;
    const float* const inverse = greatest + regions_;
    for (int64_t k = 0; k < regions_; ++k) {
      for (int64_t x = 0; x < count; x += lanes) {
        float *const weights = weights_ + k * block + x, *const grad = grad_ + k * block + x;
        const vfloat weight = exp(load<vfloat>(weights) - greatest[k]) * inverse[k];
        store(weights, weight);
        store(grad, in_.scale * weight * (load<vfloat>(grad) - means_[k]));
      }
    }
    expansion_.template expand<T>(weights_, packed_, call_.grad_features, image, pixel, count);
    OPENSEG_DISPATCH_FLOATING(
        in_.logits.dtype,
        store_grad(pixels_of<scalar_t>(call_.grad_logits, image, pixel, count), (float*)packed_))
  }

  // `turned`: [block, round_up(K, panel)]
  template <typename L>
  void store_grad(const Matrix<L>& to, float* turned) {
    L* const out = (L*)to.data;
    if (to.stride_column == 1) {
      store_rows(grad_, block, to.rows, to.columns, out, to.stride_row);
    } else {
      const int64_t pitch = round_up(regions_, panel);
      pack(Matrix<float>{grad_, to.columns, to.rows, 1, block}, turned, pitch);
      store_rows(turned, pitch, to.columns, to.rows, out, to.stride_column);
    }
  }

  template <typename L>
  static void store_rows(const float* from, int64_t pitch, int64_t rows, int64_t columns, L* to,
                         int64_t stride) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t x = 0; x < columns; x += lanes) {
        store_some(to + row * stride + x, load<vfloat>(from + row * pitch + x), columns - x);
      }
    }
  }

  int64_t bytes() const {
    const int64_t channels = in_.features.channels;
    return Projection<Word>::bytes(regions_, channels) +
           Expansion<Word>::bytes(regions_, channels) +
           4 * (regions_ * (2 * pitch_ + 2 * block + 1) + packed_words<Word>(regions_)) + 7 * 64;
  }

  const SpatialGatherBackward& call_;
  const SpatialGather& in_;
  const int64_t regions_, pitch_;
  Scratch scratch_;
  Projection<Word> projection_;
  Expansion<Word> expansion_;
  float* vectors_;          // [2, K, pitch]: the regions and their gradients
  float* means_;            // [K]: their scalar products
  float *weights_, *grad_;  // [K, block]
  Word* packed_;
  TilesFor<Word> tiles_;
};

}  // namespace

bool spatial_gather_cpu(const SpatialGather& call) {
  const Partial partial(call);
  const int64_t tasks = call.features.batch * partial.chunks;
  Scratch scratch(tasks * partial.size * (int64_t)sizeof(float) + 64);
  if (!scratch) {
    return false;
  }
  struct Context {
    const SpatialGather& call;
    float* partials;
    int failed;
  } context{call, scratch.take<float>(tasks * partial.size), 0};
  run_parallel(
      tasks, 1,
      [](int64_t begin, int64_t end, void* pointer) {
        Context& context = *(Context*)pointer;
        OPENSEG_DISPATCH_WORDS(context.call.features.dtype, {
          Forward<scalar_t, word_t> forward(context.call, context.partials);
          if (forward) {
            forward.run(begin, end);
          } else {
            __atomic_store_n(&context.failed, 1, __ATOMIC_RELAXED);
          }
        })
      },
      &context);
  run_parallel(
      call.out.batch * partial.regions, 1,
      [](int64_t begin, int64_t end, void* pointer) {
        const Context& context = *(const Context*)pointer;
        merge(context.call, context.partials, begin, end);
      },
      &context);
  return context.failed == 0;
}

bool spatial_gather_backward_cpu(const SpatialGatherBackward& call) {
  struct Context {
    const SpatialGatherBackward& call;
    int failed;
  } context{call, 0};
  const int64_t blocks = (call.forward.features.pixels + block - 1) / block;
  run_parallel(
      call.forward.features.batch * blocks, 1,
      [](int64_t begin, int64_t end, void* pointer) {
        Context& context = *(Context*)pointer;
        OPENSEG_DISPATCH_WORDS(context.call.forward.features.dtype, {
          Backward<scalar_t, word_t> backward(context.call);
          if (backward) {
            backward.run(begin, end);
          } else {
            __atomic_store_n(&context.failed, 1, __ATOMIC_RELAXED);
          }
        })
      },
      &context);
  return context.failed == 0;
}

}  // namespace openseg::OPENSEG_ISA
