// SPDX-License-Identifier: MIT
// The pixels of a set as rows, and products of them, for csrc/common/cpu alone.
//
// A block of pixels is gathered into scratch as rows [pixels, channels], from any layout and dtype:
// of floats, or of bfloat16 where the processor multiplies pairs of them. Rows are the left factor
// of a sum over channels; for the right one they are turned into panels [panel, channels, pixels
// of the panel]. The factors of a sum over pixels are rows of words: of floats they are the same
// rows, of pairs there is a row for two pixels.
#pragma once

#include "common/attention.h"
#include "common/parallel.h"
#include "common/regions.h"

namespace openseg::OPENSEG_ISA {
namespace {

constexpr int64_t most_block = 320;     // pixels that meet as many others at a time
constexpr float lowest = -__FLT_MAX__;  // a maximum of nothing: exp(lowest - x) is 0, not NaN

// Pitches are 16 floats more than they hold: at a power of two, rows would push each other out.
constexpr int64_t score_pitch = most_block + 16;
constexpr int64_t scores_size = most_block * score_pitch;
static_assert(most_block % panel == 0);

inline int64_t row_pitch(int64_t channels) {
  return round_up(channels, panel) + 16;
}

// Of rows as the left factor of a sum over channels, in words.
template <typename Word>
int64_t left_pitch(int64_t channels) {
  return row_pitch(words<Word>(channels));
}

// exp, as exact as the products of these words need weights.
template <typename Word>
inline vfloat weight_of(vfloat score) {
#if defined(OPENSEG_TILES)
  if constexpr (in_tiles<Word>) {
    return exp_coarse(score);
  }
#endif
  return exp(score);
}

struct Range {
  int64_t begin, count;
};

// Part `index` of `parts` of 0..total, all of nearly one size, each a multiple of `unit` but the
// last.
inline Range part(int64_t total, int64_t parts, int64_t index, int64_t unit = 1) {
  const int64_t units = (total + unit - 1) / unit;
  const int64_t begin = index * units / parts * unit, end = (index + 1) * units / parts * unit;
  return {begin, (end < total ? end : total) - begin};
}

inline int64_t parts_of(int64_t total, int64_t most) {
  return (total + most - 1) / most;
}

// Blocks of a set in the passes that visit pairs of them: one, or an even number, of most_block
// pixels at most. It depends on nothing but the size, as then do the results.
inline int64_t blocks_of(int64_t pixels) {
  if (pixels <= most_block) {
    return 1;
  }
  int64_t blocks = 2;
  while (blocks < 32 && pixels / blocks >= 256) {
    blocks *= 2;
  }
  const int64_t needed = parts_of(pixels, most_block);
  return needed <= blocks ? blocks : round_up(needed, 32);
}

// Calls visit(first, stride, count, at) for the pixels begin..begin+count of a set, line by line:
// the place of the run's first pixel in the map and its stride, in elements, and its first row.
template <typename Visit>
void for_each_run(const Map& map, const PixelSets& sets, int64_t set, Range pixels,
                  const Visit& visit) {
  const int64_t image = set / sets.count(), place = set % sets.count();
  const int64_t origin =
      place / sets.across * sets.stride_down + place % sets.across * sets.stride_across;
  for (int64_t at = 0; at < pixels.count;) {
    const int64_t line = (pixels.begin + at) / sets.columns;
    const int64_t column = (pixels.begin + at) % sets.columns;
    const int64_t left = sets.columns - column, wanted = pixels.count - at;
    const int64_t count = left < wanted ? left : wanted;
    const int64_t pixel = origin + line * sets.stride_line + column * sets.stride_column;
    visit(image * map.stride_batch + pixel * map.stride_pixel,
          sets.stride_column * map.stride_pixel, count, at);
    at += count;
  }
}

// Pixels whose channels are whole panels.
inline void copy_rows(const bfloat16* from, int64_t stride, int64_t count, int64_t channels,
                      int64_t later, bfloat16* to, int64_t pitch) {
  for (int64_t x = 0; x < count; ++x, from += stride, to += pitch) {
    for (int64_t c = 0; c < channels; c += panel) {
      __builtin_prefetch(from + later + c);
      store(to + c, load<vint>(from + c));
    }
  }
}

// Pixels of a set to rows at left_pitch(channels), with zeros up to a whole panel of channels.
template <typename T, typename Word>
void gather(const Map& map, const PixelSets& sets, int64_t set, Range pixels, Word* rows) {
  using Element = typename ElementFor<Word>::type;
  const int64_t pitch = left_pitch<Word>(map.channels);
  const bool neighbours = map.stride_channel == 1;
  const int64_t later = sets.lines > 1 ? sets.stride_line : ahead * sets.stride_column;
  for_each_run(map, sets, set, pixels,
               [&](int64_t first, int64_t stride, int64_t count, int64_t at) {
                 const T* from = (const T*)map.data + first;
                 Word* to = rows + at * pitch;
                 if (per_word<Word> == 1 && stride == 1 && !neighbours) {
                   return pack(Matrix<T>{from, count, map.channels, 1, map.stride_channel,
                                         ahead * map.stride_channel},
                               to, pitch);
                 }
                 if constexpr (per_word<Word> == 2 && sizeof(T) == sizeof(Element)) {
                   if (neighbours && map.channels % panel == 0) {
                     return copy_rows(from, stride, count, map.channels, later * map.stride_pixel,
                                      (Element*)to, pitch * 2);
                   }
                 }
                 if constexpr (per_word<Word> == 2) {
                   if (stride == 1 && at + round_up(count, panel) <= most_block) {
                     return pack_left(Matrix<T>{from, map.channels, count, map.stride_channel, 1,
                                                ahead * map.stride_channel},
                                      (TilePair*)to, pitch);
                   }
                 }
                 // a channel at a time where sets do not fill their lines: see
                 // common/pixel_slabs.h for those that do
                 for (int64_t x = 0; x < count; ++x, from += stride, to += pitch) {
                   const T* const next = neighbours ? from + later * map.stride_pixel : from;
                   for (int64_t c = 0; c < round_up(map.channels, panel); c += lanes) {
                     __builtin_prefetch(next + c);
                     store_float((Element*)to + c, channels_of(map, from, c));
                   }
                 }
               });
}

// The same, without a copy where they lie so already.
template <typename T, typename Word>
const Word* rows_of(const Map& map, const PixelSets& sets, int64_t set, Range pixels,
                    Word* memory) {
  if (sizeof(T) == sizeof(float) && sets.lines == 1 && sets.stride_column == 1 &&
      map.stride_channel == 1 && map.stride_pixel == row_pitch(map.channels) &&
      map.channels % panel == 0) {
    const Word* rows = nullptr;
    for_each_run(map, sets, set, pixels, [&](int64_t first, int64_t, int64_t, int64_t) {
      rows = (const Word*)map.data + first;
    });
    return rows;
  }
  gather<T>(map, sets, set, pixels, memory);
  return memory;
}

// Rows, each times its factor if there are any, to the pixels of a set.
template <typename T>
void scatter(const float* rows, const Map& map, const PixelSets& sets, int64_t set, Range pixels,
             const float* factors = nullptr) {
  const int64_t pitch = row_pitch(map.channels), channel = map.stride_channel;
  const bool streamed = channel == 1 && is_large<T>(map) && begins_lines<T>(map);
  for_each_run(map, sets, set, pixels,
               [&](int64_t first, int64_t stride, int64_t count, int64_t at) {
                 T* to = (T*)map.data + first;
                 const float* row = rows + at * pitch;
                 for (int64_t x = 0; x < count; ++x, to += stride, row += pitch) {
                   const float factor = factors ? factors[at + x] : 1;
                   for (int64_t c = 0; c < map.channels; c += lanes) {
                     const vfloat values = load<vfloat>(row + c) * factor;
                     const int64_t left = map.channels - c;
                     if (streamed && left >= lanes) {
                       stream_float(to + c, values);
                     } else if (channel == 1) {
                       store_some(to + c, values, left);
                     } else {
                       T copy[lanes];
                       store_float(copy, values);
                       for (int64_t lane = 0; lane < lanes && lane < left; ++lane) {
                         to[(c + lane) * channel] = copy[lane];
                       }
                     }
                   }
                 }
               });
}

// Rows as the right factor of `scores_of`.
template <typename Word>
void turn(const Word* rows, int64_t count, int64_t channels, Word* panels) {
  using Element = typename ElementFor<Word>::type;
  const int64_t pitch = left_pitch<Word>(channels) * per_word<Word>;
  pack(Matrix<Element>{(const Element*)rows, channels, count, 1, pitch}, panels, panel,
       words<Word>(channels) * panel);
}

// The same of pixels of a map: by way of rows in `memory` unless they lie side by side in one line,
// or their channels do and fill words.
template <typename T, typename Word>
void turn_pixels(const Map& map, const PixelSets& sets, int64_t set, Range pixels, Word* memory,
                 Word* panels) {
  constexpr int run = 4 * per_word<Word>;
  if (map.stride_channel != 1 && sets.lines == 1 && sets.stride_column * map.stride_pixel == 1) {
    for_each_run(map, sets, set, pixels, [&](int64_t first, int64_t, int64_t count, int64_t) {
      pack(Matrix<T>{(const T*)map.data + first, map.channels, count, map.stride_channel, 1,
                     ahead * map.stride_channel},
           panels, panel, words<Word>(map.channels) * panel);
    });
    return;
  }
  const bool fill = map.channels % (in_tiles<Word> ? panel : run) == 0;
  if (map.stride_channel != 1 || !fill) {
    return turn(rows_of<T>(map, sets, set, pixels, memory), pixels.count, map.channels, panels);
  }
  const T* starts[most_block];
  for_each_run(map, sets, set, pixels,
               [&](int64_t first, int64_t stride, int64_t count, int64_t at) {
                 for (int64_t x = 0; x < count; ++x) {
                   starts[at + x] = (const T*)map.data + first + x * stride;
                 }
               });
  const int64_t panel_pitch = words<Word>(map.channels) * panel;
  for (int64_t x = pixels.count; x < round_up(pixels.count, panel); ++x) {
    starts[x] = starts[0];  // nobody reads the scores that come of it
  }
  for (int64_t x = 0; x < round_up(pixels.count, panel); x += lanes) {
    Word* to = panels + x / panel * panel_pitch + x % panel;
    for (int64_t c = 0; c < map.channels; c += run) {
      vfloat turned[4];
      turn_quads<Word>(starts + x, c, turned);
      for (int i = 0; i < 4; ++i, to += panel) {
        store(to, turned[i]);
      }
    }
  }
}

template <typename Word>
int64_t turned_size(int64_t count, int64_t channels) {
  return round_up(count, panel) * words<Word>(channels);
}

// Rows as the right factor of a sum over them, in `memory` unless they are it already.
template <typename Word>
const Word* paired(const Word* rows, int64_t count, int64_t channels, Word* memory) {
  if constexpr (per_word<Word> == 1) {
    return rows;
  } else {
    const int64_t pitch = left_pitch<Word>(channels) * per_word<Word>;
    pack(Matrix<bfloat16>{(const bfloat16*)rows, count, channels, pitch, 1}, memory,
         row_pitch(channels));
    return memory;
  }
}

// The same of pixels of a map: by way of rows in `row_memory` unless they lie in one line.
template <typename T, typename Word>
const Word* paired_pixels(const Map& map, const PixelSets& sets, int64_t set, Range pixels,
                          Word* row_memory, Word* memory) {
  if constexpr (per_word<Word> == 2) {
    const int64_t stride = sets.stride_column * map.stride_pixel;
    if (sets.lines == 1 && (map.stride_channel == 1 || stride == 1)) {
      for_each_run(map, sets, set, pixels, [&](int64_t first, int64_t, int64_t count, int64_t) {
        pack(Matrix<T>{(const T*)map.data + first, count, map.channels, stride, map.stride_channel},
             memory, row_pitch(map.channels));
      });
      return memory;
    }
  }
  return paired(rows_of<T>(map, sets, set, pixels, row_memory), pixels.count, map.channels, memory);
}

template <typename Word>
int64_t paired_size(int64_t count, int64_t channels) {
  return per_word<Word> == 1 ? 0 : words<Word>(count) * row_pitch(channels);
}

// Pixels that will be gathered next: they are fetched into the second cache between the tiles of
// products, a run of lines at a time, for memory to be read while the processor multiplies.
class Upcoming {
 public:
  void clear() { rows_ = at_ = offset_ = 0; }

  template <typename T>
  void add(const Map& map, const PixelSets& sets, int64_t set, Range pixels) {
    if (map.stride_channel != 1) {
      return;
    }
    for_each_run(map, sets, set, pixels,
                 [&](int64_t first, int64_t stride, int64_t count, int64_t) {
                   const T* row = (const T*)map.data + first;
                   for (int64_t x = 0; x < count && rows_ < most_rows; ++x, row += stride) {
                     starts_[rows_] = (const char*)row;
                     bytes_[rows_++] = map.channels * (int64_t)sizeof(T);
                   }
                 });
  }

  // To fetch what lies behind the end of a row does no harm.
  void fetch() {
    if (at_ < rows_) {
      const char* const from = starts_[at_] + offset_;
#pragma GCC unroll 16
      for (int i = 0; i < lines_at_once; ++i) {
        __builtin_prefetch(from + i * line_bytes, 0, 2);
      }
      offset_ += lines_at_once * line_bytes;
      if (offset_ >= bytes_[at_]) {
        offset_ = 0;
        ++at_;
      }
    }
  }

 private:
  static constexpr int lines_at_once = 16;
  static constexpr int64_t most_rows = 4 * most_block;  // more are not fetched early

  const char* starts_[most_rows];
  int64_t bytes_[most_rows];
  int64_t rows_ = 0, at_ = 0, offset_ = 0;
};

// Pairs of weights, as `add_rows` and `add_columns` make them.
template <typename Word>
constexpr int64_t weights_pitch = in_tiles<Word> ? most_block / 2 + 16 : score_pitch;
template <typename Word>
constexpr int64_t weights_size =
    per_word<Word> == 1 ? 0 : weights_pitch<Word> * (in_tiles<Word> ? most_block : most_block / 2);

// `multiply` for a left factor that is larger than a panel of the right one, which stays in the
// nearest cache.
template <Rows lie, typename Word>
void multiply_panels(const Operands<Word>& in, int64_t rows, int64_t columns, float* out,
                     int64_t stride, Upcoming& upcoming) {
  const int64_t tiles = parts_of(rows, most_rows);
  Operands<Word> of_tile = in;
  for (int64_t x = 0; x < columns; x += panel, of_tile.b += in.panel_pitch) {
    for (int64_t t = 0; t < tiles; ++t) {
      const Range range = part(rows, tiles, t);
      of_tile.a = in.a + range.begin * (lie == Rows::adjacent ? 1 : in.pitch_a);
      upcoming.fetch();
      float* const to = out + range.begin * stride + x;
      if (columns - x > lanes) {
        tile_of<most_rows, Into::add, lie>(range.count, of_tile, to, stride, panel);
      } else {
        tile_of<most_rows, Into::add, lie, 1>(range.count, of_tile, to, stride, lanes);
      }
    }
  }
}

#if defined(OPENSEG_TILES)
template <Rows>
void multiply_panels(const Operands<TilePair>& in, int64_t rows, int64_t columns, float* out,
                     int64_t stride, Upcoming& upcoming) {
  Operands<TilePair> part = in;
  for (int64_t m = 0; m < rows; m += tile_rows, part.a += tile_rows * in.pitch_a) {
    part.b = in.b;
    for (int64_t x = 0; x < columns; x += panel, part.b += in.panel_pitch) {
      upcoming.fetch();
      const int64_t left = rows - m;
      multiply_panel<Into::add>(part, left < tile_rows ? left : tile_rows, columns - x,
                                out + m * stride + x, stride);
    }
  }
}
#endif

// scores[i, j] = Σ_c rows[i, c] · turned[j, c], whole panels of j. A slice of channels has a sum of
// its own: in one long sum of squares, that of a pixel with itself, the rounding errors grow.
template <typename Word>
void scores_of(const Word* rows, int64_t count, int64_t channels, const Word* turned, int64_t width,
               float* scores, Upcoming& upcoming) {
  const int64_t depth = words<Word>(channels), step = in_tiles<Word> ? depth : slice;
  for (int64_t c = 0; c < depth; c += step) {
    Operands<Word> in{rows + c,      left_pitch<Word>(channels),         turned + c * panel, panel,
                      depth * panel, depth - c < step ? depth - c : step};
    in.fresh = c == 0;
    multiply_panels<Rows::apart>(in, count, width, scores, score_pitch, upcoming);
  }
}

// out[i, c] += Σ_j weights[i, j] · rows[j, c], for i below `count` and j below `depth`; `fresh`:
// = in place of +=
template <typename Word>
void add_rows(bool fresh, const float* weights, int64_t count, const Word* rows, int64_t depth,
              int64_t channels, float* out, Word* memory, Upcoming& upcoming) {
  const int64_t pitch = row_pitch(channels);
  if constexpr (per_word<Word> == 1) {
    const Operands<Word> in{weights, score_pitch, rows, pitch, panel, depth, 0, fresh};
    multiply_panels<Rows::apart>(in, count, channels, out, pitch, upcoming);
  } else {
    pack_left(Matrix<float>{weights, depth, count, 1, score_pitch}, memory, weights_pitch<Word>);
    const Operands<Word> in{memory, weights_pitch<Word>, rows, pitch,
                            panel,  words<Word>(depth),  0,    fresh};
    multiply_panels<Rows::adjacent>(in, count, channels, out, pitch, upcoming);
  }
}

#if defined(OPENSEG_TILES)
// The same with weights that are a left factor already.
inline void add_rows(bool fresh, const bfloat16* weights, int64_t count, const TilePair* rows,
                     int64_t depth, int64_t channels, float* out, TilePair*, Upcoming& upcoming) {
  const int64_t pitch = row_pitch(channels);
  const Operands<TilePair> in{(const TilePair*)weights,
                              weights_pitch<TilePair>,
                              rows,
                              pitch,
                              panel,
                              words<TilePair>(depth),
                              0,
                              fresh};
  multiply_panels<Rows::apart>(in, count, channels, out, pitch, upcoming);
}
#endif

// out[j, c] += Σ_i weights[i, j] · rows[i, c], for j below `count` and i below `depth`
template <typename Word>
void add_columns(bool fresh, const float* weights, int64_t count, const Word* rows, int64_t depth,
                 int64_t channels, float* out, Word* memory, Upcoming& upcoming) {
  const int64_t pitch = row_pitch(channels);
  const Word* left = memory;
  if constexpr (per_word<Word> == 1) {
    left = weights;
  } else {
    pack_left(Matrix<float>{weights, depth, count, score_pitch, 1}, memory, weights_pitch<Word>);
  }
  const Operands<Word> in{left,  weights_pitch<Word>, rows, pitch,
                          panel, words<Word>(depth),  0,    fresh};
  multiply_panels<Rows::adjacent>(in, count, channels, out, pitch, upcoming);
}

// Pairs of blocks of a set in rounds 0..blocks-1, each once and no block twice in a round, so that
// what is summed for a block has one order. Of a pair with itself and an even number of blocks, it
// stands for the one blocks / 2 before as well, to make blocks / 2 tasks of a round.
struct BlockPair {
  int64_t a, b;
};

inline BlockPair pair_of(int64_t round, int64_t task, int64_t blocks) {
  const int64_t before = (round + 1) / 2;
  if (task < before) {
    return {task, round - task};
  }
  const int64_t a = round + 1 + task - before;
  return {a, blocks + round - a};
}

// Work{}(worker, context, begin, end) in pieces of 0..count, each with a Worker of its own.
template <template <typename, typename> class Worker, typename Context, typename Work>
void run_workers(int64_t count, Context& context, Work) {
  run_parallel(
      count, 1,
      [](int64_t begin, int64_t end, void* pointer) {
        Context& context = *(Context*)pointer;
        OPENSEG_DISPATCH_WORDS(context.dtype, {
          Worker<scalar_t, word_t> worker(context);
          if (worker) {
            Work{}(worker, context, begin, end);
          } else {
            __atomic_store_n(&context.failed, 1, __ATOMIC_RELAXED);
          }
        })
      },
      &context);
}

}  // namespace
}  // namespace openseg::OPENSEG_ISA
