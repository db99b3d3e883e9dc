// SPDX-License-Identifier: MIT
// An output row is interpolated down (a row of w values for each class), then across, a vector of
// output pixels at a time with the best value and its class in registers.
//
// Most classes cannot win at most places: an interpolated value lies between the smallest and the
// largest of its four corners, so in one cell of the input grid only a class whose largest corner
// reaches the best smallest corner is a candidate. Inside an object one candidate is left, and
// nothing is interpolated at all.
#include "upsample_argmax/upsample_argmax.h"

#include "common/bilinear.h"
#include "common/parallel.h"

namespace openseg::OPENSEG_ISA {
namespace {

// For the confidence a class counts unless its probability is below exp(-30), far under rounding.
constexpr float negligible = 30.0f;
constexpr int64_t grain_pixels = 1 << 14;

// Copies one row of all classes to rows[class][0..pitch) as floats, the last value repeated to the
// end. Returns whether all are finite.
template <typename T>
bool load_rows(const UpsampleArgmax& call, const T* logits, int64_t pitch, float* rows) {
  const int64_t width = call.in_width;
  widen_rows(logits, call.classes, width, call.stride_class, call.stride_column, pitch, rows);
  vfloat zeros{};
  for (int64_t k = 0; k < call.classes; ++k) {
    float* const row = rows + k * pitch;
    for (int64_t x = width; x < pitch; ++x) {
      row[x] = row[width - 1];
    }
    for (int64_t x = 0; x < pitch; x += lanes) {
      zeros += load<vfloat>(row + x) * 0.0f;  // NaN for NaN and for infinities
    }
  }
  float sum = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    sum += zeros[lane];
  }
  return sum == 0;
}

// What one thread keeps while it walks down the output rows of an image.
class Strip {
 public:
  explicit Strip(const UpsampleArgmax& call)
      : call_(call),
        pitch_(round_up(call.in_width + lanes, lanes)),
        blocks_((call.out_width + lanes - 1) / lanes),
        words_((call.classes + 31) / 32),
        slack_(call.confidence ? negligible : 0.0f),
        scratch_(bytes()) {
    if (!scratch_) {
      return;
    }
    upper_ = scratch_.take<float>(call.classes * pitch_);
    lower_ = scratch_.take<float>(call.classes * pitch_);
    blended_ = scratch_.take<float>(call.classes * pitch_);
    values_ = scratch_.take<float>(call.classes * lanes);
    cells_ = scratch_.take<uint32_t>(words_ * pitch_);
    candidates_ = scratch_.take<uint32_t>(words_ * blocks_);
    blend_ = scratch_.take<uint32_t>(words_);
    index_ = scratch_.take<int32_t>(blocks_ * lanes);
    weight_ = scratch_.take<float>(blocks_ * lanes);
    for (int64_t x = 0; x < blocks_ * lanes; ++x) {
      const int64_t inside = x < call.out_width ? x : call.out_width - 1;
      const Source source = source_of(inside, call.in_width, call.out_width, call.align_corners);
      index_[x] = (int32_t)source.index;
      weight_[x] = source.weight;
    }
  }

  explicit operator bool() const { return (bool)scratch_; }

  void run(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / call_.out_height;
      const Source source =
          source_of(row % call_.out_height, call_.in_height, call_.out_height, call_.align_corners);
      move_to(image, source.index);
      blend(source.weight);
      if (call_.classes <= most_uint8_classes) {
        finish((uint8_t*)call_.labels + row * call_.out_width, row);
      } else {
        finish((int64_t*)call_.labels + row * call_.out_width, row);
      }
    }
  }

 private:
  int64_t bytes() const {
    const int64_t floats = call_.classes * (3 * pitch_ + lanes);
    const int64_t words = words_ * (pitch_ + blocks_ + 1) + 2 * blocks_ * lanes;
    return (floats + words) * 4 + 10 * 64;
  }

  bool load_image_row(int64_t image, int64_t y, float* rows) {
    const int64_t offset = image * call_.stride_batch + y * call_.stride_row;
    bool finite = false;
    OPENSEG_DISPATCH_FLOATING(
        call_.dtype,
        finite = load_rows(call_, (const scalar_t*)call_.logits + offset, pitch_, rows))
    return finite;
  }

  // Loads input rows y and y + 1 of an image, one of them usually there already.
  void move_to(int64_t image, int64_t y) {
    if (image == image_ && y == y_) {
      return;
    }
    if (image == image_ && y == y_ + 1) {
      float* const free = upper_;
      upper_ = lower_;
      lower_ = free;
      upper_finite_ = lower_finite_;
    } else {
      upper_finite_ = load_image_row(image, y, upper_);
    }
    lower_finite_ = load_image_row(image, y + 1 < call_.in_height ? y + 1 : y, lower_);
    finite_ = upper_finite_ && lower_finite_;
    image_ = image;
    y_ = y;
    find_candidates();
  }

  void corner_range(int64_t k, int64_t x, vfloat* low, vfloat* high) const {
    const float* const upper = upper_ + k * pitch_ + x;
    const float* const lower = lower_ + k * pitch_ + x;
    const vfloat a = load<vfloat>(upper), b = load<vfloat>(upper + 1);
    const vfloat c = load<vfloat>(lower), d = load<vfloat>(lower + 1);
    *low = min(min(a, b), min(c, d));
    *high = max(max(a, b), max(c, d));
  }

  // Bit k of cells_[k / 32][x]: class k may count between columns x and x + 1. NaN and infinities
  // follow no bounds: with them every class is a candidate everywhere.
  void mark_cells() {
    vfloat low, high;
    for (int64_t x = 0; x < call_.in_width; x += lanes) {
      vfloat best = splat(-__builtin_inff());
      for (int64_t k = 0; k < call_.classes; ++k) {
        corner_range(k, x, &low, &high);
        best = max(best, low);
      }
      for (int64_t word = 0; word < words_; ++word) {
        vint bits{};
        for (int64_t k = word * 32; k < call_.classes && k < (word + 1) * 32; ++k) {
          corner_range(k, x, &low, &high);
          const vint bit = vint{} + (int32_t)(1u << (k % 32));
          bits |= finite_ ? (high >= best - slack_) & bit : bit;
        }
        store(cells_ + word * pitch_ + x, bits);
      }
    }
  }

  void find_candidates() {
    mark_cells();
    for (int64_t word = 0; word < words_; ++word) {
      uint32_t blend = 0;
      for (int64_t block = 0; block < blocks_; ++block) {
        const int64_t last = index_[block * lanes + lanes - 1];
        uint32_t bits = 0;
        for (int64_t x = index_[block * lanes]; x <= last; ++x) {
          bits |= cells_[word * pitch_ + x];
        }
        candidates_[block * words_ + word] = bits;
        blend |= bits;
      }
      blend_[word] = blend;
    }
  }

  template <typename Visit>
  void for_each_class(const uint32_t* words, const Visit& visit) const {
    for (int64_t word = 0; word < words_; ++word) {
      for (uint32_t bits = words[word]; bits != 0; bits &= bits - 1) {
        visit(word * 32 + __builtin_ctz(bits));
      }
    }
  }

  void blend(float weight) {
    const vfloat down = splat(weight), up = splat(1.0f - weight);
    for_each_class(blend_, [&](int64_t k) {
      const int64_t start = k * pitch_;
      for (int64_t x = start; x < start + pitch_; x += lanes) {
        store(blended_ + x, load<vfloat>(upper_ + x) * up + load<vfloat>(lower_ + x) * down);
      }
    });
  }

  // Across: the values of class k at the output pixels of one block.
  struct Across {
    const float* rows;
    int64_t pitch;
    const int32_t* index;
    bool near;  // all sources within one vector: always so unless the width shrinks
    vint offset;
    vfloat left, right;

    vfloat at(int64_t k) const {
      const float* const row = rows + k * pitch;
      if (near) {
        return permute(row + index[0], offset) * left + permute(row + index[0] + 1, offset) * right;
      }
      vfloat a, b;
      for (int lane = 0; lane < lanes; ++lane) {
        a[lane] = row[index[lane]];
        b[lane] = row[index[lane] + 1];
      }
      return a * left + b * right;
    }
  };

  Across across(int64_t block) const {
    const int32_t* const index = index_ + block * lanes;
    const vfloat right = load<vfloat>(weight_ + block * lanes);
    return {blended_,
            pitch_,
            index,
            index[lanes - 1] - index[0] < lanes,
            load<vint>(index) - index[0],
            1.0f - right,
            right};
  }

  bool only_candidate(const uint32_t* words, int64_t* only) const {
    int count = 0;
    for (int64_t word = 0; word < words_; ++word) {
      count += __builtin_popcount(words[word]);
      *only = words[word] != 0 ? word * 32 + __builtin_ctz(words[word]) : *only;
    }
    return count == 1 && finite_;
  }

  template <typename Label>
  void finish(Label* labels, int64_t row) {
    float* const confidence = call_.confidence ? call_.confidence + row * call_.out_width : nullptr;
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t x = block * lanes;
      const int size = call_.out_width - x < lanes ? (int)(call_.out_width - x) : lanes;
      const uint32_t* const words = candidates_ + block * words_;
      vint label{};
      vfloat probability = splat(1.0f);
      int64_t only = 0;
      if (only_candidate(words, &only)) {
        label += (int32_t)only;
      } else {
        compete(block, words, &label, confidence ? &probability : nullptr);
      }
      put(labels + x, label, size);
      if (confidence) {
        put(confidence + x, probability, size);
      }
    }
  }

  void compete(int64_t block, const uint32_t* words, vint* label, vfloat* probability) {
    const Across source = across(block);
    vfloat best = splat(-__builtin_inff());
    vint winner{};
    if (probability == nullptr && finite_) {
      for_each_class(words, [&](int64_t k) {
        const vfloat value = source.at(k);
        winner = value > best ? vint{} + (int32_t)k : winner;
        best = max(value, best);
      });
      *label = winner;
      return;
    }
    for_each_class(words, [&](int64_t k) {
      const vfloat value = source.at(k);
      const vint wins = (value > best) | ((value != value) & (best == best));  // the first NaN wins
      winner = wins ? vint{} + (int32_t)k : winner;
      best = wins ? value : best;
      store(values_ + k * lanes, value);
    });
    *label = winner;
    if (probability) {
      vfloat sum{};
      for_each_class(words,
                     [&](int64_t k) { sum += exp(load<vfloat>(values_ + k * lanes) - best); });
      *probability = 1.0f / sum;
    }
  }

  template <typename Out, typename Vector>
  static void put(Out* to, Vector values, int size) {
    typedef Out Narrowed __attribute__((vector_size(lanes * sizeof(Out))));
    const Narrowed narrowed = __builtin_convertvector(values, Narrowed);
    if (size == lanes) {
      store(to, narrowed);
    } else {
      std::memcpy(to, &narrowed, size * sizeof(Out));
    }
  }

  const UpsampleArgmax& call_;
  const int64_t pitch_;   // floats from one class to the next
  const int64_t blocks_;  // vectors in an output row
  const int64_t words_;   // of 32 class bits
  const float slack_;
  Scratch scratch_;
  float* upper_ = nullptr;          // [classes, pitch] input row y
  float* lower_ = nullptr;          // [classes, pitch] input row y + 1
  float* blended_ = nullptr;        // [classes, pitch] interpolated down
  float* values_ = nullptr;         // [classes, lanes]
  uint32_t* cells_ = nullptr;       // [words, pitch]
  uint32_t* candidates_ = nullptr;  // [blocks, words]
  uint32_t* blend_ = nullptr;       // [words] the classes that any block needs
  int32_t* index_ = nullptr;        // [blocks * lanes] left neighbour of an output column
  float* weight_ = nullptr;         // [blocks * lanes] of the right neighbour
  int64_t image_ = -1;
  int64_t y_ = -2;
  bool upper_finite_ = false, lower_finite_ = false, finite_ = false;
};

}  // namespace

bool upsample_argmax_cpu(const UpsampleArgmax& call) {
  struct Context {
    const UpsampleArgmax& call;
    int failed;
  } context{call, 0};
  run_parallel(
      call.batch * call.out_height, 1 + grain_pixels / call.out_width,
      [](int64_t begin, int64_t end, void* pointer) {
        Context& context = *(Context*)pointer;
        Strip strip(context.call);
        if (strip) {
          strip.run(begin, end);
        } else {
          __atomic_store_n(&context.failed, 1, __ATOMIC_RELAXED);
        }
      },
      &context);
  return context.failed == 0;
}

}  // namespace openseg::OPENSEG_ISA
