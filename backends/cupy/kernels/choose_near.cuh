// Choosing where ranges are short. Candidates of the shortest stay in registers until they are chosen; others are
// gathered in shared memory. Nothing is called and little is kept from query to query: registers are what is scarce.
#pragma once
#include "candidates.cuh"

constexpr int SHORTEST_BLOCKS = 2;      // of 32 entries: windows of 32 have mostly no more
constexpr int SHORT_BLOCKS = 6;
static_assert(MOST_GATHERED == 8 * 32);

// A short range on one curve: the lane's entries, a block of 32 after another. The first blocks are on their way.
template <int CURVE, int BLOCKS> struct Near {
  Entry<CURVE> entries[BLOCKS];

  static __device__ void load(Entry<CURVE>& entry, const Chooser& query, int n, int own) {
    entry.load(query.points[CURVE] + u32(own) + n * BLOCK, query.ranks[CURVE] + u32(own) * CURVE + n * BLOCK * CURVE);
  }
  // Behind the range are other entries, or those that pad the table.
  __device__ void start(const Chooser& query, int own) {
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) load(entries[n], query, n, own);
  }
  // Keep the candidates in registers; `x` and `visible` are the query's.
  template <int N>
  __device__ void spread(Spread<N>& spread, const Coordinate* x, int visible, const int2* ranges, int own) const {
    const int length = ranges[CURVE].y - own;
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) {
      const Point& point = entries[n].point;
      const bool candidate = (n * BLOCK < length) & (point.position < visible) & entries[n].is_first(ranges);
      Bits& value = spread.values[CURVE * BLOCKS + n];
      value = NOT_FINITE;
      if (candidate) value = Bits(distance_bits(squared_distance(x, point.x)));
      spread.positions[CURVE * BLOCKS + n] = point.position;
    }
  }
  // Gather the candidates behind `count` others; returns how many they are then.
  __device__ int gather(const Chooser& query, Candidate* candidates, int count, Bits within, const Coordinate* x,
                        int visible, const int2* ranges, int own, u32 lower_lanes) const {
    const auto take = [&](const Entry<CURVE>& entry, int n) {
      const Point& point = entry.point;
      const Bits bits = Bits(distance_bits(squared_distance(x, point.x)));
      const bool near = (n * BLOCK + own < ranges[CURVE].y) & (point.position < visible) & (bits <= within) &
                        entry.is_first(ranges);
      const u32 vote = __ballot_sync(FULL, near);
      if (near) candidates[count + __popc(vote & lower_lanes)] = Candidate{bits, point.position};
      count += __popc(vote);
    };
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) take(entries[n], n);
#pragma unroll 1
    for (int n = BLOCKS; n * BLOCK < ranges[CURVE].y; ++n) {
      Entry<CURVE> entry;
      load(entry, query, n, own);
      take(entry, n);
    }
    return count;
  }
};

// The ranges of a query on all curves.
template <int CURVES, bool SHORTEST> struct NearRanges {
  static constexpr int BLOCKS = SHORTEST ? SHORTEST_BLOCKS : 3;
  Near<0, BLOCKS> first;
  Near<1, BLOCKS> second;
  Near<2, BLOCKS> third;

  __device__ void start(const Chooser& query, int own) {
    first.start(query, own);
    if constexpr (CURVES > 1) second.start(query, own);
    if constexpr (CURVES > 2) third.start(query, own);
  }
  __device__ void spread(Spread<CURVES * BLOCKS>& to, const Coordinate* x, int visible, const int2* ranges,
                         int own) const {
    first.spread(to, x, visible, ranges, own);
    if constexpr (CURVES > 1) second.spread(to, x, visible, ranges, own);
    if constexpr (CURVES > 2) third.spread(to, x, visible, ranges, own);
  }
  // Load and gather; returns how many candidates there are. All three curves at once would take too many registers.
  __device__ int gather(const Chooser& query, Candidate* candidates, Bits within, const Coordinate* x, int visible,
                        const int2* ranges, int own, u32 lower_lanes) {
    first.start(query, own);
    if constexpr (CURVES > 1) second.start(query, own);
    __syncwarp();                       // the compiler must not put loads off
    int count = first.gather(query, candidates, 0, within, x, visible, ranges, own, lower_lanes);
    if constexpr (CURVES > 2) third.start(query, own);
    __syncwarp();
    if constexpr (CURVES > 1)
      count = second.gather(query, candidates, count, within, x, visible, ranges, own, lower_lanes);
    if constexpr (CURVES > 2)
      count = third.gather(query, candidates, count, within, x, visible, ranges, own, lower_lanes);
    __syncwarp();
    return count;
  }
};

// Choose for those queries of the warp's list whose ranges are short, or the shortest, unless several candidates are at
// the border or too few in the shortest ranges; the list is then of the others. The chosen ones are left at the front of
// the warp's memory, in the order of visits, which later keys do not change, and `emit(query, count, lane)` writes them.
// `end` is where the last query's end, or 0.
template <int CURVES, bool SHORTEST, class Emit>
__device__ inline void choose_near(const Args& a, Gathered& memory, Bits& end, Emit emit) {
  int own = lane();
  u32 lower_lanes = (1u << own) - 1, turns = memory.left;
  keep(own);
  keep(lower_lanes);
  __syncwarp();
  if (own == 0) memory.left = 0;
  NearRanges<CURVES, SHORTEST> entries;
  if (SHORTEST && turns) entries.start(memory.queries[__ffs(int(turns)) - 1], own);
#pragma unroll 1
  while (turns) {
    const u32 turn = turns & -turns;
    const Chooser& query = memory.queries[__ffs(int(turns)) - 1];
    turns -= turn;
    int2 ranges[MOST_CURVES] = {};
    int longest = 0;
#pragma unroll
    for (int curve = 0; curve < CURVES; ++curve) {
      ranges[curve] = query.ranges[curve];
      longest = max(longest, ranges[curve].y);
    }
    Coordinate x[DK];
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = query.x[c];
    const int visible = query.visible;
    int count = 0;                      // of the keys that are chosen
    if constexpr (SHORTEST) {
      Spread<CURVES * SHORTEST_BLOCKS> spread;
      entries.spread(spread, x, visible, ranges, own);
      if (turns) entries.start(memory.queries[__ffs(int(turns)) - 1], own);  // on their way meanwhile
      __syncwarp();
      if (longest <= SHORTEST_BLOCKS * BLOCK && visible > a.top_k &&
          choose_nearest(a.top_k, spread, FARTHEST, memory.pace, end, memory.candidates, lower_lanes))
        count = a.top_k;
    } else if (longest <= SHORT_BLOCKS * BLOCK) {
      // Those that are much farther than the last query's nearest are gathered only if too few remain.
      Bits within = end == 0 || end + REACH >= FARTHEST ? ANY : end + REACH;
#pragma unroll 1
      for (;;) {
        count = entries.gather(query, memory.candidates, within, x, visible, ranges, own, lower_lanes);
        if (count > a.top_k || within == ANY) break;
        within = ANY;
      }
      if (count > a.top_k) {
        const bool few = count <= 96;
        const bool chosen = few ? choose_nearest<3>(a.top_k, memory.candidates, count, memory.pace, end, lower_lanes)
                                : choose_nearest<8>(a.top_k, memory.candidates, count, memory.pace, end, lower_lanes);
        count = chosen ? a.top_k : 0;
      }
    }
    if (count > 0) {
      emit(query, count, own);
      fill_list(a, query, count, own);
      __syncwarp();
    } else if (own == 0) {
      memory.left |= turn;
    }
  }
  __syncwarp();
}

template <bool SHORTEST, class Emit>
__device__ inline void choose_near(const Args& a, Gathered& memory, Bits& end, Emit emit) {
  if (a.num_curves == 1) choose_near<1, SHORTEST>(a, memory, end, emit);
  else if (a.num_curves == 2) choose_near<2, SHORTEST>(a, memory, end, emit);
  else choose_near<3, SHORTEST>(a, memory, end, emit);
}
