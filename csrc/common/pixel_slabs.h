// SPDX-License-Identifier: MIT
// Rows of sets, for csrc/common/cpu alone.
//
// Where the pixels of a map are neighbours, those of a set lie in cache lines that they share with
// the sets beside it. All sets of a row are therefore copied out together, as rows, and back: each
// line of the map is read once. Rows are of floats, or of bfloat16 where products take it.
#pragma once

#include "common/pixel_rows.h"

namespace openseg::OPENSEG_ISA {
namespace {

constexpr int64_t most_run = 128;  // pixels of a line that are copied together

struct SlabCopy {
  const Map& map;
  const PixelSets& sets;
  int64_t image, down;
  void* rows;  // [across, lines, columns, row_pitch(channels)]
  bool back;
};

template <typename T>
class SlabCopier {
 public:
  using Row = typename ElementFor<typename WordFor<T>::type>::type;

  explicit SlabCopier(const SlabCopy& copy) : copy_(copy), map_(copy.map) {}

  // Pieces of lines.
  void run(int64_t begin, int64_t end) {
    const PixelSets& sets = copy_.sets;
    const int64_t width = sets.across * sets.columns, parts = parts_of(width, most_run);
    for (; begin < end; ++begin) {
      const Range pixels = part(width, parts, begin % parts);
      const int64_t line = begin / parts;
      const int64_t first = copy_.down * sets.stride_down + line * sets.stride_line + pixels.begin;
      place_ = (T*)map_.data + copy_.image * map_.stride_batch + first * map_.stride_pixel;
      count_ = pixels.count;
      for (int64_t x = 0; x < most_run; ++x) {  // the last one stands for those that are not there
        rows_[x] = x < count_ ? row(line, pixels.begin + x) : rows_[x - 1];
      }
      if (map_.stride_channel == 1) {
        copy_rows();
      } else if (copy_.back) {
        turn_back();
      } else {
        turn();
      }
    }
  }

 private:
  // The pixel x of a line of the slab, as a row.
  Row* row(int64_t line, int64_t x) const {
    const PixelSets& sets = copy_.sets;
    const bool adjacent = sets.stride_column == 1;
    const int64_t set = adjacent ? x / sets.columns : x % sets.across;
    const int64_t column = adjacent ? x % sets.columns : x / sets.across;
    return (Row*)copy_.rows +
           ((set * sets.lines + line) * sets.columns + column) * row_pitch(map_.channels);
  }

  void copy_rows() {
    T* pixel = place_;
    for (int64_t x = 0; x < count_; ++x, pixel += map_.stride_pixel) {
      for (int64_t c = 0; c < map_.channels; c += lanes) {
        if (copy_.back) {
          store_some(pixel + c, load_float(rows_[x] + c), map_.channels - c);
        } else {
          store_float(rows_[x] + c, channels_of(map_, pixel, c));
        }
      }
    }
  }

  // Lines of pixels side by side to rows.
  void turn() const {
    const int64_t later = ahead * map_.stride_channel;
    for (int64_t c = 0; c < map_.channels; c += lanes) {
      const T* lines[lanes];
      for (int i = 0; i < lanes; ++i) {
        const int64_t channel = c + i < map_.channels ? c + i : map_.channels - 1;
        lines[i] = place_ + channel * map_.stride_channel;
      }
      for (int64_t x = 0; x < count_; x += 4) {
        T ends[lanes][4];
        const T* quad[lanes];
        for (int i = 0; i < lanes; i += 4) {
          __builtin_prefetch(lines[i + x / 4 % 4] + x + later);
        }
        const bool whole = x + 4 <= count_;
        for (int i = 0; !whole && i < lanes; ++i) {
          quad[i] = padded<4>(lines[i] + x, count_ - x, ends[i]);
        }
        vfloat turned[4];
        turn_quads<float>(whole ? lines : quad, whole ? x : 0, turned);
        for (int64_t i = 0; i < 4 && x + i < count_; ++i) {
          store_float(rows_[x + i] + c, turned[i]);
        }
      }
    }
  }

  // And back. Lines are fetched for this too: they are written in pieces.
  void turn_back() const {
    const int64_t later = ahead * map_.stride_channel;
    for (int64_t c = 0; c < map_.channels; c += 4) {
      for (int64_t x = 0; x < count_; x += lanes) {
        vfloat turned[4];
        turn_quads<float>(rows_ + x, c, turned);
        T* to = place_ + c * map_.stride_channel + x;
        for (int64_t i = 0; i < 4 && c + i < map_.channels; ++i, to += map_.stride_channel) {
          __builtin_prefetch(to + later, 1);
          store_some(to, turned[i], count_ - x);
        }
      }
    }
  }

  const SlabCopy& copy_;
  const Map& map_;
  T* place_ = nullptr;   // of the first pixel of a piece
  int64_t count_ = 0;    // of its pixels
  Row* rows_[most_run];  // theirs
};

// The sets of one image in row `down` of sets.
class Slab {
 public:
  Slab(const PixelSets& sets, int64_t image, int64_t down)
      : sets_(sets), image_(image), down_(down) {}

  static int64_t pixels(const PixelSets& sets) { return sets.across * sets.pixels(); }
  static int64_t bytes(const PixelSets& sets, const Map& map) {
    const bool halves = row_type(map) != DType::float32;
    return round_up(pixels(sets) * row_pitch(map.channels) * (halves ? 2 : 4), 64);
  }

  // How the sets lie in copies.
  PixelSets sets() const {
    const int64_t count = sets_.pixels();
    return {1, sets_.across, 1, count, 0, count, 0, 1};
  }

  Map copy_of(const Map& map, void* rows) const {
    const int64_t pitch = row_pitch(map.channels);
    return {rows, row_type(map), 1, map.channels, pixels(sets_), 0, 1, pitch};
  }

  Map load(const Map& map, void* rows) const {
    copy(map, rows, false);
    return copy_of(map, rows);
  }

  void store(const Map& copy_of_map, const Map& map) const { copy(map, copy_of_map.data, true); }

  void load_statistics(const Attention& call, float* statistics) const {
    for (int64_t i = 0; i < 2; ++i) {
      std::memcpy(statistics + i * pixels(sets_), statistics_of(call, i), statistics_bytes());
    }
  }

  void store_statistics(const float* statistics, const Attention& call) const {
    for (int64_t i = 0; i < 2; ++i) {
      std::memcpy(statistics_of(call, i), statistics + i * pixels(sets_), statistics_bytes());
    }
  }

 private:
  static DType row_type(const Map& map) {
    const bool pairs = map.dtype == DType::bfloat16 && per_word<WordFor<bfloat16>::type> == 2;
    return pairs ? DType::bfloat16 : DType::float32;
  }

  void copy(const Map& map, void* rows, bool back) const {
    SlabCopy copy{map, sets_, image_, down_, rows, back};
    const int64_t width = sets_.across * sets_.columns;
    run_parallel(
        sets_.lines * parts_of(width, most_run), 1,
        [](int64_t begin, int64_t end, void* pointer) {
          const SlabCopy& copy = *(const SlabCopy*)pointer;
          OPENSEG_DISPATCH_FLOATING(copy.map.dtype, SlabCopier<scalar_t>(copy).run(begin, end))
        },
        &copy);
  }

  float* statistics_of(const Attention& call, int64_t index) const {
    const int64_t row = (index * call.query.batch + image_) * sets_.down + down_;
    return call.statistics + row * pixels(sets_);
  }

  int64_t statistics_bytes() const { return pixels(sets_) * (int64_t)sizeof(float); }

  const PixelSets& sets_;
  int64_t image_, down_;
};

// Whether a set lies between the pixels of others of its row, which fill all of a line together.
inline bool shares_lines(const PixelSets& sets, const Map& map) {
  const bool blocks = sets.stride_column == 1 && sets.stride_across == sets.columns;
  const bool combs = sets.stride_across == 1 && sets.stride_column == sets.across;
  return sets.count() > 1 && (blocks || combs) && !channels_are_neighbours(map);
}

inline bool lies_in_slabs(const Attention& call) {
  return shares_lines(call.sets, call.query) || shares_lines(call.sets, call.key) ||
         shares_lines(call.sets, call.value);
}

// Calls visit(slab) for each of them until it returns false.
template <typename Visit>
bool for_each_slab(const Attention& call, const Visit& visit) {
  for (int64_t i = 0; i < call.query.batch * call.sets.down; ++i) {
    if (!visit(Slab(call.sets, i / call.sets.down, i % call.sets.down))) {
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace openseg::OPENSEG_ISA
