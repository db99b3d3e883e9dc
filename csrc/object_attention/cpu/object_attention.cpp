// SPDX-License-Identifier: MIT
// The scores of a block of pixels against all regions stay in the cache: softmax and both products
// follow at once, and the backward pass computes the scores again rather than keep [K, N] weights.
//
// The gradients of key and value are sums over pixels: each chunk of pixels has a partial sum of
// its own, added in the order of chunks, so that results do not depend on the number of threads.
#include "object_attention/object_attention.h"

#include "common/parallel.h"
#include "common/regions.h"

namespace openseg::OPENSEG_ISA {
namespace {

// Softmax over the regions of scale * scores, in place.
void softmax(float* scores, int64_t regions, float scale) {
  for (int64_t x = 0; x < block; x += lanes) {
    float* const column = scores + x;
    vfloat most = splat(-__builtin_inff());
    for (int64_t k = 0; k < regions; ++k) {
      most = max(load<vfloat>(column + k * block) * scale, most);
    }
    vfloat sum{};
    for (int64_t k = 0; k < regions; ++k) {
      const vfloat weight = exp(load<vfloat>(column + k * block) * scale - most);
      sum += weight;
      store(column + k * block, weight);
    }
    const vfloat inverse = 1.0f / sum;
    for (int64_t k = 0; k < regions; ++k) {
      store(column + k * block, load<vfloat>(column + k * block) * inverse);
    }
  }
}

// grad_scores = scale * weights * (grad_weights - Σ_k weights * grad_weights), into grad_weights.
void softmax_backward(const float* weights, float* grad_weights, int64_t regions, float scale) {
  for (int64_t x = 0; x < block; x += lanes) {
    vfloat mean{};
    for (int64_t k = 0; k < regions; ++k) {
      const int64_t at = k * block + x;
      mean += load<vfloat>(weights + at) * load<vfloat>(grad_weights + at);
    }
    for (int64_t k = 0; k < regions; ++k) {
      const int64_t at = k * block + x;
      const vfloat centred = load<vfloat>(grad_weights + at) - mean;
      store(grad_weights + at, scale * load<vfloat>(weights + at) * centred);
    }
  }
}

template <typename T, typename Word>
class Forward {
 public:
  explicit Forward(const ObjectAttention& call)
      : call_(call),
        scratch_(bytes(call)),
        key_(scratch_, call.key.pixels, call.query.channels),
        value_(scratch_, call.key.pixels, call.value.channels),
        scores_(scratch_.take<float>(call.key.pixels * block)),
        packed_(scratch_.take<Word>(packed_words<Word>(call.key.pixels))) {}

  explicit operator bool() const { return (bool)scratch_; }

  void run(int64_t begin, int64_t end) {
    const int64_t blocks = (call_.query.pixels + block - 1) / block;
    int64_t loaded = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks, pixel = task % blocks * block;
      const int64_t left = call_.query.pixels - pixel, count = left < block ? left : block;
      if (image != loaded) {
        key_.template load_image<T>(call_.key, image);
        value_.template load_image<T>(call_.value, image);
        loaded = image;
      }
      key_.project(pixels_of<T>(call_.query, image, pixel, count), packed_, scores_);
      softmax(scores_, call_.key.pixels, call_.scale);
      value_.template expand<T>(scores_, packed_, call_.out, image, pixel, count);
    }
  }

 private:
  static int64_t bytes(const ObjectAttention& call) {
    const int64_t regions = call.key.pixels;
    return Projection<Word>::bytes(regions, call.query.channels) +
           Expansion<Word>::bytes(regions, call.value.channels) +
           4 * (regions * block + packed_words<Word>(regions)) + 4 * 64;
  }

  const ObjectAttention& call_;
  Scratch scratch_;
  Projection<Word> key_;
  Expansion<Word> value_;
  float* scores_;  // [K, block]
  Word* packed_;
  TilesFor<Word> tiles_;
};

// The partial sums of one chunk, [K, pitch_key] and [K, pitch_value].
struct Sums {
  explicit Sums(const ObjectAttention& call)
      : pitch_key(round_up(call.query.channels, panel)),
        pitch_value(round_up(call.value.channels, panel)),
        size(call.key.pixels * (pitch_key + pitch_value)),
        chunks((call.query.pixels + chunk - 1) / chunk) {}

  int64_t pitch_key, pitch_value;
  int64_t size;    // floats
  int64_t chunks;  // of an image
};

template <typename T, typename Word>
class Backward {
 public:
  Backward(const ObjectAttentionBackward& call, float* sums)
      : call_(call),
        in_(call.forward),
        sums_(sums),
        scratch_(bytes(in_)),
        key_(scratch_, in_.key.pixels, in_.query.channels),
        value_(scratch_, in_.key.pixels, in_.value.channels),
        key_out_(scratch_, in_.key.pixels, in_.query.channels),
        to_key_(scratch_, in_.key.pixels, in_.query.channels),
        to_value_(scratch_, in_.key.pixels, in_.value.channels),
        weights_(scratch_.take<float>(in_.key.pixels * block)),
        grad_(scratch_.take<float>(in_.key.pixels * block)),
        packed_(scratch_.take<Word>(packed_words<Word>(in_.key.pixels))) {}

  explicit operator bool() const { return (bool)scratch_; }

  void run(int64_t begin, int64_t end) {
    const Sums sums(in_);
    int64_t loaded = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / sums.chunks, first = task % sums.chunks * chunk;
      if (image != loaded) {
        key_.template load_image<T>(in_.key, image);
        value_.template load_image<T>(in_.value, image);
        key_out_.template load_image<T>(in_.key, image);
        loaded = image;
      }
      float* const sum_key = sums_ + task * sums.size;
      std::memset(sum_key, 0, sums.size * sizeof(float));
      for (int64_t pixel = first; pixel < first + chunk && pixel < in_.query.pixels;
           pixel += block) {
        run_block(image, pixel, sum_key, sum_key + in_.key.pixels * sums.pitch_key);
      }
    }
  }

 private:
  void run_block(int64_t image, int64_t pixel, float* sum_key, float* sum_value) {
    const int64_t regions = in_.key.pixels, left = in_.query.pixels - pixel;
    const int64_t count = left < block ? left : block;
    key_.project(pixels_of<T>(in_.query, image, pixel, count), packed_, weights_);
    softmax(weights_, regions, in_.scale);
    value_.project(pixels_of<T>(in_.out, image, pixel, count), packed_, grad_);
    to_value_.template add<T>(weights_, in_.out, image, pixel, count, sum_value);
    softmax_backward(weights_, grad_, regions, in_.scale);
    to_key_.template add<T>(grad_, in_.query, image, pixel, count, sum_key);
    key_out_.template expand<T>(grad_, packed_, call_.grad_query, image, pixel, count);
  }

  static int64_t bytes(const ObjectAttention& call) {
    const int64_t regions = call.key.pixels;
    return Projection<Word>::bytes(regions, call.query.channels) +
           Projection<Word>::bytes(regions, call.value.channels) +
           Expansion<Word>::bytes(regions, call.query.channels) +
           Reduction<Word>::bytes(regions, call.query.channels) +
           Reduction<Word>::bytes(regions, call.value.channels) +
           4 * (2 * regions * block + packed_words<Word>(regions)) + 6 * 64;
  }

  const ObjectAttentionBackward& call_;
  const ObjectAttention& in_;
  float* const sums_;  // [batch, chunks, Sums::size]
  Scratch scratch_;
  Projection<Word> key_, value_;
  Expansion<Word> key_out_;
  Reduction<Word> to_key_, to_value_;
  float *weights_, *grad_;  // [K, block]
  Word* packed_;
  TilesFor<Word> tiles_;
};

// Row k of one image: Σ over chunks of sums[chunk * size + c].
template <typename T>
void add_chunks(const float* sums, int64_t chunks, int64_t size, int64_t channels, T* to) {
  for (int64_t c = 0; c < channels; c += lanes) {
    vfloat total{};
    for (int64_t i = 0; i < chunks; ++i) {
      total += load<vfloat>(sums + i * size + c);
    }
    store_some(to + c, total, channels - c);
  }
}

struct Context {
  const ObjectAttentionBackward& call;
  float* sums;
  int failed;
};

template <typename T>
void merge(const Context& context, int64_t begin, int64_t end) {
  const ObjectAttentionBackward& call = context.call;
  const int64_t regions = call.grad_key.pixels;
  const Sums sums(call.forward);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / regions, k = row % regions;
    const float* const first = context.sums + image * sums.chunks * sums.size;
    T* const key = (T*)call.grad_key.data + row * call.grad_key.channels;
    T* const value = (T*)call.grad_value.data + row * call.grad_value.channels;
    const float* const sum_value = first + regions * sums.pitch_key + k * sums.pitch_value;
    add_chunks(first + k * sums.pitch_key, sums.chunks, sums.size, call.grad_key.channels, key);
    add_chunks(sum_value, sums.chunks, sums.size, call.grad_value.channels, value);
  }
}

}  // namespace

bool object_attention_cpu(const ObjectAttention& call) {
  struct Context {
    const ObjectAttention& call;
    int failed;
  } context{call, 0};
  const int64_t blocks = (call.query.pixels + block - 1) / block;
  run_parallel(
      call.query.batch * blocks, 1,
      [](int64_t begin, int64_t end, void* pointer) {
        Context& context = *(Context*)pointer;
        OPENSEG_DISPATCH_WORDS(context.call.query.dtype, {
          Forward<scalar_t, word_t> forward(context.call);
          if (forward) {
            forward.run(begin, end);
          } else {
            __atomic_store_n(&context.failed, 1, __ATOMIC_RELAXED);
          }
        })
      },
      &context);
  return context.failed == 0;
}

bool object_attention_backward_cpu(const ObjectAttentionBackward& call) {
  const Sums sums(call.forward);
  const int64_t tasks = call.forward.query.batch * sums.chunks;
  Scratch scratch(tasks * sums.size * (int64_t)sizeof(float) + 64);
  if (!scratch) {
    return false;
  }
  Context context{call, scratch.take<float>(tasks * sums.size), 0};
  run_parallel(
      tasks, 1,
      [](int64_t begin, int64_t end, void* pointer) {
        Context& context = *(Context*)pointer;
        OPENSEG_DISPATCH_WORDS(context.call.forward.query.dtype, {
          Backward<scalar_t, word_t> backward(context.call, context.sums);
          if (backward) {
            backward.run(begin, end);
          } else {
            __atomic_store_n(&context.failed, 1, __ATOMIC_RELAXED);
          }
        })
      },
      &context);
  run_parallel(
      call.grad_key.batch * call.grad_key.pixels, 1,
      [](int64_t begin, int64_t end, void* pointer) {
        const Context& context = *(const Context*)pointer;
        OPENSEG_DISPATCH_FLOATING(context.call.forward.query.dtype,
                                  merge<scalar_t>(context, begin, end))
      },
      &context);
  return context.failed == 0;
}

}  // namespace openseg::OPENSEG_ISA
