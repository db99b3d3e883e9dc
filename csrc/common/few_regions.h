// SPDX-License-Identifier: MIT
// Products of few region tensors with maps whose channels are neighbours: pixels are read as rows,
// as they lie, a few rows at a time. To pack them would cost as much as the product.
#pragma once

#include "common/tiles.h"

namespace openseg::OPENSEG_ISA {
namespace {

constexpr int64_t few_regions = 32;
constexpr int dot_pixels = lanes == 16 ? 4 : 2;  // they and most_dots regions: sums in registers
constexpr int most_dots = 5;
// Pixels from those that are read to those that are fetched.
template <typename Word>
constexpr int fetched = 8 * per_word<Word>;

template <int count>
struct Count {
  static constexpr int value = count;
};

template <typename Word, typename T>
constexpr bool has_words = sizeof(T) * per_word<Word> == sizeof(Word) && !in_tiles<Word>;

// Whether `map`, as [channels, pixels], can be read so: in whole words from each pixel to the next.
template <typename Word, typename T>
bool lies_in_rows(const Matrix<T>& map, int64_t regions) {
  return map.stride_row == 1 && map.stride_column % per_word<Word> == 0 && map.rows % panel == 0 &&
         regions <= few_regions;
}

// Of each four lanes of a and b, those that are named: 0 to 3 are of a, 4 to 7 of b.
inline vfloat choose(vfloat a, vfloat b, int first, int second, int third, int fourth) {
  const int named[] = {first, second, third, fourth};
  vint from;
  for (int lane = 0; lane < lanes; ++lane) {
    const int name = named[lane % 4];
    from[lane] = lane / 4 * 4 + name % 4 + (name < 4 ? 0 : lanes);
  }
  return __builtin_shuffle(a, b, from);
}

// The sums of the lanes of four vectors.
inline __m128 sums_of(vfloat a, vfloat b, vfloat c, vfloat d) {
  const vfloat ab = choose(a, b, 0, 4, 1, 5) + choose(a, b, 2, 6, 3, 7);
  const vfloat cd = choose(c, d, 0, 4, 1, 5) + choose(c, d, 2, 6, 3, 7);
  const vfloat all = choose(ab, cd, 0, 1, 4, 5) + choose(ab, cd, 2, 3, 6, 7);
#if defined(__AVX512F__)
  const __m512 quarters = (__m512)all;
  const __m256 halves = _mm512_castps512_ps256(quarters) + _mm512_extractf32x8_ps(quarters, 1);
#elif defined(__AVX2__)
  const __m256 halves = (__m256)all;
#endif
#if defined(__AVX2__)
  return _mm256_castps256_ps128(halves) + _mm256_extractf128_ps(halves, 1);
#else
  return (__m128)all;
#endif
}

// scores[k, n] = Σ_c regions[k, c] · pixels[n, c] at a pitch of `block`; the pitches of both are in
// words.
template <int pixel_count, int region_count, typename Word>
void dots(const Word* pixels, int64_t pitch_pixels, const Word* regions, int64_t pitch_regions,
          int64_t depth, float* scores) {
  vfloat sums[region_count][pixel_count];
#pragma GCC unroll 8
  for (int k = 0; k < region_count; ++k) {
#pragma GCC unroll 8
    for (int n = 0; n < pixel_count; ++n) {
      sums[k][n] = vfloat{};
    }
  }
  for (int64_t c = 0; c < depth; c += lanes) {
    vfloat region[region_count];
#pragma GCC unroll 8
    for (int k = 0; k < region_count; ++k) {
      region[k] = load<vfloat>(regions + k * pitch_regions + c);
    }
#pragma GCC unroll 8
    for (int n = 0; n < pixel_count; ++n) {
      const vfloat pixel = load<vfloat>(pixels + n * pitch_pixels + c);
      __builtin_prefetch(pixels + (n + fetched<Word>)*pitch_pixels + c);
#pragma GCC unroll 8
      for (int k = 0; k < region_count; ++k) {
        sums[k][n] = multiply_words<Word>(sums[k][n], pixel, region[k]);
      }
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < region_count; ++k) {
    vfloat of_pixel[4] = {};
#pragma GCC unroll 8
    for (int n = 0; n < pixel_count; ++n) {
      of_pixel[n] = sums[k][n];
    }
    const __m128 total = sums_of(of_pixel[0], of_pixel[1], of_pixel[2], of_pixel[3]);
    std::memcpy(scores + k * block, &total, pixel_count * sizeof(float));
  }
}

template <int pixel_count, int region_count, typename Word>
void dots_of(int64_t wanted, const Word* pixels, int64_t pitch_pixels, const Word* regions,
             int64_t pitch_regions, int64_t depth, float* scores) {
  if constexpr (region_count > 1) {
    if (wanted < region_count) {
      return dots_of<pixel_count, region_count - 1>(wanted, pixels, pitch_pixels, regions,
                                                    pitch_regions, depth, scores);
    }
  }
  dots<pixel_count, region_count>(pixels, pitch_pixels, regions, pitch_regions, depth, scores);
}

// [K, C] vectors of one image as rows of words.
template <typename Word>
struct RegionRows {
  Word* data;
  int64_t regions, pitch;

  RegionRows(Scratch& scratch, int64_t regions, int64_t channels)
      : data(scratch.take<Word>(bytes(regions, channels) / sizeof(Word))),
        regions(regions),
        pitch(words<Word>(channels)) {}

  static int64_t bytes(int64_t regions, int64_t channels) {
    return in_tiles<Word> || regions > few_regions || channels % panel
               ? 0
               : regions * words<Word>(channels) * (int64_t)sizeof(Word);
  }

  template <typename T>
  void load_image(const Map& vectors, int64_t image) {
    using Element = typename ElementFor<Word>::type;
    const T* const from = (const T*)vectors.data + image * vectors.stride_batch;
    for (int64_t k = 0; bytes(regions, vectors.channels) && k < regions; ++k) {
      for (int64_t c = 0; c < vectors.channels; c += lanes) {
        store_float((Element*)(data + k * pitch) + c,
                    channels_of(vectors, from + k * vectors.stride_pixel, c));
      }
    }
  }

  // Of a map that lies in rows; see `dots`.
  template <typename T>
  void project(const Matrix<T>& map, float* scores) const {
    const Word* const pixels = (const Word*)map.data;
    const int64_t pitch_pixels = map.stride_column / per_word<Word>;
    const int64_t tiles = (regions + most_dots - 1) / most_dots;
    int64_t n = 0;
    const auto run = [&](auto count) {
      constexpr int together = decltype(count)::value;
      for (; n + together <= map.columns; n += together) {
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t begin = t * regions / tiles, end = (t + 1) * regions / tiles;
          dots_of<together, most_dots>(end - begin, pixels + n * pitch_pixels, pitch_pixels,
                                       data + begin * pitch, pitch, pitch,
                                       scores + begin * block + n);
        }
      }
    };
    run(Count<dot_pixels>{});
    run(Count<1>{});
  }
};

// sums[k, c] += Σ_n weights[k, n] · map[c, n] of a map that lies in rows; weights are at a pitch of
// `block`. The next block is fetched along with the products of the first regions.
inline void reduce_rows(const float* weights, int64_t regions, const Matrix<float>& map, float*,
                        float* sums) {
  const int64_t tiles = (regions + most_rows - 1) / most_rows, pitch = map.stride_column;
  for (int64_t c = 0; c < map.rows; c += panel) {
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = t * regions / tiles, end = (t + 1) * regions / tiles;
      const int64_t later = t == 0 ? block * pitch : 0;
      const Operands<float> in{
          weights + begin * block, block, map.data + c, pitch, 0, map.columns, later};
      tile_of<most_rows, Into::add, Rows::apart>(end - begin, in, sums + begin * map.rows + c,
                                                 map.rows, panel);
    }
  }
}

#if defined(__AVX512BF16__)
constexpr int sum_pixels = 16;  // whose words, of a panel, stay in registers

// The same for `count` pixels; a word of weights for each pair of them, of a row at a pitch of
// words(block).
template <int count>
void add_pixels(const Pair* weights, int64_t regions, const bfloat16* pixels, int64_t pitch,
                int64_t channels, float* sums) {
  constexpr int depth = (count + 1) / 2;
  static constexpr bfloat16 none[lanes] = {};
  for (int64_t c = 0; c < channels; c += panel) {
    vuint values[depth][2];
#pragma GCC unroll 8
    for (int i = 0; i < depth; ++i) {
      const bfloat16* const first = pixels + 2 * i * pitch + c;
      const bool paired = 2 * (i + 1) <= count;
      fetch_panel(first, fetched<Pair> * pitch);
      fetch_panel(first + pitch, fetched<Pair> * pitch);
      values[i][0] = words_of<Pair>(first, paired ? first + pitch : none);
      values[i][1] = words_of<Pair>(first + lanes, paired ? first + pitch + lanes : none);
    }
    for (int64_t k = 0; k < regions; ++k) {
      float* const sum = sums + k * channels + c;
      vfloat left{}, right{};  // on their own: one long sum would round off much more
#pragma GCC unroll 8
      for (int i = 0; i < depth; ++i) {
        const Pair weight = weights[k * words<Pair>(block) + i];
        left = multiply_add(left, weight, (vfloat)values[i][0]);
        right = multiply_add(right, weight, (vfloat)values[i][1]);
      }
      store(sum, load<vfloat>(sum) + left);
      store(sum + lanes, load<vfloat>(sum + lanes) + right);
    }
  }
}

// `packed`: [K, words(block)]. Rows of two pixels are made into words in registers.
inline void reduce_rows(const float* weights, int64_t regions, const Matrix<bfloat16>& map,
                        Pair* packed, float* sums) {
  bfloat16* const halves = (bfloat16*)packed;
  for (int64_t x = 0; x < regions * block; x += lanes) {
    store_float(halves + x, load<vfloat>(weights + x));
  }
  for (int64_t k = 0; map.columns < block && k < regions; ++k) {  // the other half of a last word
    halves[k * block + map.columns] = {};
  }
  int64_t n = 0;
  const auto run = [&](auto count) {
    constexpr int together = decltype(count)::value;
    for (; n + together <= map.columns; n += together) {
      add_pixels<together>(packed + n / 2, regions, map.data + n * map.stride_column,
                           map.stride_column, map.rows, sums);
    }
  };
  run(Count<sum_pixels>{});
  run(Count<2>{});
  run(Count<1>{});
}
#endif

}  // namespace
}  // namespace openseg::OPENSEG_ISA
