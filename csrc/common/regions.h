// SPDX-License-Identifier: MIT
// Products of region tensors with maps, for csrc/<op>/cpu/*.cpp alone.
#pragma once

#include "common/few_regions.h"

namespace openseg::OPENSEG_ISA {
namespace {

// Words of a reduction over channels at once: tiles read and write sums in memory.
template <typename Word>
constexpr int64_t slice_of = in_tiles<Word> ? 2 * slice : slice;

// [K, C] vectors of one image as a factor from the left, [C, K] words, for `project`.
template <typename Word>
struct Projection {
  Word* data;
  int64_t regions, channels, pitch;
  RegionRows<Word> rows;  // the same for maps that lie in rows

  Projection(Scratch& scratch, int64_t regions, int64_t channels)
      : data(scratch.take<Word>(size(regions, channels))),
        regions(regions),
        channels(channels),
        pitch(factor_pitch<Word>(channels, regions)),
        rows(scratch, regions, channels) {}

  static int64_t size(int64_t regions, int64_t channels) {
    return words<Word>(channels) * round_up(regions, panel);
  }

  static int64_t bytes(int64_t regions, int64_t channels) {
    return size(regions, channels) * (int64_t)sizeof(Word) + 64 +
           RegionRows<Word>::bytes(regions, channels);
  }

  template <typename T>
  void load_image(const Map& vectors, int64_t image) {
    pack_left(image_of<T>(vectors, image), data, pitch);
    rows.template load_image<T>(vectors, image);
  }

  // scores[k, n] = Σ_c vectors[k, c] · map[c, n] at a pitch of `block`, for up to `block` pixels.
  // `packed`: [slice_of<Word>, block] words.
  template <typename T>
  void project(const Matrix<T>& map, Word* packed, float* scores) const {
    if constexpr (has_words<Word, T>) {
      if (lies_in_rows<Word>(map, regions)) {
        return rows.project(map, scores);
      }
    }
    constexpr int64_t step = slice_of<Word> * per_word<Word>;
    const int64_t columns = round_up(map.columns, panel);
    for (int64_t c = 0; c < channels; c += step) {
      Matrix<T> part = map;
      part.data += c * map.stride_row;
      part.rows = channels - c < step ? channels - c : step;
      pack(part, packed, panel, slice_of<Word> * panel);
      Operands<Word> in{from_row(data, c / per_word<Word>, pitch),
                        pitch,
                        packed,
                        panel,
                        slice_of<Word> * panel,
                        words<Word>(part.rows)};
      in.fresh = c == 0;
      multiply<Into::add>(in, regions, columns, scores, block);
    }
  }
};

// [K, C] vectors of one image as the other factor, for `expand`.
template <typename Word>
struct Expansion {
  Word *data, *left;  // as the right factor and as the left one
  int64_t regions, channels, pitch, pitch_left;

  Expansion(Scratch& scratch, int64_t regions, int64_t channels)
      : data(scratch.take<Word>(size(regions, channels))),
        left(in_tiles<Word> ? scratch.take<Word>(size(regions, channels)) : data),
        regions(regions),
        channels(channels),
        pitch(round_up(channels, panel)),
        pitch_left(factor_pitch<Word>(regions, channels)) {}

  static int64_t size(int64_t regions, int64_t channels) {
    return words<Word>(regions) * round_up(channels, panel);
  }

  static int64_t bytes(int64_t regions, int64_t channels) {
    return (in_tiles<Word> ? 2 : 1) * size(regions, channels) * (int64_t)sizeof(Word) + 64;
  }

  template <typename T>
  void load_image(const Map& vectors, int64_t image) {
    pack(image_of<T>(vectors, image).transposed(), data, pitch);
    if (left != data) {
      pack_left(image_of<T>(vectors, image).transposed(), left, pitch_left);
    }
  }

  // map[c, n] = Σ_k weights[k, n] · vectors[k, c] for n = pixel..pixel+count of an image.
  // `packed`: [K, block] words.
  template <typename T>
  void expand(const float* weights, Word* packed, const Map& map, int64_t image, int64_t pixel,
              int64_t count) const {
    if (panel * sizeof(T) % line_bytes == 0 && is_large<T>(map) && begins_lines<T>(map)) {
      expand<Into::stream>(weights, packed, pixels_of<T>(map, image, pixel, count));
    } else {
      expand<Into::set>(weights, packed, pixels_of<T>(map, image, pixel, count));
    }
  }

 private:
  template <Into into, typename T>
  void expand(const float* weights, Word* packed, const Matrix<T>& map) const {
    const int64_t depth = words<Word>(regions);
    const Matrix<float> factors{weights, regions, map.columns, block, 1};
    T* const out = (T*)map.data;
    if (map.stride_column == 1) {
      pack(factors, packed, block);
      const Operands<Word> in{left, pitch_left, packed, block, panel, depth};
      multiply<into>(in, channels, map.columns, out, map.stride_row);
    } else {
      const int64_t pitch_packed = factor_pitch<Word>(regions, block);
      pack_left(factors, packed, pitch_packed);
      const Operands<Word> in{packed, pitch_packed, data, pitch, panel, depth};
      multiply<into>(in, map.columns, channels, out, map.stride_column);
    }
  }
};

// Sums over the pixels of a map, [K, C] at a pitch of round_up(C, panel).
template <typename Word>
struct Reduction {
  // Words and pixels that are multiplied at once: a few blocks, for sums to be read and written
  // less often than each.
  static constexpr int64_t depth = 2 * slice;
  static constexpr int64_t together = depth * per_word<Word>;
  static_assert(together % block == 0 && chunk % together == 0);

  int64_t regions, pitch, width;
  Word *packed, *piece;  // weights, [depth, pitch]; so many channels of the map, [depth, width]

  Reduction(Scratch& scratch, int64_t regions, int64_t channels)
      : regions(regions),
        pitch(factor_pitch<Word>(together, regions)),
        width(width_of(channels)),
        packed(scratch.take<Word>(depth * round_up(regions, panel))),
        piece(scratch.take<Word>(depth * width)) {}

  static int64_t bytes(int64_t regions, int64_t channels) {
    return depth * (round_up(regions, panel) + width_of(channels)) * (int64_t)sizeof(Word);
  }

  // A panel, or all of them where products take less time than to gather a panel from memory.
  static int64_t width_of(int64_t channels) {
    return in_tiles<Word> ? round_up(channels, panel) + 16 : panel;
  }

  // sums[k, c] += Σ_n weights[k, n] · map[c, n] for the pixels n = pixel..pixel+count. Blocks of an
  // image come in order; sums are complete behind a chunk and behind the last pixel.
  template <typename T>
  void add(const float* weights, const Map& map, int64_t image, int64_t pixel, int64_t count,
           float* sums) const {
    if constexpr (has_words<Word, T>) {
      const Matrix<T> rows = pixels_of<T>(map, image, pixel, count);
      if (lies_in_rows<Word>(rows, regions)) {
        return reduce_rows(weights, regions, rows, packed, sums);
      }
    }
    const int64_t before = pixel % together / per_word<Word>, end = pixel + count;
    pack_left(Matrix<float>{weights, count, regions, 1, block}, from_row(packed, before, pitch),
              pitch);
    if (end % together == 0 || end == map.pixels) {
      const int64_t first = pixel - pixel % together;
      multiply_all(pixels_of<T>(map, image, first, end - first), sums);
    }
  }

 private:
  // The pixels whose weights are packed. The next panel is fetched along with each.
  template <typename T>
  void multiply_all(const Matrix<T>& map, float* sums) const {
    const int64_t depth = words<Word>(map.columns), pitch_sums = round_up(map.rows, panel);
    if (in_tiles<Word>) {
      const int64_t later = map.stride_row == 1 ? ahead * map.stride_column : map.later;
      pack(Matrix<T>{map.data, map.columns, map.rows, map.stride_column, map.stride_row, later},
           piece, width);
      const Operands<Word> in{packed, pitch, piece, width, panel, depth};
      return multiply<Into::add>(in, regions, map.rows, sums, pitch_sums);
    }
    for (int64_t c = 0; c < map.rows; c += panel) {
      const int64_t width = map.rows - c < panel ? map.rows - c : panel;
      const T* const from = map.data + c * map.stride_row;
      const int64_t next = c + panel < map.rows ? panel : together * map.stride_column - c;
      const int64_t later = map.stride_row == 1 ? next : map.later;
      pack(Matrix<T>{from, map.columns, width, map.stride_column, map.stride_row, later}, piece,
           panel);
      const Operands<Word> in{packed, pitch, piece, panel, 0, depth};
      multiply<Into::add>(in, regions, panel, sums + c, pitch_sums);
    }
  }
};

// What `packed` has to hold in words for `project` and `expand`, with room for [block,
// round_up(regions, panel)].
template <typename Word>
int64_t packed_words(int64_t regions) {
  const int64_t pitch = round_up(regions, panel);
  return block * (pitch > slice_of<Word> ? pitch : slice_of<Word>);
}

}  // namespace
}  // namespace openseg::OPENSEG_ISA
