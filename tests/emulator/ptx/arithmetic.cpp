// SPDX-License-Identifier: MIT
// Instructions whose lanes know nothing of each other, and shuffles.
#include <algorithm>
#include <cmath>

#include "ptx/machine.h"

namespace openseg::ptx {
namespace {

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;

template <typename Function>
struct Signature;

template <typename Result, typename... Arguments>
struct Signature<Result (*)(Arguments...)> {
  template <auto f>
  static void map(Warp& warp, const Instruction& instruction, uint32_t active) {
    map<f>(warp, instruction, active, std::index_sequence_for<Arguments...>());
  }

  template <auto f, size_t... i>
  static void map(Warp& warp, const Instruction& instruction, uint32_t active,
                  std::index_sequence<i...>) {
    SlotOf<Result>* const to = results<SlotOf<Result>>(warp, instruction.operands[0]);
    const auto from =
        std::make_tuple(slots<SlotOf<Arguments>>(warp, instruction.operands[1 + i])...);
#pragma GCC ivdep
    for (int lane = 0; lane < lane_count; ++lane) {
      const Result value = f(from_slot<Arguments>(std::get<i>(from)[lane])...);
      to[lane] = active >> lane & 1 ? to_slot(value) : to[lane];
    }
  }

  template <auto f>
  static void compare(Warp& warp, const Instruction& instruction, uint32_t active) {
    const auto* const a = slots<SlotOf<First>>(warp, instruction.operands[1]);
    const auto* const b = slots<SlotOf<First>>(warp, instruction.operands[2]);
    uint32_t holds = 0;
    for (int lane = 0; lane < lane_count; ++lane) {
      holds |= (uint32_t)f(from_slot<First>(a[lane]), from_slot<First>(b[lane])) << lane;
    }
    set_predicate(warp, instruction.operands[0], active, holds);
  }

  using First = std::tuple_element_t<0, std::tuple<Arguments..., int>>;
};

// An instruction that gives each lane f of its operands.
template <auto f>
constexpr Meaning each() {
  return {Kind::plain, Signature<decltype(+f)>::template map<f>};
}

template <auto f>
constexpr Meaning comparison() {
  return {Kind::plain, Signature<decltype(+f)>::template compare<f>};
}

template <auto f>
constexpr Meaning of_predicates() {
  return {Kind::plain, [](Warp& warp, const Instruction& instruction, uint32_t active) {
            const Operand* const operands = instruction.operands;
            const uint32_t a = predicate(warp, operands[1]);
            const uint32_t b =
                instruction.operand_count > 2 ? predicate(warp, operands[2]) : all_lanes;
            set_predicate(warp, operands[0], active, f(a, b));
          }};
}

template <typename Slot>
void select(Warp& warp, const Instruction& instruction, uint32_t active) {
  const Operand* const operands = instruction.operands;
  Slot* const to = results<Slot>(warp, operands[0]);
  const Slot* const a = slots<Slot>(warp, operands[1]);
  const Slot* const b = slots<Slot>(warp, operands[2]);
  const uint32_t first = predicate(warp, operands[3]);
  for (int lane = 0; lane < lane_count; ++lane) {
    const Slot value = first >> lane & 1 ? a[lane] : b[lane];
    to[lane] = active >> lane & 1 ? value : to[lane];
  }
}

// Two halves become one number, the lower first, or the other way round.
template <typename Whole, typename Half>
void join(Warp& warp, const Instruction& instruction, uint32_t active) {
  const auto* const low = slots<SlotOf<Half>>(warp, instruction.operands[1]);
  const auto* const high = slots<SlotOf<Half>>(warp, instruction.operands[2]);
  Whole* const to = results<Whole>(warp, instruction.operands[0]);
  for (int lane = 0; lane < lane_count; ++lane) {
    if (is_active(active, lane)) {
      to[lane] = (Whole)(Half)high[lane] << 8 * sizeof(Half) | (Half)low[lane];
    }
  }
}

template <typename Whole, typename Half>
void take_apart(Warp& warp, const Instruction& instruction, uint32_t active) {
  auto* const low = results<SlotOf<Half>>(warp, instruction.operands[0]);
  auto* const high = results<SlotOf<Half>>(warp, instruction.operands[1]);
  const Whole* const from = slots<Whole>(warp, instruction.operands[2]);
  for (int lane = 0; lane < lane_count; ++lane) {
    if (is_active(active, lane)) {
      const Whole whole = from[lane];
      low[lane] = (Half)whole;
      high[lane] = (Half)(whole >> 8 * sizeof(Half));
    }
  }
}

// Of the lane that is `b` away by `source`; its own, and false, where that is outside of a segment.
template <auto source>
void shuffle(Warp& warp, const Instruction& instruction, uint32_t active) {
  const bool has_predicate = instruction.operand_count == 6;
  const Operand* const operands = instruction.operands + has_predicate;
  const uint32_t* const a = slots<uint32_t>(warp, operands[1]);
  const uint32_t* const b = slots<uint32_t>(warp, operands[2]);
  const uint32_t* const c = slots<uint32_t>(warp, operands[3]);
  const uint32_t* const members = slots<uint32_t>(warp, operands[4]);
  uint32_t values[lane_count];
  uint32_t inside = 0;
  for (uint32_t lane = 0; lane < lane_count; ++lane) {
    require(members[lane] == all_lanes, "a shuffle of lanes ", members[lane]);
    const uint32_t segment = c[lane] >> 8 & 31;
    const uint32_t last = (lane & segment) | (c[lane] & 31 & ~segment);
    const uint32_t from = source(lane, b[lane] & 31, segment);
    inside |= (uint32_t)(from <= last) << lane;
    values[lane] = a[from <= last ? from : lane];
  }
  std::memcpy(results<uint32_t>(warp, instruction.operands[0]), values, sizeof values);
  if (has_predicate) {
    set_predicate(warp, instruction.operands[1], active, inside);
  }
}

template <typename T>
T divided(T a, T b) {
  return b == 0 ? (T)-1 : b == (T)-1 && std::is_signed_v<T> ? (T)(0 - (u64)a) : a / b;
}

template <typename T>
void add_integers(Meanings& all, const std::string& type) {
  using U = std::make_unsigned_t<T>;
  constexpr int bits = 8 * sizeof(T);
  all["add." + type] = each<[](U a, U b) { return (U)(a + b); }>();
  all["sub." + type] = each<[](U a, U b) { return (U)(a - b); }>();
  all["mul.lo." + type] = each<[](U a, U b) { return (U)((u64)a * b); }>();
  all["mad.lo." + type] = each<[](U a, U b, U c) { return (U)((u64)a * b + c); }>();
  all["neg." + type] = each<[](U a) { return (U)(0 - a); }>();
  all["min." + type] = each<[](T a, T b) { return std::min(a, b); }>();
  all["max." + type] = each<[](T a, T b) { return std::max(a, b); }>();
  all["div." + type] = each<[](T a, T b) { return divided(a, b); }>();
  all["rem." + type] = each<[](T a, T b) { return (T)((U)a - (U)divided(a, b) * (U)b); }>();
  all["shr." + type] = each<[](T a, u32 b) {
    return (T)(std::is_signed_v<T> ? a >> std::min(b, bits - 1u) : b < bits ? a >> b : 0);
  }>();
  all["setp.eq." + type] = comparison<[](T a, T b) { return a == b; }>();
  all["setp.ne." + type] = comparison<[](T a, T b) { return a != b; }>();
  all["setp.lt." + type] = comparison<[](T a, T b) { return a < b; }>();
  all["setp.le." + type] = comparison<[](T a, T b) { return a <= b; }>();
  all["setp.gt." + type] = comparison<[](T a, T b) { return b < a; }>();
  all["setp.ge." + type] = comparison<[](T a, T b) { return a >= b; }>();
}

template <typename U>
void add_bits(Meanings& all, const std::string& type) {
  all["and." + type] = each<[](U a, U b) { return (U)(a & b); }>();
  all["or." + type] = each<[](U a, U b) { return (U)(a | b); }>();
  all["xor." + type] = each<[](U a, U b) { return (U)(a ^ b); }>();
  all["not." + type] = each<[](U a) { return (U)~a; }>();
  all["shl." + type] = each<[](U a, u32 b) { return (U)(b < 8 * sizeof(U) ? (u64)a << b : 0); }>();
  all["setp.eq." + type] = comparison<[](U a, U b) { return a == b; }>();
  all["setp.ne." + type] = comparison<[](U a, U b) { return a != b; }>();
}

template <typename Slot>
void add_moves(Meanings& all, const std::string& bits) {
  for (const char* const kind : {"b", "u", "s", "f"}) {
    all["mov." + (kind + bits)] = each<[](Slot a) { return a; }>();
    all["selp." + (kind + bits)] = {Kind::plain, select<SlotOf<Slot>>};
  }
}

template <typename T>
void add_floats(Meanings& all, const std::string& type) {
  all["add." + type] = each<[](T a, T b) { return a + b; }>();
  all["sub." + type] = each<[](T a, T b) { return a - b; }>();
  all["mul." + type] = all["mul.rn." + type] = each<[](T a, T b) { return a * b; }>();
  all["fma.rn." + type] = each<[](T a, T b, T c) { return std::fma(a, b, c); }>();
  all["neg." + type] = each<[](T a) { return -a; }>();
  all["abs." + type] = each<[](T a) { return std::fabs(a); }>();
  all["min." + type] = each<[](T a, T b) { return std::fmin(a, b); }>();
  all["max." + type] = each<[](T a, T b) { return std::fmax(a, b); }>();
  all["div.rn." + type] = each<[](T a, T b) { return a / b; }>();
  all["rcp.rn." + type] = each<[](T a) { return 1 / a; }>();
  all["sqrt.rn." + type] = each<[](T a) { return std::sqrt(a); }>();
  all["setp.eq." + type] = comparison<[](T a, T b) { return a == b; }>();
  all["setp.ne." + type] = comparison<[](T a, T b) { return a < b || b < a; }>();
  all["setp.lt." + type] = comparison<[](T a, T b) { return a < b; }>();
  all["setp.le." + type] = comparison<[](T a, T b) { return a <= b; }>();
  all["setp.gt." + type] = comparison<[](T a, T b) { return b < a; }>();
  all["setp.ge." + type] = comparison<[](T a, T b) { return a >= b; }>();
  all["setp.equ." + type] = comparison<[](T a, T b) { return !(a < b || b < a); }>();
  all["setp.neu." + type] = comparison<[](T a, T b) { return a != b; }>();
  all["setp.ltu." + type] = comparison<[](T a, T b) { return !(a >= b); }>();
  all["setp.leu." + type] = comparison<[](T a, T b) { return !(a > b); }>();
  all["setp.gtu." + type] = comparison<[](T a, T b) { return !(a <= b); }>();
  all["setp.geu." + type] = comparison<[](T a, T b) { return !(a < b); }>();
  all["setp.num." + type] = comparison<[](T a, T b) { return a == a && b == b; }>();
  all["setp.nan." + type] = comparison<[](T a, T b) { return a != a || b != b; }>();
}

u32 joined(u16 high, u16 low) {
  return (u32)high << 16 | low;
}

template <typename To, typename From>
Meaning converted() {
  return {Kind::plain, [](Warp& warp, const Instruction& instruction, uint32_t active) {
            auto* const to = results<SlotOf<To>>(warp, instruction.operands[0]);
            for (int lane = 0; lane < lane_count; ++lane) {
              if (is_active(active, lane)) {
                const uint64_t bits = bits_of_lane(warp, instruction.operands[1], lane);
                to[lane] = to_slot((To)from_slot<From>((SlotOf<From>)bits));
              }
            }
          }};
}

void add_conversions(Meanings& all) {
  all["cvt.u16.u32"] = all["cvt.u16.u64"] = converted<u16, u32>();
  all["cvt.u32.u16"] = converted<u32, u16>();
  all["cvt.u64.u16"] = converted<u64, u16>();
  all["cvt.s32.s16"] = converted<s32, s16>();
  all["cvt.u32.u64"] = all["cvt.s32.s64"] = converted<u32, u64>();
  all["cvt.u64.u32"] = converted<u64, u32>();
  all["cvt.s64.s32"] = converted<s64, s32>();
  all["cvt.rn.f32.s32"] = converted<f32, s32>();
  all["cvt.rn.f32.u32"] = converted<f32, u32>();
  all["cvt.rn.f32.s64"] = converted<f32, s64>();
  all["cvt.rn.f64.s32"] = converted<f64, s32>();
  all["cvt.rn.f64.s64"] = converted<f64, s64>();
  all["cvt.f64.f32"] = converted<f64, f32>();
  all["cvt.rn.f32.f64"] = converted<f32, f64>();
  all["cvt.f32.f16"] = each<[](u16 a) { return to_float(float16{a}); }>();
  all["cvt.rn.f16.f32"] = each<[](f32 a) { return to_float16(a).bits; }>();
  all["cvt.rn.f16x2.f32"] =
      each<[](f32 a, f32 b) { return joined(to_float16(a).bits, to_float16(b).bits); }>();
  all["cvt.rn.bf16x2.f32"] =
      each<[](f32 a, f32 b) { return joined(to_bfloat16(a).bits, to_bfloat16(b).bits); }>();
}

// Each digit of `choice` names a byte of a and b; with 8 more, its sign fills the byte.
u32 permuted(u32 a, u32 b, u32 choice) {
  const u64 bytes = (u64)b << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 digit = choice >> 4 * i & 15;
    const u32 byte = (u32)(bytes >> 8 * (digit & 7)) & 255;
    result |= (digit < 8 ? byte : byte >> 7 ? 255 : 0) << 8 * i;
  }
  return result;
}

uint32_t opposite_lane(uint32_t lane, uint32_t distance, uint32_t) {
  return lane ^ distance;
}

uint32_t named_lane(uint32_t lane, uint32_t name, uint32_t segment) {
  return (lane & segment) | (name & ~segment);
}

}  // namespace

void add_arithmetic(Meanings& all) {
  add_bits<u16>(all, "b16");
  add_bits<u32>(all, "b32");
  add_bits<u64>(all, "b64");
  add_integers<u16>(all, "u16");
  add_integers<s16>(all, "s16");
  add_integers<u32>(all, "u32");
  add_integers<s32>(all, "s32");
  add_integers<u64>(all, "u64");
  add_integers<s64>(all, "s64");
  add_floats<f32>(all, "f32");
  add_floats<f64>(all, "f64");
  add_moves<u16>(all, "16");
  add_moves<u32>(all, "32");
  add_moves<u64>(all, "64");
  add_conversions(all);
  all["mul.wide.u16"] = each<[](u16 a, u16 b) { return (u32)a * b; }>();
  all["mul.wide.s16"] = each<[](s16 a, s16 b) { return (s32)a * b; }>();
  all["mul.wide.u32"] = each<[](u32 a, u32 b) { return (u64)a * b; }>();
  all["mul.wide.s32"] = each<[](s32 a, s32 b) { return (s64)a * b; }>();
  all["mad.wide.s32"] = each<[](s32 a, s32 b, s64 c) { return (s64)a * b + c; }>();
  all["mad.wide.u32"] = each<[](u32 a, u32 b, u64 c) { return (u64)a * b + c; }>();
  all["mul.hi.u32"] = each<[](u32 a, u32 b) { return (u32)((u64)a * b >> 32); }>();
  all["mul.hi.s32"] = each<[](s32 a, s32 b) { return (s32)((s64)a * b >> 32); }>();
  all["bfi.b32"] = each<[](u32 a, u32 b, u32 start, u32 count) {
    const u64 mask = (((u64)1 << std::min(count & 255, 32u)) - 1) << std::min(start & 255, 32u);
    return (u32)((b & ~mask) | (((u64)a << std::min(start & 255, 32u)) & mask));
  }>();
  all["prmt.b32"] = each<[](u32 a, u32 b, u32 choice) { return permuted(a, b, choice); }>();
  all["ex2.approx.f32"] = all["ex2.approx.ftz.f32"] = each<[](f32 a) { return std::exp2(a); }>();
  all["lg2.approx.f32"] = each<[](f32 a) { return std::log2(a); }>();
  all["mov.b32 together"] = {Kind::plain, join<u32, u16>};
  all["mov.b64 together"] = {Kind::plain, join<u64, u32>};
  all["mov.b32 apart"] = {Kind::plain, take_apart<u32, u16>};
  all["mov.b64 apart"] = {Kind::plain, take_apart<u64, u32>};
  all["mov.pred"] = of_predicates<[](u32 a, u32) { return a; }>();
  all["not.pred"] = of_predicates<[](u32 a, u32) { return ~a; }>();
  all["and.pred"] = of_predicates<[](u32 a, u32 b) { return a & b; }>();
  all["or.pred"] = of_predicates<[](u32 a, u32 b) { return a | b; }>();
  all["xor.pred"] = of_predicates<[](u32 a, u32 b) { return a ^ b; }>();
  all["shfl.sync.bfly.b32"] = {Kind::collective, shuffle<opposite_lane>};
  all["shfl.sync.idx.b32"] = {Kind::collective, shuffle<named_lane>};
}

}  // namespace openseg::ptx
