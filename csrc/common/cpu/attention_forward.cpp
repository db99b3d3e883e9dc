// SPDX-License-Identifier: MIT
// Softmax runs along with the sum over the pixels: when a greater score comes, what was summed is
// scaled down. A block of queries meets the pixels of its set, a block of them at a time.
//
// Where query and key are one map, scores are symmetric: pairs of blocks meet once and each adds to
// the sums of the other, which saves one of four products.
#include "common/pixel_slabs.h"

namespace openseg::OPENSEG_ISA {
namespace {

// What a block has summed so far.
struct Sums {
  float* out;       // [pixels, row_pitch(Dv)]: Σ exp(score - greatest) · value
  float* greatest;  // scaled scores
  float* total;     // Σ exp(score - greatest)
};

struct Context {
  const Attention& call;
  DType dtype;
  int64_t pixels, sets;  // of a set, of all images
  int failed = 0;
  // pairs alone: the sums of all sets, those of softmax at a pitch of most_block for each block
  int64_t blocks = 1, round = 0;
  Sums sums{};

  explicit Context(const Attention& call)
      : call(call),
        dtype(call.query.dtype),
        pixels(call.sets.pixels()),
        sets(call.query.batch * call.sets.count()) {}
};

void scale_row(float* row, int64_t channels, float factor) {
  for (int64_t c = 0; c < channels; c += lanes) {
    store(row + c, load<vfloat>(row + c) * factor);
  }
}

// Weights are kept as `add_rows` takes them.
template <typename Word>
struct WeightFor {
  using type = float;
};
template <>
struct WeightFor<TilePair> {
  using type = bfloat16;
};

// Weights of the queries in rows of scores [count, width]; `fresh`: nothing is summed yet.
template <typename Word, typename Weight = typename WeightFor<Word>::type>
void weigh_rows(bool fresh, const float* scores, int64_t count, int64_t width, float scale,
                const Sums& sums, int64_t channels, Weight* weights) {
  const int64_t whole = width / lanes * lanes, end = round_up(width, panel);
  for (int64_t i = 0; i < count; ++i, scores += score_pitch) {
    vfloat most = splat(sums.greatest[i]);
    for (int64_t x = 0; x < whole; x += lanes) {
      most = max(load<vfloat>(scores + x) * scale, most);
    }
    most = max(first_of(load<vfloat>(scores + whole) * scale, width - whole, lowest), most);
    const float greatest = max_of(most);
    vfloat total{};
    for (int64_t x = 0; x < end; x += lanes) {
      vfloat weight = weight_of<Word>(load<vfloat>(scores + x) * scale - greatest);
      if (x >= whole) {
        weight = first_of(weight, width - x);
      }
      total += weight;
      store_float(weights + x, weight);
    }
    weights += weights_pitch<Word> * (int64_t)(sizeof(Word) / sizeof(Weight));
    if (greatest > sums.greatest[i]) {
      const float factor = exp(splat(sums.greatest[i] - greatest))[0];
      sums.greatest[i] = greatest;
      sums.total[i] *= factor;
      if (!fresh) {
        scale_row(sums.out + i * row_pitch(channels), channels, factor);
      }
    }
    sums.total[i] += sum_of(total);
  }
}

// Weights of the queries in columns, in place.
template <typename Word>
void weigh_columns(bool fresh, float* scores, int64_t count, int64_t width, float scale,
                   const Sums& sums, int64_t channels) {
  for (int64_t x = 0; x < width; x += lanes) {
    const vfloat before = load<vfloat>(sums.greatest + x);
    vfloat most = before;
    for (int64_t i = 0; i < count; ++i) {
      most = max(load<vfloat>(scores + i * score_pitch + x) * scale, most);
    }
    const vfloat factor = exp(before - most);
    vfloat total{};  // small weights would be lost one by one in a sum that is large
    for (int64_t i = 0; i < count; ++i) {
      float* const at = scores + i * score_pitch + x;
      const vfloat weight = weight_of<Word>(load<vfloat>(at) * scale - most);
      total += weight;
      store(at, weight);
    }
    store(sums.greatest + x, most);
    store(sums.total + x, load<vfloat>(sums.total + x) * factor + total);
    for (int64_t lane = 0; lane < lanes && x + lane < width; ++lane) {
      if (!fresh && factor[lane] != 1) {
        scale_row(sums.out + (x + lane) * row_pitch(channels), channels, factor[lane]);
      }
    }
  }
}

template <typename T, typename Word>
class Forward {
 public:
  using Weight = typename WeightFor<Word>::type;

  explicit Forward(const Context& context)
      : context_(context),
        call_(context.call),
        depth_(call_.query.channels),
        channels_(call_.value.channels),
        scratch_(bytes()),
        query_memory_(scratch_.take<Word>(most_block * left_pitch<Word>(depth_))),
        sums_(scratch_.take<float>(most_block * row_pitch(channels_))),
        own_pairs_(scratch_.take<Word>(paired_size<Word>(most_block, channels_))),
        key_memory_(scratch_.take<Word>(most_block * left_pitch<Word>(depth_))),
        turned_(scratch_.take<Word>(turned_size<Word>(most_block, depth_))),
        value_memory_(scratch_.take<Word>(most_block * left_pitch<Word>(channels_))),
        value_pairs_(scratch_.take<Word>(paired_size<Word>(most_block, channels_))),
        scores_(scratch_.take<float>(scores_size)),
        weights_((Weight*)scratch_.take<Word>(own_weights_size)),
        pairs_(scratch_.take<Word>(weights_size<Word>)),
        statistics_(scratch_.take<float>(2 * most_block)) {}

  explicit operator bool() const { return (bool)scratch_; }

  // Queries begin..end of all sets.
  void run_queries(int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t set = begin / context_.pixels, first = begin % context_.pixels;
      const int64_t rest = context_.pixels - first;
      const int64_t wanted = end - begin < rest ? end - begin : rest;
      const int64_t count = part(wanted, parts_of(wanted, most_block), 0).count;
      const Sums sums{sums_, statistics_, statistics_ + most_block};
      clear(sums);
      load_queries(set, {first, count});
      const int64_t parts = parts_of(context_.pixels, most_block);
      for (int64_t p = 0; p < parts; ++p) {
        const Range keys = part(context_.pixels, parts, p, panel);
        load_keys(set, keys);
        expect(set, p + 1, parts);
        meet(p == 0, count, sums, keys.count, nullptr);
      }
      finish(set, {first, count}, sums);
      begin += count;
    }
  }

  void clear_block(int64_t set, int64_t block) { clear(sums_of(set, block)); }

  void run_pair(int64_t set, BlockPair pair) {
    const Range own = range(pair.a);
    const Sums mine = sums_of(set, pair.a), theirs = sums_of(set, pair.b);
    load_queries(set, own);
    Word* const value = (Word*)sums_;  // which has room for rows, and is not needed here
    own_value_ = paired_pixels<T>(call_.value, call_.sets, set, own, value, own_pairs_);
    const Range others = range(pair.b);
    load_keys(set, others);
    meet(context_.round == 0, own.count, mine, others.count, pair.a == pair.b ? nullptr : &theirs);
  }

  void finish_block(int64_t set, int64_t block) { finish(set, range(block), sums_of(set, block)); }

 private:
  Range range(int64_t block) const { return part(context_.pixels, context_.blocks, block, panel); }

  Sums sums_of(int64_t set, int64_t block) const {
    const int64_t row = set * context_.pixels + range(block).begin;
    const int64_t statistic = (set * context_.blocks + block) * most_block;
    return {context_.sums.out + row * row_pitch(channels_), context_.sums.greatest + statistic,
            context_.sums.total + statistic};
  }

  void clear(const Sums& sums) const {
    for (int64_t i = 0; i < most_block; ++i) {
      sums.greatest[i] = lowest;
      sums.total[i] = 0;
    }
  }

  void load_queries(int64_t set, Range pixels) {
    query_ = rows_of<T>(call_.query, call_.sets, set, pixels, query_memory_);
  }

  void load_keys(int64_t set, Range pixels) {
    turn_pixels<T>(call_.key, call_.sets, set, pixels, key_memory_, turned_);
    value_ = paired_pixels<T>(call_.value, call_.sets, set, pixels, value_memory_, value_pairs_);
  }

  // What is loaded next: part `index` of the keys or, where they are one part, the set after.
  void expect(int64_t set, int64_t index, int64_t parts) {
    upcoming_.clear();
    if (index == parts) {
      index = 0;
      if (parts > 1 || ++set == context_.sets) {
        return;
      }
      upcoming_.add<T>(call_.query, call_.sets, set, {0, context_.pixels});
    }
    const Range keys = part(context_.pixels, parts, index, panel);
    upcoming_.add<T>(call_.key, call_.sets, set, keys);
    upcoming_.add<T>(call_.value, call_.sets, set, keys);
  }

  // The loaded queries and keys; `theirs`: the sums of the keys as queries; `fresh`: nothing is
  // summed yet.
  void meet(bool fresh, int64_t count, const Sums& mine, int64_t width, const Sums* theirs) {
    scores_of(query_, count, depth_, turned_, width, scores_, upcoming_);
    weigh_rows<Word>(fresh, scores_, count, width, call_.scale, mine, channels_, weights_);
    add_rows(fresh, weights_, count, value_, width, channels_, mine.out, pairs_, upcoming_);
    if (theirs) {
      weigh_columns<Word>(fresh, scores_, count, width, call_.scale, *theirs, channels_);
      add_columns(fresh, scores_, width, own_value_, count, channels_, theirs->out, pairs_,
                  upcoming_);
    }
  }

  void finish(int64_t set, Range pixels, const Sums& sums) {
    float* const greatest = call_.statistics + set * context_.pixels + pixels.begin;
    float* const inverse = greatest + context_.sets * context_.pixels;
    for (int64_t i = 0; i < pixels.count; ++i) {
      greatest[i] = sums.greatest[i];
      inverse[i] = 1 / sums.total[i];
    }
    scatter<T>(sums.out, call_.out, call_.sets, set, pixels, inverse);
  }

  int64_t bytes() const {
    return 4 * (2 * left_pitch<Word>(depth_) * most_block + turned_size<Word>(most_block, depth_) +
                (row_pitch(channels_) + left_pitch<Word>(channels_)) * most_block +
                2 * paired_size<Word>(most_block, channels_) + scores_size + own_weights_size +
                weights_size<Word> + 2 * most_block) +
           11 * 64;
  }

  static constexpr int64_t own_weights_size = in_tiles<Word> ? weights_size<Word> : scores_size;

  const Context& context_;
  const Attention& call_;
  const int64_t depth_, channels_;  // D, Dv
  Scratch scratch_;
  Word* query_memory_;                 // rows of a block
  float* sums_;                        // of the queries, [most_block, row_pitch(Dv)]
  Word* own_pairs_;                    // of a block
  Word *key_memory_, *turned_;         // of those that it meets
  Word *value_memory_, *value_pairs_;  // of those
  float* scores_;                      // [most_block, score_pitch]
  Weight* weights_;                    // of rows
  Word* pairs_;                        // of weights
  float* statistics_;                  // [2, most_block]
  TilesFor<Word> tiles_;
  Upcoming upcoming_;
  const Word* query_ = nullptr;                         // rows, in that memory unless they lay so
  const Word *own_value_ = nullptr, *value_ = nullptr;  // paired
};

bool run_pairs(Context& context) {
  const int64_t blocks = context.sets * context.blocks;
  const int64_t rows = context.sets * context.pixels * row_pitch(context.call.value.channels);
  Scratch scratch(4 * (rows + 2 * blocks * most_block) + 3 * 64);
  if (!scratch) {
    return false;
  }
  context.sums = {scratch.take<float>(rows), scratch.take<float>(blocks * most_block),
                  scratch.take<float>(blocks * most_block)};
  run_workers<Forward>(blocks, context, [](auto& worker, Context& context, int64_t i, int64_t end) {
    for (; i < end; ++i) {
      worker.clear_block(i / context.blocks, i % context.blocks);
    }
  });
  for (context.round = 0; context.round < context.blocks; ++context.round) {
    const auto work = [](auto& worker, Context& context, int64_t task, int64_t end) {
      const int64_t pairs = context.blocks / 2;
      for (; task < end; ++task) {
        const BlockPair pair = pair_of(context.round, task % pairs, context.blocks);
        worker.run_pair(task / pairs, pair);
        if (pair.a == pair.b) {
          worker.run_pair(task / pairs, {pair.a - pairs, pair.a - pairs});
        }
      }
    };
    run_workers<Forward>(blocks / 2, context, work);
  }
  run_workers<Forward>(blocks, context, [](auto& worker, Context& context, int64_t i, int64_t end) {
    for (; i < end; ++i) {
      worker.finish_block(i / context.blocks, i % context.blocks);
    }
  });
  return context.failed == 0;
}

bool attend(const Attention& call) {
  Context context(call);
  if (call.shared && blocks_of(context.pixels) > 1) {
    context.blocks = blocks_of(context.pixels);
    return run_pairs(context);
  }
  const auto work = [](auto& worker, Context&, int64_t begin, int64_t end) {
    worker.run_queries(begin, end);
  };
  run_workers<Forward>(context.sets * context.pixels, context, work);
  return context.failed == 0;
}

bool attend_by_slabs(const Attention& call) {
  const int64_t pixels = Slab::pixels(call.sets);
  const int64_t query_bytes = Slab::bytes(call.sets, call.query);
  const int64_t value_bytes = Slab::bytes(call.sets, call.value);
  Scratch scratch(2 * query_bytes + 2 * value_bytes + 4 * 2 * pixels + 64);
  if (!scratch) {
    return false;
  }
  char* const query = scratch.take<char>(query_bytes);
  char* const key = call.shared ? query : scratch.take<char>(query_bytes);
  char* const value = scratch.take<char>(value_bytes);
  char* const out = scratch.take<char>(value_bytes);
  float* const statistics = scratch.take<float>(2 * pixels);
  const auto run = [&](const Slab& slab) {
    Attention part = call;
    part.query = slab.load(call.query, query);
    part.key = call.shared ? part.query : slab.load(call.key, key);
    part.value = slab.load(call.value, value);
    part.out = slab.copy_of(call.out, out);
    part.sets = slab.sets();
    part.statistics = statistics;
    const bool ok = attend(part);
    slab.store(part.out, call.out);
    slab.store_statistics(statistics, call);
    return ok;
  };
  return for_each_slab(call, run);
}

}  // namespace

bool attention_cpu(const Attention& call) {
  return lies_in_slabs(call) ? attend_by_slabs(call) : attend(call);
}

}  // namespace openseg::OPENSEG_ISA
