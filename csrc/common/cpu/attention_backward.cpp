// SPDX-License-Identifier: MIT
// Weights are computed again from scores and the statistics of their softmax: with A = grad_out ·
// value and delta = grad_out · out, of each pixel, the gradient of a score is scale · weight · (A -
// delta).
//
// Two blocks of a set meet at a time, in rounds in which no block meets two others, and add to the
// sums of each other. Where query and key are one map, scores are computed once for both
// directions and their gradients added before they are multiplied: seven products for ten.
#include "common/pixel_slabs.h"

namespace openseg::OPENSEG_ISA {
namespace {

// Not where a pixel meets all others of its set at once, which tells its delta.
bool needs_out(const Attention& call) {
  return call.shared || call.sets.pixels() > most_block;
}

// Gradients of the rows of a set, at their row_pitch.
struct Sums {
  float *query, *key, *value;  // `shared`: query and key are one
};

struct Context {
  const AttentionBackward& call;
  DType dtype;
  int64_t pixels, sets;  // of a set, of all images
  int64_t blocks;        // of a set
  // [sets, pixels] and a vector more: the statistics of the softmax, grad_out · out
  float *greatest, *inverse, *delta;
  int failed = 0;
  int64_t round = 0;
  Sums sums{};  // of all sets, unless a set is one block

  explicit Context(const AttentionBackward& call)
      : call(call),
        dtype(call.forward.query.dtype),
        pixels(call.forward.sets.pixels()),
        sets(call.forward.query.batch * call.forward.sets.count()),
        blocks(blocks_of(pixels)) {}

  int64_t sums_size(int64_t rows) const {  // floats
    const int64_t keys = call.forward.shared ? 1 : 2;
    return rows *
           (keys * row_pitch(call.forward.query.channels) + row_pitch(call.forward.value.channels));
  }

  Sums sums_in(float* memory, int64_t rows) const {
    const int64_t size = rows * row_pitch(call.forward.query.channels);
    float* const key = call.forward.shared ? memory : memory + size;
    return {memory, key, key + size};
  }
};

// What the weights and gradients of scores need to know of pixels as queries.
struct Known {
  const float *greatest, *inverse, *delta;  // no delta: it is Σ weight · grad_weight of the columns
};

// Scores [count, width] become gradients of scores, grad_weights weights.
void differentiate(float* scores, float* grad_weights, int64_t count, int64_t width, float scale,
                   const Known& rows) {
  for (int64_t i = 0; i < count; ++i, scores += score_pitch, grad_weights += score_pitch) {
    vfloat sum{};
    for (int64_t x = 0; x < width; x += lanes) {
      const vfloat weight =
          exp(load<vfloat>(scores + x) * scale - rows.greatest[i]) * rows.inverse[i];
      sum += first_of(weight * load<vfloat>(grad_weights + x), width - x);
      store(scores + x, weight);
    }
    const float delta = rows.delta ? rows.delta[i] : sum_of(sum);
    for (int64_t x = 0; x < width; x += lanes) {
      const vfloat weight = load<vfloat>(scores + x);
      store(scores + x, scale * weight * (load<vfloat>(grad_weights + x) - delta));
      store(grad_weights + x, weight);
    }
  }
}

// The same for both directions: `forth` of pixels in rows as queries, `back` of those in columns.
void differentiate_both(float* scores, float* forth, float* back, int64_t count, int64_t width,
                        float scale, const Known& rows, const Known& columns) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t x = 0; x < width; x += lanes) {
      const int64_t at = i * score_pitch + x;
      const vfloat score = load<vfloat>(scores + at) * scale;
      const vfloat weight_forth = exp(score - rows.greatest[i]) * rows.inverse[i];
      const vfloat weight_back =
          exp(score - load<vfloat>(columns.greatest + x)) * load<vfloat>(columns.inverse + x);
      const vfloat grad_forth = weight_forth * (load<vfloat>(forth + at) - rows.delta[i]);
      const vfloat grad_back =
          weight_back * (load<vfloat>(back + at) - load<vfloat>(columns.delta + x));
      store(scores + at, scale * (grad_forth + grad_back));
      store(forth + at, weight_forth);
      store(back + at, weight_back);
    }
  }
}

template <typename T, typename Word>
class Backward {
 public:
  using Element = typename ElementFor<Word>::type;

  explicit Backward(const Context& context)
      : context_(context),
        call_(context.call),
        in_(context.call.forward),
        depth_(in_.query.channels),
        channels_(in_.value.channels),
        scratch_(bytes()),
        query_memory_(scratch_.take<Word>(most_block * left_pitch<Word>(depth_))),
        grad_memory_(scratch_.take<Word>(most_block * left_pitch<Word>(channels_))),
        value_memory_(scratch_.take<Word>(most_block * left_pitch<Word>(channels_))),
        query_pairs_(scratch_.take<Word>(paired_size<Word>(most_block, depth_))),
        grad_pairs_(scratch_.take<Word>(paired_size<Word>(most_block, channels_))),
        key_memory_(scratch_.take<Word>(most_block * left_pitch<Word>(depth_))),
        key_pairs_(scratch_.take<Word>(paired_size<Word>(most_block, depth_))),
        turned_key_(scratch_.take<Word>(turned_size<Word>(most_block, depth_))),
        met_memory_(scratch_.take<Word>(most_block * left_pitch<Word>(channels_))),
        met_grad_pairs_(scratch_.take<Word>(paired_size<Word>(most_block, channels_))),
        turned_grad_(scratch_.take<Word>(turned_size<Word>(most_block, channels_))),
        turned_value_(scratch_.take<Word>(turned_size<Word>(most_block, channels_))),
        pairs_(scratch_.take<Word>(weights_size<Word>)),
        scores_(scratch_.take<float>(scores_size)),
        forth_(scratch_.take<float>(scores_size)),
        back_(scratch_.take<float>(scores_size)),
        own_sums_(scratch_.take<float>(own_sums_size())) {}

  explicit operator bool() const { return (bool)scratch_; }

  // A set that is one block.
  void run_set(int64_t set) {
    const Sums sums = context_.sums_in(own_sums_, context_.pixels);
    prepare(set, {0, context_.pixels});
    meet_block(set, {0, 0}, sums, sums);
    finish(set, {0, context_.pixels}, sums);
  }

  void prepare_block(int64_t set, int64_t block) { prepare(set, range(block)); }

  void run_pair(int64_t set, BlockPair pair) {
    load_grad(set, range(pair.a));
    meet_block(set, pair, sums_of(set, pair.a), sums_of(set, pair.b));
  }

  void finish_block(int64_t set, int64_t block) { finish(set, range(block), sums_of(set, block)); }

 private:
  Range range(int64_t block) const { return part(context_.pixels, context_.blocks, block, panel); }

  Sums sums_of(int64_t set, int64_t block) const {
    const int64_t row = set * context_.pixels + range(block).begin, pitch = row_pitch(depth_);
    const Sums& all = context_.sums;
    return {all.query + row * pitch, all.key + row * pitch, all.value + row * row_pitch(channels_)};
  }

  Known known(int64_t set, int64_t pixel) const {
    const int64_t at = set * context_.pixels + pixel;
    return {context_.greatest + at, context_.inverse + at,
            needs_out(in_) ? context_.delta + at : nullptr};
  }

  void load_grad(int64_t set, Range pixels) {
    grad_ = rows_of<T>(call_.grad_out, in_.sets, set, pixels, grad_memory_);
  }

  // Makes pixels of a set known.
  void prepare(int64_t set, Range pixels) {
    const int64_t first = set * context_.pixels + pixels.begin, pitch = left_pitch<Word>(channels_);
    const float* const inverse = in_.statistics + context_.sets * context_.pixels;
    std::memcpy(context_.greatest + first, in_.statistics + first, pixels.count * sizeof(float));
    std::memcpy(context_.inverse + first, inverse + first, pixels.count * sizeof(float));
    load_grad(set, pixels);
    if (!needs_out(in_)) {
      return;
    }
    for_each_run(in_.out, in_.sets, set, pixels,
                 [&](int64_t begin, int64_t stride, int64_t count, int64_t at) {
                   const T* const out = (const T*)in_.out.data + begin;
                   for (int64_t x = 0; x < count; ++x) {
                     const auto* const grad = (const Element*)(grad_ + (at + x) * pitch);
                     vfloat sum{};
                     for (int64_t c = 0; c < channels_; c += lanes) {
                       sum += load_float(grad + c) * channels_of(in_.out, out + x * stride, c);
                     }
                     context_.delta[first + at + x] = sum_of(sum);
                   }
                 });
  }

  // `grad_` is that of pair.a.
  void meet_block(int64_t set, BlockPair pair, const Sums& mine, const Sums& theirs) {
    const Range own = range(pair.a), others = range(pair.b);
    query_ = rows_of<T>(in_.query, in_.sets, set, own, query_memory_);
    own_query_ = paired(query_, own.count, depth_, query_pairs_);
    own_grad_ = paired(grad_, own.count, channels_, grad_pairs_);
    if (in_.shared) {
      value_ = rows_of<T>(in_.value, in_.sets, set, own, value_memory_);
    }
    load_others(set, others);
    expect(set + 1);
    if (in_.shared) {
      meet_shared(set, own, others, mine, theirs);
    } else {
      meet(set, own, others, mine, theirs);
    }
  }

  // The set that is loaded next, where sets are one block.
  void expect(int64_t set) {
    upcoming_.clear();
    if (context_.blocks > 1 || set == context_.sets) {
      return;
    }
    const Range pixels{0, context_.pixels};
    upcoming_.add<T>(call_.grad_out, in_.sets, set, pixels);
    if (needs_out(in_)) {
      upcoming_.add<T>(in_.out, in_.sets, set, pixels);
    }
    upcoming_.add<T>(in_.query, in_.sets, set, pixels);
    upcoming_.add<T>(in_.value, in_.sets, set, pixels);
    if (!in_.shared) {
      upcoming_.add<T>(in_.key, in_.sets, set, pixels);
    }
  }

  void load_others(int64_t set, Range pixels) {
    turn_pixels<T>(in_.value, in_.sets, set, pixels, met_memory_, turned_value_);
    const Word* const key = rows_of<T>(in_.key, in_.sets, set, pixels, key_memory_);
    turn(key, pixels.count, depth_, turned_key_);
    key_ = paired(key, pixels.count, depth_, key_pairs_);
    if (in_.shared) {
      const Word* const grad = rows_of<T>(call_.grad_out, in_.sets, set, pixels, met_memory_);
      turn(grad, pixels.count, channels_, turned_grad_);
      met_grad_ = paired(grad, pixels.count, channels_, met_grad_pairs_);
    }
  }

  // The loaded block as queries of the others.
  void meet(int64_t set, Range own, Range others, const Sums& mine, const Sums& theirs) {
    scores_of(query_, own.count, depth_, turned_key_, others.count, scores_, upcoming_);
    scores_of(grad_, own.count, channels_, turned_value_, others.count, forth_, upcoming_);
    differentiate(scores_, forth_, own.count, others.count, in_.scale, known(set, own.begin));
    add_to_rows(scores_, own.count, key_, others.count, depth_, mine.query);
    add_to_columns(own.count, others.count, theirs.key, theirs.value);
  }

  // As queries and keys of another block or, with itself, as one side of pairs within it.
  void meet_shared(int64_t set, Range own, Range others, const Sums& mine, const Sums& theirs) {
    scores_of(query_, own.count, depth_, turned_key_, others.count, scores_, upcoming_);
    scores_of(grad_, own.count, channels_, turned_value_, others.count, forth_, upcoming_);
    scores_of(value_, own.count, channels_, turned_grad_, others.count, back_, upcoming_);
    differentiate_both(scores_, forth_, back_, own.count, others.count, in_.scale,
                       known(set, own.begin), known(set, others.begin));
    add_to_rows(scores_, own.count, key_, others.count, depth_, mine.query);
    add_to_rows(back_, own.count, met_grad_, others.count, channels_, mine.value);
    if (own.begin != others.begin) {
      add_to_columns(own.count, others.count, theirs.query, theirs.value);
    }
  }

  // Blocks meet others from round 0 on, which sets their sums.
  bool fresh() const { return context_.round == 0; }

  void add_to_rows(const float* left, int64_t count, const Word* right, int64_t depth,
                   int64_t channels, float* sums) {
    add_rows(fresh(), left, count, right, depth, channels, sums, pairs_, upcoming_);
  }

  // The products of gradients of scores with the loaded queries, and of weights with their
  // gradients.
  void add_to_columns(int64_t own, int64_t others, float* key, float* value) {
    add_columns(fresh(), scores_, others, own_query_, own, depth_, key, pairs_, upcoming_);
    add_columns(fresh(), forth_, others, own_grad_, own, channels_, value, pairs_, upcoming_);
  }

  void finish(int64_t set, Range pixels, const Sums& sums) {
    scatter<T>(sums.query, call_.grad_query, in_.sets, set, pixels);
    if (!in_.shared) {
      scatter<T>(sums.key, call_.grad_key, in_.sets, set, pixels);
    }
    scatter<T>(sums.value, call_.grad_value, in_.sets, set, pixels);
  }

  int64_t own_sums_size() const {
    return context_.blocks == 1 ? context_.sums_size(context_.pixels) : 0;
  }

  int64_t bytes() const {
    return 4 * ((2 * left_pitch<Word>(depth_) + 3 * left_pitch<Word>(channels_)) * most_block +
                2 * paired_size<Word>(most_block, depth_) +
                2 * paired_size<Word>(most_block, channels_) +
                turned_size<Word>(most_block, depth_) +
                2 * turned_size<Word>(most_block, channels_) + 3 * scores_size +
                weights_size<Word> + own_sums_size()) +
           17 * 64;
  }

  const Context& context_;
  const AttentionBackward& call_;
  const Attention& in_;
  const int64_t depth_, channels_;  // D, Dv
  Scratch scratch_;
  Word *query_memory_, *grad_memory_, *value_memory_;  // rows of a block
  Word *query_pairs_, *grad_pairs_;
  Word *key_memory_, *key_pairs_, *turned_key_;  // of the block that it meets
  Word *met_memory_, *met_grad_pairs_, *turned_grad_, *turned_value_;
  Word* pairs_;                     // of weights
  float *scores_, *forth_, *back_;  // [most_block, score_pitch]
  float* own_sums_;                 // of a set that is one block
  TilesFor<Word> tiles_;
  Upcoming upcoming_;
  // rows, in that memory unless they lay so
  const Word *query_ = nullptr, *grad_ = nullptr, *value_ = nullptr;
  // paired
  const Word *own_query_ = nullptr, *own_grad_ = nullptr, *key_ = nullptr, *met_grad_ = nullptr;
};

void run_rounds(Context& context) {
  const int64_t blocks = context.sets * context.blocks;
  const auto prepare = [](auto& worker, Context& context, int64_t i, int64_t end) {
    for (; i < end; ++i) {
      worker.prepare_block(i / context.blocks, i % context.blocks);
    }
  };
  const auto pairs = [](auto& worker, Context& context, int64_t task, int64_t end) {
    const int64_t half = context.blocks / 2;
    for (; task < end; ++task) {
      const BlockPair pair = pair_of(context.round, task % half, context.blocks);
      worker.run_pair(task / half, pair);
      if (pair.a == pair.b) {
        worker.run_pair(task / half, {pair.a - half, pair.a - half});
      }
    }
  };
  // each block as queries of another's keys
  const auto directed = [](auto& worker, Context& context, int64_t task, int64_t end) {
    for (; task < end; ++task) {
      const int64_t block = task % context.blocks;
      worker.run_pair(task / context.blocks, {block, (block + context.round) % context.blocks});
    }
  };
  const auto finish = [](auto& worker, Context& context, int64_t i, int64_t end) {
    for (; i < end; ++i) {
      worker.finish_block(i / context.blocks, i % context.blocks);
    }
  };
  run_workers<Backward>(blocks, context, prepare);
  for (context.round = 0; context.round < context.blocks; ++context.round) {
    if (context.call.forward.shared) {
      run_workers<Backward>(blocks / 2, context, pairs);
    } else {
      run_workers<Backward>(blocks, context, directed);
    }
  }
  run_workers<Backward>(blocks, context, finish);
}

bool differentiate_attention(const AttentionBackward& call) {
  Context context(call);
  const int64_t rows = context.sets * context.pixels;
  const int64_t sums = context.blocks == 1 ? 0 : context.sums_size(rows);
  Scratch scratch(4 * (3 * (rows + lanes) + sums) + 4 * 64);
  if (!scratch) {
    return false;
  }
  context.greatest = scratch.take<float>(rows + lanes);
  context.inverse = scratch.take<float>(rows + lanes);
  context.delta = scratch.take<float>(rows + lanes);
  if (context.blocks > 1) {
    context.sums = context.sums_in(scratch.take<float>(sums), rows);
    run_rounds(context);
  } else {
    run_workers<Backward>(context.sets, context,
                          [](auto& worker, Context&, int64_t set, int64_t end) {
                            for (; set < end; ++set) {
                              worker.run_set(set);
                            }
                          });
  }
  return context.failed == 0;
}

// Gradients of query, key and value take the place of their copies.
bool differentiate_by_slabs(const AttentionBackward& call) {
  const Attention& in = call.forward;
  const int64_t pixels = Slab::pixels(in.sets);
  const int64_t query_bytes = Slab::bytes(in.sets, in.query);
  const int64_t value_bytes = Slab::bytes(in.sets, in.value);
  Scratch scratch(2 * query_bytes + 3 * value_bytes + 4 * 2 * pixels + 64);
  if (!scratch) {
    return false;
  }
  char* const query = scratch.take<char>(query_bytes);
  char* const key = in.shared ? query : scratch.take<char>(query_bytes);
  char* const value = scratch.take<char>(value_bytes);
  char* const out = scratch.take<char>(value_bytes);
  char* const grad_out = scratch.take<char>(value_bytes);
  float* const statistics = scratch.take<float>(2 * pixels);
  const auto run = [&](const Slab& slab) {
    AttentionBackward part = call;
    Attention& known = part.forward;
    known.query = part.grad_query = slab.load(in.query, query);
    known.key = part.grad_key = in.shared ? known.query : slab.load(in.key, key);
    known.value = part.grad_value = slab.load(in.value, value);
    if (needs_out(in)) {
      known.out = slab.load(in.out, out);
    }
    part.grad_out = slab.load(call.grad_out, grad_out);
    known.sets = slab.sets();
    known.statistics = statistics;
    slab.load_statistics(in, statistics);
    const bool ok = differentiate_attention(part);
    slab.store(part.grad_query, call.grad_query);
    if (!in.shared) {
      slab.store(part.grad_key, call.grad_key);
    }
    slab.store(part.grad_value, call.grad_value);
    return ok;
  };
  return for_each_slab(in, run);
}

}  // namespace

bool attention_backward_cpu(const AttentionBackward& call) {
  const bool by_slabs =
      lies_in_slabs(call.forward) || shares_lines(call.forward.sets, call.grad_out);
  return by_slabs ? differentiate_by_slabs(call) : differentiate_attention(call);
}

}  // namespace openseg::OPENSEG_ISA
