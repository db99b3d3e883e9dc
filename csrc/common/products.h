// SPDX-License-Identifier: MIT
// One small matrix product, out[m, n] = Σ_r a[r, m] · b[r, n], with n on the lanes of vectors, for
// csrc/<op>/cpu/*.cpp alone.
//
// `pack` brings any operand, of either layout and every dtype, into the form that it reads. Its
// unit of reduction is a word: one float or, on processors that multiply and add two bfloat16 at
// once, a pair of them.
#pragma once

#include "common/stream.h"

namespace openseg::OPENSEG_ISA {
namespace {

constexpr int panel = 2 * lanes;                 // columns of one tile of a product
constexpr int most_rows = lanes == 16 ? 12 : 6;  // two accumulators a row: all registers but a few
constexpr int64_t block = 64;                    // pixels that are worked on together
constexpr int64_t slice = 64;                    // words of a long reduction that stay in L1
constexpr int ahead = 16;                        // rows or columns that are fetched early
constexpr int64_t chunk = 1024;                  // pixels with a partial sum of their own
static_assert(block % panel == 0 && chunk % block == 0);

// Two bfloat16 of neighbouring rows of a reduction, the first in the low half.
struct Pair {
  uint32_t bits;
};

// The same for products on tiles, see common/tiles.h.
struct TilePair {
  uint32_t bits;
};

template <typename T>
struct WordFor {
  using type = float;
};

#if defined(__AVX512BF16__)
template <>
struct WordFor<bfloat16> {
  using type = Pair;
};
#endif

template <typename Word>
constexpr int per_word = 1;
template <>
constexpr int per_word<Pair> = 2;
template <>
constexpr int per_word<TilePair> = 2;

template <typename Word>
constexpr bool in_tiles = false;
template <>
constexpr bool in_tiles<TilePair> = true;

template <typename Word>
struct ElementFor {
  using type = float;
};
template <>
struct ElementFor<Pair> {
  using type = bfloat16;
};
template <>
struct ElementFor<TilePair> {
  using type = bfloat16;
};

constexpr int64_t tile_side = 16;  // rows of a tile, and words of a row

// Words that elements fill, and those of a reduction over them: tiles take 16 at a time, zeros at
// the end.
template <typename Word>
constexpr int64_t filled_words(int64_t elements) {
  return (elements + per_word<Word> - 1) / per_word<Word>;
}
template <typename Word>
constexpr int64_t words(int64_t elements) {
  return round_up(filled_words<Word>(elements), in_tiles<Word> ? tile_side : 1);
}

// An operand: rows are reduced over. One of the strides, in elements, is 1.
template <typename T>
struct Matrix {
  const T* data;
  int64_t rows, columns, stride_row, stride_column;
  int64_t later = 0;  // from here to what is wanted after it, fetched early; 0: nothing

  Matrix transposed() const { return {data, columns, rows, stride_column, stride_row}; }
};

// Pixels begin..begin+count of one image of a map, as [channels, pixels].
template <typename T>
Matrix<T> pixels_of(const Map& map, int64_t image, int64_t begin, int64_t count) {
  const T* data = (const T*)map.data + image * map.stride_batch + begin * map.stride_pixel;
  return {data,
          map.channels,
          count,
          map.stride_channel,
          map.stride_pixel,
          map.stride_channel == 1 ? block * map.stride_pixel : ahead * map.stride_channel};
}

// Channels c.. of a pixel, zeros beyond the last.
template <typename T>
inline vfloat channels_of(const Map& map, const T* pixel, int64_t c) {
  const int64_t left = map.channels - c;
  if (map.stride_channel == 1) {
    return load_some(pixel + c, left);
  }
  T copy[lanes] = {};
  for (int64_t lane = 0; lane < lanes && lane < left; ++lane) {
    copy[lane] = pixel[(c + lane) * map.stride_channel];
  }
  return load_float(copy);
}

template <typename T>
Matrix<T> image_of(const Map& map, int64_t image) {
  return pixels_of<T>(map, image, 0, map.pixels);
}

#if defined(__AVX512BF16__)
inline __m128 four_pairs(const bfloat16* from) {
  return _mm_loadu_ps((const float*)from);
}

inline __m128 four_pairs(const float* from) {
  return (__m128)_mm256_cvtneps_pbh(_mm256_loadu_ps(from));
}

// A vector of bfloat16 from each of two rows, one after the other.
inline __m512i both_rows(const bfloat16* first, const bfloat16* second) {
  const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)first));
  return _mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i*)second), 1);
}

inline __m512i both_rows(const float* first, const float* second) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(second), _mm512_loadu_ps(first));
}
#endif

inline __m128 four_floats(const float* from) {
  return _mm_loadu_ps(from);
}

inline __m128 four_floats(const bfloat16* from) {
  return (__m128)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i*)from));
}

inline __m128 four_floats(const float16* from) {
  float16 copy[lanes] = {};
  std::memcpy((void*)copy, (const void*)from, 4 * sizeof(float16));
  const vfloat wide = load_float(copy);
  return load<__m128>((const float*)&wide);
}

// Four words from elements side by side.
template <typename Word, typename T>
inline __m128 quad(const T* from) {
#if defined(__AVX512BF16__)
  if constexpr (per_word<Word> == 2) {
    return four_pairs(from);
  } else
#endif
    return four_floats(from);
}

// Four words of every fourth of as many lines as there are lanes.
template <typename Word, typename T>
inline vfloat quads(const T* const* lines, int64_t at) {
#if defined(__AVX512F__)
  __m512 all = _mm512_castps128_ps512(quad<Word>(lines[0] + at));
  all = _mm512_insertf32x4(all, quad<Word>(lines[4] + at), 1);
  all = _mm512_insertf32x4(all, quad<Word>(lines[8] + at), 2);
  return (vfloat)_mm512_insertf32x4(all, quad<Word>(lines[12] + at), 3);
#elif defined(__AVX2__)
  return (vfloat)_mm256_insertf128_ps(_mm256_castps128_ps256(quad<Word>(lines[0] + at)),
                                      quad<Word>(lines[4] + at), 1);
#else
  return (vfloat)quad<Word>(lines[0] + at);
#endif
}

// Words at..at+3 of as many lines as there are lanes, as four rows.
template <typename Word, typename T>
inline void turn_quads(const T* const* lines, int64_t at, vfloat (&rows)[4]) {
  const auto a = quads<Word>(lines, at), b = quads<Word>(lines + 1, at);
  const auto c = quads<Word>(lines + 2, at), d = quads<Word>(lines + 3, at);
  const auto low_ab = OPENSEG_MM(castps_pd)(OPENSEG_MM(unpacklo_ps)(a, b));
  const auto low_cd = OPENSEG_MM(castps_pd)(OPENSEG_MM(unpacklo_ps)(c, d));
  const auto high_ab = OPENSEG_MM(castps_pd)(OPENSEG_MM(unpackhi_ps)(a, b));
  const auto high_cd = OPENSEG_MM(castps_pd)(OPENSEG_MM(unpackhi_ps)(c, d));
  rows[0] = (vfloat)OPENSEG_MM(unpacklo_pd)(low_ab, low_cd);
  rows[1] = (vfloat)OPENSEG_MM(unpackhi_pd)(low_ab, low_cd);
  rows[2] = (vfloat)OPENSEG_MM(unpacklo_pd)(high_ab, high_cd);
  rows[3] = (vfloat)OPENSEG_MM(unpackhi_pd)(high_ab, high_cd);
}

// One word in each lane from two rows of a matrix; a float is of the first row alone.
template <typename Word, typename T>
inline vuint words_of(const T* first, [[maybe_unused]] const T* second) {
#if defined(__AVX512BF16__)
  if constexpr (per_word<Word> == 2) {
    typedef uint16_t Halves __attribute__((vector_size(64)));
    constexpr Halves in_turn = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (vuint)_mm512_permutexvar_epi16((__m512i)in_turn, both_rows(first, second));
  } else
#endif
    return (vuint)load_float(first);
}

// Always inline: gcc takes a call that only fetches for one without effect.
template <typename T>
__attribute__((always_inline)) inline void fetch_panel(const T* row, int64_t later) {
  if (later) {
    for (int64_t x = 0; x < panel; x += 64 / (int64_t)sizeof(T)) {
      __builtin_prefetch(row + later + x);
    }
  }
}

template <typename Word, typename T>
void pack_rows(const Matrix<T>& from, uint32_t* to, int64_t pitch, int64_t panel_pitch) {
  T first_end[lanes], second_end[lanes];
  for (int64_t row = 0; row < from.rows; row += per_word<Word>, to += pitch) {
    const T* const first = from.data + row * from.stride_row;
    const bool paired = row + per_word<Word> <= from.rows;
    const T* const second = first + (paired ? (per_word<Word> - 1) * from.stride_row : 0);
    uint32_t* out = to;
    int64_t x = 0;
    for (; paired && x + panel <= from.columns; x += panel, out += panel_pitch) {
      fetch_panel(first + x, from.later);
      fetch_panel(second + x, per_word<Word> == 1 ? 0 : from.later);
      store(out, words_of<Word>(first + x, second + x));
      store(out + lanes, words_of<Word>(first + x + lanes, second + x + lanes));
    }
    for (; x < from.columns; x += panel, out += panel_pitch) {
      for (int half = 0; half < panel; half += lanes) {
        const int64_t left = from.columns - x - half;
        store(out + half,
              words_of<Word>(padded<lanes>(first + x + half, left, first_end),
                             padded<lanes>(second + x + half, paired ? left : 0, second_end)));
      }
    }
  }
}

template <typename Word, typename T>
void pack_columns(const Matrix<T>& from, uint32_t* to, int64_t pitch, int64_t panel_pitch) {
  constexpr int run = 4 * per_word<Word>;
  const int64_t depth = filled_words<Word>(from.rows);
  T ends[lanes][run];
  for (int64_t x = 0; x < round_up(from.columns, panel); x += lanes) {
    const T* lines[lanes];
    vint keep;
    for (int i = 0; i < lanes; ++i) {
      const bool there = x + i < from.columns;
      lines[i] = from.data + (there ? x + i : 0) * from.stride_column;
      keep[i] = there ? -1 : 0;
    }
    uint32_t* out = to + x / panel * panel_pitch + x % panel;
    vfloat turned[4];
    int64_t row = 0;
    for (; row + run <= from.rows; row += run) {
      for (int i = 0; from.later && i < lanes; i += 4) {
        __builtin_prefetch(lines[i + row / run % 4] + row + from.later);
      }
      turn_quads<Word>(lines, row, turned);
      for (int i = 0; i < 4; ++i, out += pitch) {
        store(out, (vint)turned[i] & keep);
      }
    }
    if (row < from.rows) {
      for (int i = 0; i < lanes; ++i) {
        lines[i] = padded<run>(lines[i] + row, from.rows - row, ends[i]);
      }
      turn_quads<Word>(lines, 0, turned);
      for (int64_t i = 0; row / per_word<Word> + i < depth; ++i, out += pitch) {
        store(out, (vint)turned[i] & keep);
      }
    }
  }
}

// Row r of words of panel p to to[p * panel_pitch + r * pitch]. Whole panels are written, and all
// of words(rows): columns and rows beyond the matrix are zero, and so is the second half of a last
// odd row.
template <typename Word, typename T>
void pack(const Matrix<T>& from, Word* to, int64_t pitch, int64_t panel_pitch = panel) {
  if (from.stride_column == 1) {
    pack_rows<Word>(from, (uint32_t*)to, pitch, panel_pitch);
  } else {
    pack_columns<Word>(from, (uint32_t*)to, pitch, panel_pitch);
  }
  for (int64_t row = filled_words<Word>(from.rows); row < words<Word>(from.rows); ++row) {
    for (int64_t x = 0; x < from.columns; x += panel) {
      std::memset((void*)(to + row * pitch + x / panel * panel_pitch), 0, panel * sizeof(Word));
    }
  }
}

inline vfloat multiply_add(vfloat sum, float a, vfloat b) {
  return sum + a * b;
}

#if defined(__AVX512BF16__)
inline vfloat multiply_add(vfloat sum, Pair a, vfloat b) {
  return (vfloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a.bits),
                                  (__m512bh)b);
}
#endif

// The same with a word in each lane of both.
template <typename Word>
inline vfloat multiply_words(vfloat sum, vfloat a, vfloat b) {
#if defined(__AVX512BF16__)
  if constexpr (per_word<Word> == 2) {
    return (vfloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  } else
#endif
    return sum + a * b;
}

// How rows of a product lie in `a`: side by side, [depth, pitch_a], or apart, [rows, pitch_a].
enum class Rows { adjacent, apart };

template <typename Word>
struct Operands {
  const Word* a;
  int64_t pitch_a;
  const Word* b;  // [panels, depth, pitch_b]
  int64_t pitch_b, panel_pitch;
  int64_t depth;       // words
  int64_t later = 0;   // from a row of b to one that is fetched with it; 0: none
  bool fresh = false;  // nothing is there yet for Into::add to add to
};

// stream: whole panels past the cache, see common/stream.h; add: whole panels of floats.
enum class Into { set, stream, add };

// A half of a row of a panel of sums.
template <Into into, typename Out>
inline void put(Out* row, vfloat sum, int half, int64_t columns, bool fresh) {
  Out* const to = row + half * lanes;
  if (into == Into::add && !fresh) {
    sum += load<vfloat>(to);
  }
  if (into == Into::stream && columns >= panel) {
    stream_float(to, sum);
  } else {
    store_some(to, sum, columns - half * lanes);
  }
}

// `vectors`: 2 are a whole panel; 1, its first half.
template <int rows, Into into, Rows lie, int vectors, typename Word, typename Out>
void tile(const Operands<Word>& in, Out* out, int64_t stride, int64_t columns) {
  constexpr int last = vectors - 1;
  vfloat sums[rows][vectors];  // set one by one, for gcc to see that they never are in memory
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    sums[i][0] = vfloat{};
    sums[i][last] = vfloat{};
  }
  if (into == Into::add && !in.fresh) {
    for (int i = 0; i < rows; ++i) {
      __builtin_prefetch(out + i * stride);  // they are needed at the end
      __builtin_prefetch(out + i * stride + last * lanes);
    }
  }
  const Word* a = in.a;
  const Word* b = in.b;
  for (int64_t r = 0; r < in.depth; ++r, b += in.pitch_b) {
    const vfloat left = load<vfloat>(b), right = load<vfloat>(b + last * lanes);
    if (in.later) {
      __builtin_prefetch(b + in.later, 0, 2);
      __builtin_prefetch(b + in.later + lanes, 0, 2);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const Word factor = lie == Rows::adjacent ? a[i] : a[i * in.pitch_a];
      sums[i][0] = multiply_add(sums[i][0], factor, left);
      if constexpr (vectors == 2) {
        sums[i][1] = multiply_add(sums[i][1], factor, right);
      }
    }
    a += lie == Rows::adjacent ? in.pitch_a : 1;
  }
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int half = 0; half < vectors; ++half) {
      put<into>(out + i * stride, sums[i][half], half, columns, in.fresh);
    }
  }
}

template <int rows, Into into, Rows lie, int vectors = 2, typename Word, typename Out>
void tile_of(int64_t wanted, const Operands<Word>& in, Out* out, int64_t stride, int64_t columns) {
  if constexpr (rows > 1) {
    if (wanted < rows) {
      return tile_of<rows - 1, into, lie, vectors>(wanted, in, out, stride, columns);
    }
  }
  tile<rows, into, lie, vectors>(in, out, stride, columns);
}

// Pitch of a left factor of `multiply`, and its words from row `row` on: they lie side by side, but
// for tiles those of a column do.
template <typename Word>
int64_t factor_pitch(int64_t rows, int64_t columns) {
  return in_tiles<Word> ? words<Word>(rows) : round_up(columns, panel);
}
template <typename Word>
Word* from_row(Word* factor, int64_t row, int64_t pitch) {
  return factor + row * (in_tiles<Word> ? 1 : pitch);
}

// Any operand as the left factor of `multiply`, whole panels of columns: [words(rows), pitch].
template <typename Word, typename T>
void pack_left(const Matrix<T>& from, Word* to, int64_t pitch) {
  pack(from, to, pitch);
}

// out[m * stride + n] = Σ_r a[r, m] · b[r, n]
template <Into into = Into::set, typename Word, typename Out>
void multiply(const Operands<Word>& in, int64_t rows, int64_t columns, Out* out, int64_t stride) {
  const int64_t tiles = (rows + most_rows - 1) / most_rows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = t * rows / tiles, end = (t + 1) * rows / tiles;
    Operands<Word> part = in;
    part.a += begin;
    for (int64_t x = 0; x < columns; x += panel, part.b += in.panel_pitch) {
      tile_of<most_rows, into, Rows::adjacent>(end - begin, part, out + begin * stride + x, stride,
                                               columns - x);
    }
  }
}

}  // namespace
}  // namespace openseg::OPENSEG_ISA
