// Choosing where ranges are short. Candidates stay in registers until they are chosen, or are gathered in shared
// memory. The chosen ones are left at its front, in the order of visits, which later keys do not change.
//
// Registers are scarce: nothing is called in loops over queries, and little is kept from one to the next. Nor do these
// loops look for a first guess, or leave their own loops early: the compiler would take it that lanes part there, and
// have each exchange between them check whether they did.
#pragma once
#include "candidates.cuh"

static_assert(MOST_GATHERED == 8 * 32);

// What a query's candidates are found by.
template <int CURVES> struct NearQuery {
  Coordinate x[DK];
  int visible;
  int lengths[CURVES];
  PlaceRange places[MOST_CURVES - 1];

  __device__ explicit NearQuery(const Chooser& query) : visible(query.visible), places{} {
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = query.x[c];
#pragma unroll
    for (int curve = 0; curve < CURVES; ++curve) lengths[curve] = query.lengths[curve];
#pragma unroll
    for (int curve = 0; curve + 1 < CURVES; ++curve) places[curve] = query.places[curve];
  }
};

// A short range on one curve: the lane's entries, a block of 32 after another. The first blocks are on their way.
template <int CURVE, int BLOCKS> struct Near {
  Entry<CURVE> entries[BLOCKS];

  static __device__ void load(Entry<CURVE>& entry, const Chooser& query, int n, int own) {
    entry.load(query.points[CURVE] + u32(own) + n * BLOCK, query.earlier[CURVE] + u32(own) * CURVE + n * BLOCK * CURVE);
  }
  // Behind the range are other entries, or those that pad the table.
  __device__ void start(const Chooser& query, int own) {
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) load(entries[n], query, n, own);
  }
  // Keep the candidates in registers.
  template <int CURVES, int N>
  __device__ void spread(Spread<N>& spread, const NearQuery<CURVES>& query, int own) const {
    const int length = query.lengths[CURVE] - own;
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) {
      const Point& point = entries[n].point;
      const bool candidate =
          (n * BLOCK < length) & (point.position < query.visible) & entries[n].is_first(query.places);
      Bits& value = spread.values[CURVE * BLOCKS + n];
      value = NOT_FINITE;
      if (candidate) value = Bits(distance_bits(squared_distance(query.x, point.x)));
      spread.positions[CURVE * BLOCKS + n] = point.position;
    }
  }
  // Gather the candidates behind `count` others; returns how many they are then.
  template <int CURVES>
  __device__ int gather(const Chooser& chooser, const NearQuery<CURVES>& query, Candidate* candidates, int count,
                        Bits within, int own, u32 lower_lanes) const {
    const auto take = [&](const Entry<CURVE>& entry, int n) {
      const Point& point = entry.point;
      const Bits bits = Bits(distance_bits(squared_distance(query.x, point.x)));
      const bool near = (n * BLOCK + own < query.lengths[CURVE]) & (point.position < query.visible) & (bits <= within) &
                        entry.is_first(query.places);
      const u32 vote = __ballot_sync(FULL, near);
      if (near) candidates[count + __popc(vote & lower_lanes)] = Candidate{bits, point.position};
      count += __popc(vote);
    };
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) take(entries[n], n);
#pragma unroll 1
    for (int n = BLOCKS; n * BLOCK < query.lengths[CURVE]; ++n) {
      Entry<CURVE> entry;
      load(entry, chooser, n, own);
      take(entry, n);
    }
    return count;
  }
};

// The ranges of a query on all curves.
template <int CURVES, int BLOCKS> struct NearRanges {
  Near<0, BLOCKS> first;
  Near<1, BLOCKS> second;
  Near<2, BLOCKS> third;

  __device__ void start(const Chooser& query, int own) {
    first.start(query, own);
    if constexpr (CURVES > 1) second.start(query, own);
    if constexpr (CURVES > 2) third.start(query, own);
  }
  __device__ void spread(Spread<CURVES * BLOCKS>& to, const NearQuery<CURVES>& query, int own) const {
    first.spread(to, query, own);
    if constexpr (CURVES > 1) second.spread(to, query, own);
    if constexpr (CURVES > 2) third.spread(to, query, own);
  }
  // Load and spread. All three curves at once would take too many registers, here and where they are gathered.
  __device__ void load(Spread<CURVES * BLOCKS>& to, const Chooser& chooser, int own) {
    const NearQuery<CURVES> query(chooser);
    first.start(chooser, own);
    if constexpr (CURVES > 1) second.start(chooser, own);
    __syncwarp();                       // the compiler must not put loads off
    first.spread(to, query, own);
    if constexpr (CURVES > 2) third.start(chooser, own);
    __syncwarp();
    if constexpr (CURVES > 1) second.spread(to, query, own);
    if constexpr (CURVES > 2) third.spread(to, query, own);
  }
  // Load and gather; returns how many candidates there are.
  __device__ int gather(const Chooser& chooser, const NearQuery<CURVES>& query, Candidate* candidates, Bits within,
                        int own, u32 lower_lanes) {
    first.start(chooser, own);
    if constexpr (CURVES > 1) second.start(chooser, own);
    __syncwarp();
    int count = first.gather(chooser, query, candidates, 0, within, own, lower_lanes);
    if constexpr (CURVES > 2) third.start(chooser, own);
    __syncwarp();
    if constexpr (CURVES > 1) count = second.gather(chooser, query, candidates, count, within, own, lower_lanes);
    if constexpr (CURVES > 2) count = third.gather(chooser, query, candidates, count, within, own, lower_lanes);
    __syncwarp();
    return count;
  }
};

// Take those of the warp's list that are in `some`: the list is then of the others.
__device__ inline u32 take_turns(Gathered& memory, u32 some) {
  const u32 turns = memory.left & some;
  __syncwarp();                         // all lanes have read
  if (lane() == 0) memory.left &= ~some;
  __syncwarp();
  return turns;
}

// Leave where the last query's nearest end.
__device__ inline void leave_end(Gathered& memory, Bits end) {
  __syncwarp();                         // all lanes have read
  if (lane() == 0) memory.end = end;
  __syncwarp();
}

__device__ inline const Chooser& next_query(const Gathered& memory, u32 turns) {
  return memory.queries[__ffs(int(turns)) - 1];
}

// Choose for the queries of the warp's list whose ranges have up to two blocks; those of the next query are on their
// way meanwhile. `emit(query, count, lane)` writes the chosen ones. Left in the list are those with several candidates
// at the border, or too few of them.
template <int CURVES, class Emit> __device__ inline void choose_ahead(const Args& a, Gathered& memory, Emit emit) {
  int own = lane();
  u32 lower_lanes = (1u << own) - 1, turns = take_turns(memory, memory.ahead);
  keep(own);
  keep(lower_lanes);
  if (turns == 0) return;
  NearRanges<CURVES, AHEAD_BLOCKS> ranges;
  const Chooser* next = &next_query(memory, turns);
  ranges.start(*next, own);
  Spread<CURVES * AHEAD_BLOCKS> spread;
  ranges.spread(spread, NearQuery<CURVES>(*next), own);
  Bits end = first_pivot(spread.values, FARTHEST);
#pragma unroll 1
  while (turns) {
    const Chooser& query = *next;
    const u32 turn = turns & -turns;
    turns -= turn;
    ranges.spread(spread, NearQuery<CURVES>(query), own);
    if (turns) {
      next = &next_query(memory, turns);
      ranges.start(*next, own);
    }
    if (choose_nearest(a.top_k, spread, FARTHEST, memory.pace, end, memory.candidates, lower_lanes))
      emit(query, a.top_k, own);
    else if (own == 0) memory.left |= turn;
  }
  leave_end(memory, end);
}

// Likewise for those whose ranges have up to three blocks, which leave no registers for the next ones.
template <int CURVES, class Emit> __device__ inline void choose_directly(const Args& a, Gathered& memory, Emit emit) {
  int own = lane();
  u32 lower_lanes = (1u << own) - 1, turns = take_turns(memory, memory.direct);
  keep(own);
  keep(lower_lanes);
  if (turns == 0) return;
  NearRanges<CURVES, DIRECT_BLOCKS> ranges;
  Spread<CURVES * DIRECT_BLOCKS> spread;
  Bits end = memory.end;
  if (end == 0) {
    ranges.load(spread, next_query(memory, turns), own);
    end = first_pivot(spread.values, FARTHEST);
  }
#pragma unroll 1
  for (; turns; turns &= turns - 1) {
    const Chooser& query = next_query(memory, turns);
    ranges.load(spread, query, own);
    if (choose_nearest(a.top_k, spread, FARTHEST, memory.pace, end, memory.candidates, lower_lanes))
      emit(query, a.top_k, own);
    else if (own == 0) memory.left |= turns & -turns;
  }
  leave_end(memory, end);
}

// Likewise for those whose ranges have up to six blocks, whose candidates are gathered.
template <int CURVES, class Emit> __device__ inline void choose_gathering(const Args& a, Gathered& memory, Emit emit) {
  int own = lane();
  u32 lower_lanes = (1u << own) - 1, turns = take_turns(memory, memory.near);
  keep(own);
  keep(lower_lanes);
  if (turns == 0) return;
  Bits end = memory.end;
  NearRanges<CURVES, 3> ranges;
#pragma unroll 1
  for (; turns; turns &= turns - 1) {
    const Chooser& chooser = next_query(memory, turns);
    const NearQuery<CURVES> query(chooser);
    // Those that are much farther than the last query's nearest are gathered only if too few remain.
    Bits within = end == 0 || end + REACH >= FARTHEST ? ANY : end + REACH;
    int count;
#pragma unroll 1
    for (;;) {
      count = ranges.gather(chooser, query, memory.candidates, within, own, lower_lanes);
      if (count > a.top_k || within == ANY) break;
      within = ANY;
    }
    if (count > a.top_k) {
      const bool few = count <= 96;
      const bool chosen = few ? choose_nearest<3>(a.top_k, memory.candidates, count, memory.pace, end, lower_lanes)
                              : choose_nearest<8>(a.top_k, memory.candidates, count, memory.pace, end, lower_lanes);
      count = chosen ? a.top_k : 0;
    }
    if (count > 0) {
      emit(chooser, count, own);
      fill_list(a, chooser, count, own);
      __syncwarp();
    } else if (own == 0) {
      memory.left |= turns & -turns;
    }
  }
  leave_end(memory, end);
}

template <int CURVES, class Emit> __device__ inline void choose_near(const Args& a, Gathered& memory, Emit emit) {
  choose_ahead<CURVES>(a, memory, emit);
  choose_directly<CURVES>(a, memory, emit);
  choose_gathering<CURVES>(a, memory, emit);
}
