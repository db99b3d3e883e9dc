// SPDX-License-Identifier: MIT
// Every input row gathers its own gradient: that of the output rows above it, from the cells above,
// and of those below. An output row is first reduced across, to the columns of the input. A thread
// that starts inside an image computes the cells above its first row anew, therefore the result is
// the same for every number of threads.
//
// Within a cell the gradient with respect to its two columns is a sum over pixels i of f_i r^i and
// of i f_i r^i, with the geometric sequence r^i: a polynomial and its derivative, by Horner's rule.
#include "common/parallel.h"
#include "upsample_cross_entropy/cpu/blended_row.h"

namespace openseg::OPENSEG_ISA {
namespace {

inline void narrow(float value, float* to) {
  *to = value;
}

inline void narrow(float value, bfloat16* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  to->bits = value == value ? (uint16_t)rounded : 0x7fc0;
}

class Backward {
 public:
  Backward(const UpsampleCrossEntropy& call, const CrossEntropyBackward& result)
      : call_(call),
        result_(result),
        geometry_(call),
        blended_(call, geometry_),
        size_(blended_.rows() * geometry_.row_pitch),
        scratch_(bytes()) {
    if (!scratch_) {
      return;
    }
    geometry_.build(&scratch_);
    weight_ = scratch_.take<float>(call.classes);
    copy_weights(call, weight_);
    blended_.build(&scratch_, weight_);
    float** const all[] = {&left_, &right_, &here_, &below_};
    for (float** rows : all) {
      *rows = scratch_.take<float>(size_ + lanes);
      std::memset(*rows, 0, (size_ + lanes) * sizeof(float));
    }
    const int64_t slots = geometry_.steps * geometry_.pitch;
    factors_ = scratch_.take<float>(slots);
    log_sums_ = scratch_.take<float>(slots);
    for (int64_t slot = 0; slot < slots; ++slot) {
      factors_[slot] = 0.0f;
      log_sums_[slot] = __builtin_inff();
    }
    labels_ = scratch_.take<int32_t>(call.out_width);
  }

  explicit operator bool() const { return (bool)scratch_; }

  void run(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / call_.in_height, y = row % call_.in_height;
      if (row == begin && y > 0) {
        gather(image, y - 1);
        shift();
      } else if (y == 0) {
        std::memset(here_, 0, size_ * sizeof(float));
        std::memset(below_, 0, size_ * sizeof(float));
      }
      gather(image, y);
      if (call_.dtype == DType::bfloat16) {
        write<bfloat16>(image, y);
      } else {
        write<float>(image, y);
      }
      shift();
    }
  }

 private:
  int64_t bytes() const {
    const int64_t slots = geometry_.steps * geometry_.pitch;
    const int64_t words = 4 * (size_ + lanes) + 2 * slots + call_.classes + call_.out_width;
    return geometry_.bytes() + blended_.bytes() + words * 4 + 8 * 64;
  }

  void shift() {
    float* const free = here_;
    here_ = below_;
    below_ = free;
    std::memset(below_, 0, size_ * sizeof(float));
  }

  Source source(int64_t out_y) const {
    return source_of(out_y, call_.in_height, call_.out_height, call_.align_corners);
  }

  // The first output row whose upper neighbour is input row y or a later one.
  int64_t first_below(int64_t y) const {
    int64_t low = 0, high = call_.out_height;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (source(middle).index < y) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // Adds the gradient of the output rows between input rows y and y + 1.
  void gather(int64_t image, int64_t y) {
    const int64_t end = first_below(y + 1);
    for (int64_t out_y = first_below(y); out_y < end; ++out_y) {
      const Source at = source(out_y);
      blended_.move_to(image, at);
      scatter(image * call_.out_height + out_y);
      add_rows(y + 1 < call_.in_height ? at.weight : 0.0f);  // below the last row is itself
    }
  }

  // Fills left_ and right_ for one output row.
  void scatter(int64_t row) {
    const int64_t start = row * call_.out_width;
    const float smoothing = call_.label_smoothing;
    const float* const scale = result_.scale + (result_.one_scale ? 0 : start);
    read_labels(call_, row, labels_);
    for (int64_t x = 0; x < call_.out_width; ++x) {
      const float own = labels_[x] < 0 ? 0.0f : weight_[labels_[x]] * (1.0f - smoothing);
      const float uniform = smoothing * blended_.weights() / call_.classes;
      factors_[geometry_.slot[x]] = scale[result_.one_scale ? 0 : x] * (own + uniform);
      log_sums_[geometry_.slot[x]] = result_.lse[start + x];
    }
    for (int first = 0; first < geometry_.steps; first += most_steps) {
      const int rest = geometry_.steps - first;
      with_steps<most_steps>(rest < most_steps ? rest : most_steps,
                             [&](auto steps) { reduce<decltype(steps)::value>(first); });
    }
    if (smoothing > 0) {
      std::memset(left_ + call_.classes * geometry_.row_pitch, 0, geometry_.pitch * sizeof(float));
      std::memset(right_ + call_.classes * geometry_.row_pitch, 0,
                  (geometry_.pitch + 1) * sizeof(float));
    }
    for (int64_t x = 0; x < call_.out_width; ++x) {
      if (result_.lse[start + x] == __builtin_inff()) {
        continue;
      }
      const float each = scale[result_.one_scale ? 0 : x];
      subtract(labels_[x], x, each * weight_[labels_[x]] * (1.0f - smoothing));
      if (smoothing > 0) {
        subtract(call_.classes, x, each * smoothing / call_.classes);
      }
    }
  }

  void subtract(int64_t k, int64_t x, float value) {
    const int64_t at = k * geometry_.row_pitch + geometry_.cell[x];
    const float right = geometry_.right[geometry_.slot[x]];
    left_[at] -= value * (1.0f - right);
    right_[at + 1] -= value * right;
  }

  template <int Steps>
  void reduce(int first) {
    for (int64_t c = 0; c < geometry_.pitch; c += lanes) {
      const int64_t slot = first * geometry_.pitch + c;
      vfloat factors[Steps], shifts[Steps] = {};
      for (int i = 0; i < Steps; ++i) {
        const int64_t at = slot + i * geometry_.pitch;
        factors[i] = load<vfloat>(factors_ + at) * exp(-load<vfloat>(log_sums_ + at));
        if (blended_.is_steep()) {
          shifts[i] = blended_.greatest(at);
        }
      }
      for (int64_t k = 0; k < call_.classes; ++k) {
        const int64_t at = k * geometry_.row_pitch + c;
        vfloat left = first > 0 ? load<vfloat>(left_ + at) : vfloat{};
        vfloat right = first > 0 ? load<vfloat>(right_ + at + 1) : vfloat{};
        if (blended_.is_steep()) {
          add_plainly<Steps>(k, slot, factors, shifts, &left, &right);
        } else {
          add_sequence<Steps>(k, c, slot, factors, &left, &right);
        }
        store(left_ + at, left);
        store(right_ + at + 1, right);
      }
    }
  }

  template <int Steps>
  void add_sequence(int64_t k, int64_t c, int64_t slot, const vfloat (&factors)[Steps],
                    vfloat* left, vfloat* right) const {
    const vfloat start = load<vfloat>(geometry_.right + slot);
    const vfloat a = load<vfloat>(blended_.row(k) + c);
    const vfloat difference = load<vfloat>(blended_.row(k) + c + 1) - a;
    const vfloat term = exp(a + start * difference);
    const vfloat ratio = exp(geometry_.step * difference);
    vfloat sum{}, derivative{};
    for (int i = Steps - 1; i >= 0; --i) {
      derivative = derivative * ratio + sum;
      sum = sum * ratio + factors[i];
    }
    const vfloat total = term * sum;
    const vfloat share = start * total + geometry_.step * (term * ratio * derivative);
    *left += total - share;
    *right += share;
  }

  template <int Steps>
  void add_plainly(int64_t k, int64_t slot, const vfloat (&factors)[Steps],
                   const vfloat (&shifts)[Steps], vfloat* left, vfloat* right) const {
    for (int i = 0; i < Steps; ++i, slot += geometry_.pitch) {
      const vfloat place = load<vfloat>(geometry_.right + slot);
      const vfloat exponential = exp(blended_.values(k, slot) - shifts[i]);
      // no pixel, no gradient: what is there may be 0 · -inf
      const vfloat grad = factors[i] != 0.0f ? factors[i] * exponential : vfloat{};
      *left += grad * (1.0f - place);
      *right += grad * place;
    }
  }

  void add_rows(float weight) {
    const vfloat down = splat(weight), up = splat(1.0f - weight);
    for (int64_t x = 0; x < size_; x += lanes) {
      const vfloat row = load<vfloat>(left_ + x) + load<vfloat>(right_ + x);
      store(here_ + x, load<vfloat>(here_ + x) + up * row);
      store(below_ + x, load<vfloat>(below_ + x) + down * row);
    }
  }

  // The gradient of input row y, which here_ holds.
  template <typename T>
  void write(int64_t image, int64_t y) {
    T* const grad = (T*)result_.grad + image * result_.stride_batch + y * result_.stride_row;
    const float* const shares = here_ + call_.classes * geometry_.row_pitch;
    const int64_t border = geometry_.border, last = call_.in_width - 1;
    for (int64_t k = 0; k < call_.classes; ++k) {
      float* const row = here_ + k * geometry_.row_pitch;
      if (call_.label_smoothing > 0) {
        for (int64_t x = 0; x < geometry_.row_pitch; ++x) {
          row[x] += weight_[k] * shares[x];
        }
      }
      if (border > 0) {
        row[border] += row[0];
        row[border + last] += row[border + last + 1];
      }
      for (int64_t x = 0; x <= last; ++x) {
        narrow(row[border + x], grad + k * result_.stride_class + x * result_.stride_column);
      }
    }
  }

  const UpsampleCrossEntropy& call_;
  const CrossEntropyBackward& result_;
  Geometry geometry_;
  BlendedRow blended_;
  const int64_t size_;  // floats of a row of all classes
  Scratch scratch_;
  float* weight_ = nullptr;    // [classes]
  float* left_ = nullptr;      // [rows, row_pitch] what an output row gives to the cells' left ends
  float* right_ = nullptr;     // and to their right ends, one column on
  float* here_ = nullptr;      // [rows, row_pitch] gradient of input row y
  float* below_ = nullptr;     // [rows, row_pitch] and of y + 1
  float* factors_ = nullptr;   // [steps * pitch] of the probabilities
  float* log_sums_ = nullptr;  // [steps * pitch] infinity where there is no pixel
  int32_t* labels_ = nullptr;  // [out_width]
};

}  // namespace

bool upsample_cross_entropy_backward_cpu(const UpsampleCrossEntropy& call,
                                         const CrossEntropyBackward& result) {
  struct Context {
    const UpsampleCrossEntropy& call;
    const CrossEntropyBackward& result;
    int failed;
  } context{call, result, 0};
  const int64_t values = call.out_height * call.out_width * call.classes / call.in_height;
  run_parallel(
      call.batch * call.in_height, 1 + grain_values / (values + 1),
      [](int64_t begin, int64_t end, void* pointer) {
        Context& context = *(Context*)pointer;
        Backward backward(context.call, context.result);
        if (backward) {
          backward.run(begin, end);
        } else {
          __atomic_store_n(&context.failed, 1, __ATOMIC_RELAXED);
        }
      },
      &context);
  return context.failed == 0;
}

}  // namespace openseg::OPENSEG_ISA
