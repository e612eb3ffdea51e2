// The nearest of a warp's candidates. It looks for a distance below which there are as many as wanted: it counts how
// many are so far, and moves on by that count.
#pragma once
#include "selected.cuh"

// A factor of 2 in the bits of a distance. Where keys are spread evenly, OCTAVE * 2 / DK of these bits lie between a
// distance and that with twice as many keys up to it.
constexpr Bits OCTAVE = Bits(1) << (sizeof(Bits) == 8 ? 52 : 23) % (8 * sizeof(Bits));
constexpr float PACE = 2.0f / DK * 1.75f * float(OCTAVE);       // from a key to the next, times how many are nearer
constexpr Bits FARTHEST = Bits(sizeof(Bits) == 8 ? 0x7ff0000000000000ull : 0x7f800000ull);  // infinity
constexpr Bits ANY = ~Bits(0);
constexpr Bits NOT_FINITE = ANY / 2;    // greater than all distances; NaN has the same bits
constexpr Bits REACH = Bits(2.0f / DK * 1.3f * float(OCTAVE));  // how much farther than the last query's keys to look

struct Candidate {
  Bits distance;                        // as an integer
  int position;
};

template <class T> __device__ inline T warp_greatest(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(FULL, value, offset));
  return value;
}

__device__ inline u32 warp_most(u32 value) { return __reduce_max_sync(FULL, value); }
__device__ inline u64 warp_most(u64 value) { return warp_greatest(value); }
__device__ inline u32 warp_least(u32 value) { return __reduce_min_sync(FULL, value); }
__device__ inline u64 warp_least(u64 value) { return ~warp_greatest(~value); }

// How many of a warp's values are below a limit, and what the lanes' `mine` add to it. All values are at most half of
// what T holds.
template <int N, class T> __device__ inline int count_below(const T (&values)[N], T limit, int mine = 0) {
  constexpr int SIGN = 8 * sizeof(T) - 1;
  int others = 0;                       // apart, so that one addition need not wait for another
#pragma unroll
  for (int n = 0; n + 1 < N; n += 2) {
    mine += int(T(values[n] - limit) >> SIGN);
    others += int(T(values[n + 1] - limit) >> SIGN);
  }
  if (N % 2) mine += int(T(values[N - 1] - limit) >> SIGN);
  return __reduce_add_sync(FULL, mine + others);
}

// A limit of some dozens of a warp's values: the first one up to which each lane has one, or 0.
template <int N, class T> __device__ inline T first_pivot(const T (&values)[N], T top) {
  T least = values[0];
#pragma unroll
  for (int n = 1; n < N; ++n) least = min(least, values[n]);
  return warp_most(least > top ? T(0) : least);
}

// Where the nearest end: values below it are chosen, and of those equal to it as many as are missing then.
template <class T> struct Border {
  T value;
  int below;
};

// Find the border of the `wanted` least of a warp's values, of which more than these are below `top`. The first steps,
// from `pivot`, are `pace` for each value too few or too many.
template <int N, class T>
__device__ inline Border<T> border_after(int wanted, const T (&values)[N], T top, T pivot, T pace) {
  constexpr int FREE_STEPS = 8;         // after them brackets are halved
  T lo = 0, hi = top;
  for (int round = 0;; ++round) {
    const int below = count_below(values, pivot);
    if (below == wanted) return {pivot, below};
    if (below < wanted) lo = pivot;
    else hi = pivot;
    pivot += pace * T(wanted - below);  // anywhere, if that is too large
    if (T(pivot - lo - 1) >= T(hi - lo - 1) || round >= FREE_STEPS) {
      if (hi - lo == 1) return {lo, count_below(values, lo)};
      pivot = lo + (hi - lo) / 2;
    }
  }
}

// Keep the lanes' candidates that are nearer than a limit behind `kept` others; returns how many they are then.
template <class T>
__device__ inline int keep_if_nearer(T distance, int position, T limit, Candidate* candidates, int kept,
                                     u32 lower_lanes) {
  const bool is = distance < limit;
  const u32 vote = __ballot_sync(FULL, is);
  if (is) candidates[kept + __popc(vote & lower_lanes)] = Candidate{distance, position};
  return kept + __popc(vote);
}
#ifndef ZETA_HOST
// As PTX, because the compiler makes the comparison twice otherwise.
__device__ inline int keep_if_nearer(u32 distance, int position, u32 limit, Candidate* candidates, int kept,
                                     u32 lower_lanes) {
  asm volatile(
      "{\n"
      ".reg .pred is;\n"
      ".reg .b32 vote, place;\n"
      "setp.lt.u32 is, %1, %3;\n"
      "vote.sync.ballot.b32 vote, is, 0xffffffff;\n"
      "and.b32 place, vote, %5;\n"
      "popc.b32 place, place;\n"
      "add.u32 place, place, %0;\n"
      "mad.lo.u32 place, place, 8, %4;\n"
      "@is st.shared.v2.b32 [place], {%1, %2};\n"
      "popc.b32 vote, vote;\n"
      "add.u32 %0, %0, vote;\n"
      "}"
      : "+r"(kept)
      : "r"(distance), "r"(position), "r"(limit), "r"(u32(__cvta_generic_to_shared(candidates))), "r"(lower_lanes)
      : "memory");
  return kept;
}
#endif

// A warp's candidates in registers, in the order of their places: a lane has every 32nd from its own on.
template <int N> struct Spread {
  Bits values[N];                       // distances, or something greater
  int positions[N];

  // Read `count` gathered ones, at least `32 * FILLED`. What is not a number counts as infinite.
  template <int FILLED> __device__ void read(const Candidate* candidates, int count) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int place = n * 32 + lane();
      const Candidate candidate = candidates[place];
      values[n] = n < FILLED || place < count ? min(candidate.distance, FARTHEST) : FARTHEST + 1;
      positions[n] = candidate.position;
    }
  }
  // Keep those that are nearer than a limit in shared memory, in the same order; returns how many they are.
  __device__ int keep_nearer(Bits limit, Candidate* candidates, u32 lower_lanes) const {
    __syncwarp();                       // all lanes have read what is written over now
    int kept = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) kept = keep_if_nearer(values[n], positions[n], limit, candidates, kept, lower_lanes);
    __syncwarp();
    return kept;
  }
};

// Keep the nearest `wanted` of a warp's candidates in shared memory, if they end below `top` and none of those that
// are left out is as near as the last one; else return false. `end` is where they might end, and becomes where they do.
// It is moved by `pace` for each candidate too few or too many, and to the next one where they are hardly any.
template <int N>
__device__ inline bool choose_nearest(int wanted, const Spread<N>& spread, Bits top, Bits pace, Bits& end,
                                      Candidate* candidates, u32 lower_lanes) {
  constexpr int MOVES = 6, HARDLY = 4;
  const Bits (&values)[N] = spread.values;
  const int mine = lower_lanes == 0 ? -wanted : 0;
  Bits pivot = end;
  int excess = count_below(values, pivot, mine);
#pragma unroll 1
  for (int move = 0; u32(excess + HARDLY) > 2 * HARDLY && move < MOVES; ++move) {
    pivot = min(pivot - pace * Bits(excess), top);
    excess = count_below(values, pivot, mine);
  }
#pragma unroll 1
  for (; excess < 0; ++excess) {
    Bits ahead = values[0] - pivot;      // what is below wraps around, far away
#pragma unroll
    for (int n = 1; n < N; ++n) ahead = min(ahead, values[n] - pivot);
    pivot += warp_least(ahead) + 1;
  }
#pragma unroll 1
  for (; excess > 0; --excess) {
    Bits behind = pivot - values[0] - 1;
#pragma unroll
    for (int n = 1; n < N; ++n) behind = min(behind, pivot - values[n] - 1);
    pivot -= warp_least(behind) + 1;
  }
  if (__any_sync(FULL, pivot > top)) return false;
  if (spread.keep_nearer(pivot, candidates, lower_lanes) != wanted) return false;
  end = pivot;
  return true;
}

// The same for `count` candidates that are gathered in shared memory.
template <int N>
__device__ inline bool choose_nearest(int wanted, Candidate* candidates, int count, Bits pace, Bits& end,
                                      u32 lower_lanes) {
  Spread<N> spread;
  spread.template read<0>(candidates, count);
  if (end == 0) end = first_pivot(spread.values, FARTHEST + 1);
  return choose_nearest(wanted, spread, FARTHEST + 1, pace, end, candidates, lower_lanes);
}

// Choose among `count` gathered candidates, more than top_k and at least `32 * FILLED`, and move the chosen ones to the
// front. `end` becomes where they end; until then it is where those of another query do, or 0. `pace` is as in
// `border_after`.
template <int FILLED, int N>
__device__ inline void choose_gathered(const Args& a, Candidate* candidates, int count, Bits pace, Bits& end) {
  constexpr Bits TOP = FARTHEST + 1;
  Spread<N> spread;
  spread.template read<FILLED>(candidates, count);
  Bits (&values)[N] = spread.values;
  if (end == 0) end = first_pivot(values, TOP);
  const Border<Bits> border = border_after(a.top_k, values, TOP, end, pace);
  end = border.value;
  Bits limit = border.value;
  if (border.below < a.top_k) {         // of those at the border the most recent are chosen, too
    const int missing = a.top_k - border.below;
    u32 ages[N];
    int equal = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const bool is = values[n] == border.value;
      ages[n] = u32(NO_KEY) + !is - (is ? spread.positions[n] : 0);
      equal += is;
    }
    u32 oldest = u32(NO_KEY) + 1;
    if (__reduce_add_sync(FULL, equal) > missing)
      oldest = border_after(missing, ages, oldest, first_pivot(ages, oldest), 1u).value;
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (values[n] == border.value && ages[n] >= oldest) values[n] = TOP;
    limit = border.value + 1;
  }
  spread.keep_nearer(limit, candidates, (1u << lane()) - 1);
}
