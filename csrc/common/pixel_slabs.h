// SPDX-License-Identifier: MIT
// Rows of sets, for csrc/common/cpu alone.
//
// Where the pixels of a map are neighbours, those of a set lie in cache lines that they share with
// the sets beside it. All sets of a row are therefore copied out together, as rows of floats, and
// back: each line of the map is read once.
#pragma once

#include "common/pixel_rows.h"

namespace openseg::OPENSEG_ISA {
namespace {

struct SlabCopy {
  const Map& map;
  const PixelSets& sets;
  DType dtype;
  int64_t image, down;
  float* rows;  // [across, lines, columns, row_pitch(channels)]
  bool back;
  int failed = 0;
};

template <typename T>
class SlabCopier {
 public:
  explicit SlabCopier(const SlabCopy& copy)
      : copy_(copy),
        scratch_(4 * (block * tile_pitch + slice * block) + 2 * 64),
        tile_(scratch_.take<float>(block * tile_pitch)),
        turned_(scratch_.take<float>(slice * block)) {}

  explicit operator bool() const { return (bool)scratch_; }

  // Pieces of lines.
  void run(int64_t begin, int64_t end) {
    const PixelSets& sets = copy_.sets;
    const int64_t width = sets.across * sets.columns, parts = parts_of(width, block);
    for (; begin < end; ++begin) {
      const Range pixels = part(width, parts, begin % parts);
      const int64_t line = begin / parts;
      const int64_t first = copy_.down * sets.stride_down + line * sets.stride_line + pixels.begin;
      for (int64_t c = 0; c < copy_.map.channels; c += slice) {
        const int64_t left = copy_.map.channels - c;
        copy_tile(line, pixels, first, c, left < slice ? left : slice);
      }
    }
  }

 private:
  static constexpr int64_t tile_pitch = slice + 16;

  // The pixel x of a line of the slab, as a row.
  float* row(int64_t line, int64_t x) const {
    const PixelSets& sets = copy_.sets;
    const bool adjacent = sets.stride_column == 1;
    const int64_t set = adjacent ? x / sets.columns : x % sets.across;
    const int64_t column = adjacent ? x % sets.columns : x / sets.across;
    return copy_.rows +
           ((set * sets.lines + line) * sets.columns + column) * row_pitch(copy_.map.channels);
  }

  void copy_tile(int64_t line, Range pixels, int64_t first, int64_t channel, int64_t channels) {
    const Map& map = copy_.map;
    T* const place = (T*)map.data + copy_.image * map.stride_batch + first * map.stride_pixel +
                     channel * map.stride_channel;
    if (!copy_.back) {
      pack(Matrix<T>{place, pixels.count, channels, map.stride_pixel, map.stride_channel,
                     ahead * map.stride_channel},
           tile_, tile_pitch);
      for (int64_t x = 0; x < pixels.count; ++x) {
        copy_row(tile_ + x * tile_pitch, row(line, pixels.begin + x) + channel, channels);
      }
      return;
    }
    for (int64_t x = 0; x < pixels.count; ++x) {
      copy_row(row(line, pixels.begin + x) + channel, tile_ + x * tile_pitch, channels);
    }
    if (map.stride_pixel != 1) {
      store_rows(tile_, tile_pitch, pixels.count, channels, place, map.stride_pixel);
      return;
    }
    pack(Matrix<float>{tile_, channels, pixels.count, 1, tile_pitch}, turned_, block);
    store_rows(turned_, block, channels, pixels.count, place, map.stride_channel);
  }

  static void copy_row(const float* from, float* to, int64_t channels) {
    for (int64_t c = 0; c < channels; c += lanes) {
      store(to + c, load<vfloat>(from + c));
    }
  }

  static void store_rows(const float* from, int64_t pitch, int64_t count, int64_t width, T* to,
                         int64_t stride) {
    for (int64_t i = 0; i < count; ++i, from += pitch, to += stride) {
      for (int64_t x = 0; x < width; x += lanes) {
        store_some(to + x, load<vfloat>(from + x), width - x);
      }
    }
  }

  const SlabCopy& copy_;
  Scratch scratch_;
  float* tile_;    // [block, tile_pitch]
  float* turned_;  // [slice, block]
};

// The sets of one image in row `down` of sets.
class Slab {
 public:
  Slab(const PixelSets& sets, int64_t image, int64_t down)
      : sets_(sets), image_(image), down_(down) {}

  static int64_t pixels(const PixelSets& sets) { return sets.across * sets.pixels(); }
  static int64_t size(const PixelSets& sets, const Map& map) {  // floats
    return pixels(sets) * row_pitch(map.channels);
  }

  // How the sets lie in copies.
  PixelSets sets() const {
    const int64_t count = sets_.pixels();
    return {1, sets_.across, 1, count, 0, count, 0, 1};
  }

  Map copy_of(const Map& map, float* rows) const {
    const int64_t pitch = row_pitch(map.channels);
    return {rows, DType::float32, 1, map.channels, pixels(sets_), 0, 1, pitch};
  }

  Map load(const Map& map, float* rows) {
    copy(map, rows, false);
    return copy_of(map, rows);
  }

  void store(const Map& copy_of_map, const Map& map) { copy(map, (float*)copy_of_map.data, true); }

  void load_statistics(const Attention& call, float* statistics) const {
    for (int64_t i = 0; i < 2; ++i) {
      std::memcpy(statistics + i * pixels(sets_), statistics_of(call, i), bytes());
    }
  }

  void store_statistics(const float* statistics, const Attention& call) const {
    for (int64_t i = 0; i < 2; ++i) {
      std::memcpy(statistics_of(call, i), statistics + i * pixels(sets_), bytes());
    }
  }

  bool failed() const { return failed_; }

 private:
  void copy(const Map& map, float* rows, bool back) {
    SlabCopy copy{map, sets_, map.dtype, image_, down_, rows, back};
    const int64_t width = sets_.across * sets_.columns;
    const auto run = [](auto& worker, SlabCopy&, int64_t begin, int64_t end) {
      worker.run(begin, end);
    };
    run_workers<SlabCopier>(sets_.lines * parts_of(width, block), copy, run);
    failed_ |= copy.failed != 0;
  }

  float* statistics_of(const Attention& call, int64_t index) const {
    const int64_t row = (index * call.query.batch + image_) * sets_.down + down_;
    return call.statistics + row * pixels(sets_);
  }

  int64_t bytes() const { return pixels(sets_) * (int64_t)sizeof(float); }

  const PixelSets& sets_;
  int64_t image_, down_;
  bool failed_ = false;
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

// Calls visit(slab) for each of them until it returns false or memory is lacking.
template <typename Visit>
bool for_each_slab(const Attention& call, const Visit& visit) {
  for (int64_t i = 0; i < call.query.batch * call.sets.down; ++i) {
    Slab slab(call.sets, i / call.sets.down, i % call.sets.down);
    if (!visit(slab) || slab.failed()) {
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace openseg::OPENSEG_ISA
