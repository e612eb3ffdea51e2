// Which keys a query attends to: the union of its windows, each key once, cut to the nearest top_k where it is larger.
// A warp takes queries that are neighbours in code order, one after another. Where ranges are short, candidates stay in
// registers until they are chosen; else, and where several are at the border, they are gathered in shared memory first.
// Candidates that are too many for that are found again and again, digit by digit.
#pragma once
#include "digits.cuh"
#include "nearest.cuh"

constexpr int MOST_CURVES = 3;
constexpr int MOST_BLOCKS = 6;          // of 32 entries in a range that is short
constexpr int SHORTEST_BLOCKS = 2;      // and of those that windows of one block have mostly
constexpr int TURNS = 16;               // queries of a warp, looked up together
constexpr int MOST_GATHERED = 256;      // candidates of a query in shared memory
constexpr int CHOOSING_WARPS = 8;       // of a block
constexpr int CHOOSING_BLOCKS = sizeof(Coordinate) == 8 ? 1 : 4;  // of a multiprocessor, at least

// A query with its ranges on all curves. Addresses are worked out for the warp's queries together, one in each lane.
struct alignas(16) Chooser {
  Coordinate x[DK];
  int visible;
  int2 ranges[MOST_CURVES];             // on each curve, first entry and length; 0 on curves that there are not
  const Point* points[MOST_CURVES];     // of the first entries
  const int* ranks[MOST_CURVES];        // and their places on the curves before
  i64 table;                            // first entry of its row, among all (batch, kv_heads, entries)
  i64 at;
  int* row;                             // its list, or its row of an array
  float* distances;                     // of the keys in it, where they are asked for
  int start;                            // of the sequence
  int unused[4];                        // so that lanes that write do so in different banks
};

// What a warp keeps in shared memory.
struct alignas(16) Gathered {
  Chooser queries[TURNS];
  Candidate candidates[MOST_GATHERED];
  Bits pace;                            // between distances, for each key too few or too many, see nearest.cuh
};

// Look up the warp's queries; returns how many there are.
__device__ inline int look_up(const Args& a, Gathered& memory) {
  const i64 all = i64(a.batch) * a.q_heads * a.q_len;
  const i64 first = i64(blockIdx.x) * (CHOOSING_WARPS * TURNS) + uniform_warp_of_block() * TURNS;
  if (lane() < TURNS && first + lane() < all) {
    const Query query = query_in_slot(a, first + lane());
    const Sequence& s = sequences_of(a)[query.sequence];
    Chooser& chooser = memory.queries[lane()];
    const Coordinate* x = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) chooser.x[c] = x[c];
    chooser.table = query.head_row * a.entries + s.entry;
#pragma unroll
    for (int curve = 0; curve < MOST_CURVES; ++curve) {
      const int2 range = curve < a.num_curves ? static_cast<const int2*>(a.ranges[curve])[query.at] : int2{0, 0};
      const i64 entry = chooser.table + range.x;
      chooser.ranges[curve] = int2{range.x, range.y - range.x};
      chooser.points[curve] = static_cast<const Point*>(a.points[curve]) + entry;
      chooser.ranks[curve] = static_cast<const int*>(a.earlier[curve]) + entry * curve;
    }
    chooser.visible = int(query.visible);
    chooser.at = query.at;
    chooser.row = static_cast<int*>(a.indices) + query.at * a.top_k;
    chooser.distances = static_cast<float*>(a.distances) + query.at * a.top_k;
    chooser.start = s.start;
  }
  memory.pace = Bits(PACE / float(a.top_k));
  __syncwarp();
  return int(min(max(all - first, i64(0)), i64(TURNS)));
}

// An entry of a curve's range on its way to a lane.
template <int CURVE> struct Entry {
  Point point;
  struct alignas(4 * (CURVE > 0 ? CURVE : 1)) Earlier { int ranks[CURVE > 0 ? CURVE : 1]; } earlier;

  __device__ void load(const Point* point_at, const int* ranks_at) {
    point = load_here<Point>(point_at);
    if (CURVE > 0) earlier = load_here<Earlier>(ranks_at);
  }
  // Whether no curve before has the key.
  __device__ bool is_first(const int2* ranges) const {
    bool first = true;
#pragma unroll
    for (int curve = 0; curve < CURVE; ++curve)
      first = first & (u32(earlier.ranks[curve] - ranges[curve].x) >= u32(ranges[curve].y));
    return first;
  }
};

// Visit one curve's candidates that no curve before it has, 32 entries at a time: all lanes call
// `f(position, distance, candidate)` together. The skip index tells which blocks are worth a visit.
template <int CURVE, class F> __device__ inline void visit_range(const Args& a, const Chooser& query, F f) {
  const int2 range = {query.ranges[CURVE].x, query.ranges[CURVE].x + query.ranges[CURVE].y};
  const Point* points = static_cast<const Point*>(a.points[CURVE]) + query.table;
  const int* ranks = static_cast<const int*>(a.earlier[CURVE]) + query.table * CURVE;
  const int* fine = static_cast<const int*>(a.fine[CURVE]) + query.table / BLOCK;
  constexpr int TOGETHER = 3;           // blocks on their way at once
  for (int group = range.x / BLOCK; group * BLOCK < range.y; group += 32) {
    const int block = group + lane();
    const bool sees = block * BLOCK < range.y && fine[block] < query.visible;
    for (u32 left = __ballot_sync(FULL, sees); left;) {
      Entry<CURVE> entries[TOGETHER];
      int places[TOGETHER], count = 0;  // of the lane's entries
#pragma unroll
      for (int n = 0; n < TOGETHER; ++n) {
        places[n] = left ? (group + __ffs(int(left)) - 1) * BLOCK + lane() : places[0];
        count += left != 0;
        left &= left - 1;               // 0 stays 0
        const int own = min(max(places[n], range.x), range.y - 1);
        entries[n].load(points + own, ranks + i64(own) * CURVE);
      }
      __syncwarp();                     // the compiler must not put loads off
#pragma unroll
      for (int n = 0; n < TOGETHER; ++n) {
        if (n >= count) break;
        const Point& point = entries[n].point;
        const bool inside = (places[n] >= range.x) & (places[n] < range.y);
        f(point.position, squared_distance(query.x, point.x),
          inside & (point.position < query.visible) & entries[n].is_first(query.ranges));
      }
    }
  }
}

template <class F> __device__ inline void visit_candidates(const Args& a, const Chooser& query, F f) {
  visit_range<0>(a, query, f);
  if (a.num_curves > 1) visit_range<1>(a, query, f);
  if (a.num_curves > 2) visit_range<2>(a, query, f);
}

// Gather the candidates of a query; returns how many they are, with those that find no room.
__device__ inline int gather(const Args& a, const Chooser& query, Gathered& memory) {
  int count = 0;
  visit_candidates(a, query, [&](int position, Coordinate distance, bool candidate) {
    const u32 vote = __ballot_sync(FULL, candidate);
    const int place = count + below_lane(vote);
    if (candidate && place < MOST_GATHERED)
      memory.candidates[place] = Candidate{Bits(distance_bits(distance)), position};
    count += __popc(vote);
  });
  return count;
}

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

// Those of a warp's queries, as bits, for which something else is to be done.
struct Undone {
  u32 longer = 0;                       // with longer ranges
  u32 others = 0;                       // with too few candidates, or several at the border
};

// The ranges of a query on all curves.
template <int CURVES, bool SHORTEST> struct NearRanges {
  static constexpr int BLOCKS = SHORTEST ? SHORTEST_BLOCKS : 3;
  Near<0, BLOCKS> first;
  Near<1, BLOCKS> second;
  Near<2, BLOCKS> third;

  // Start to load them; the first alone where they are not the shortest, since there are no more registers.
  __device__ void start(const Chooser& query, int own) {
    first.start(query, own);
    if constexpr (CURVES > 1 && SHORTEST) second.start(query, own);
    if constexpr (CURVES > 2 && SHORTEST) third.start(query, own);
  }
  __device__ void spread(Spread<CURVES * BLOCKS>& to, const Coordinate* x, int visible, const int2* ranges,
                         int own) const {
    first.spread(to, x, visible, ranges, own);
    if constexpr (CURVES > 1) second.spread(to, x, visible, ranges, own);
    if constexpr (CURVES > 2) third.spread(to, x, visible, ranges, own);
  }
  // Gather candidates; returns how many there are.
  __device__ int gather(const Chooser& query, Candidate* candidates, Bits within, const Coordinate* x, int visible,
                        const int2* ranges, int own, u32 lower_lanes) {
    if constexpr (CURVES > 1) second.start(query, own);
    __syncwarp();                       // these loads are not put off
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

// Choose among the candidates of those of the warp's queries whose ranges are short. The chosen ones are left at the
// front of the warp's memory, in the order of visits, which later keys do not change, and `emit(query, lane)` writes
// them. `end` is where the last query's end, or 0. Candidates of the shortest ranges stay in registers. Others are gathered,
// but those that are much farther than `end` only if too few remain. The next query's entries are on their way meanwhile.
template <int CURVES, bool SHORTEST, class Emit>
__device__ inline void choose_near(const Args& a, Gathered& memory, u32 turns, Bits& end, Undone& undone, Emit emit) {
  int own = lane();
  u32 lower_lanes = (1u << own) - 1;
  keep(own);
  keep(lower_lanes);
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
    const bool fits = longest <= (SHORTEST ? SHORTEST_BLOCKS : MOST_BLOCKS) * BLOCK;
    Bits border = end;
    bool chosen = false;
    if constexpr (SHORTEST) {
      Spread<CURVES * SHORTEST_BLOCKS> spread;
      entries.spread(spread, x, visible, ranges, own);
      if (turns) entries.start(memory.queries[__ffs(int(turns)) - 1], own);
      __syncwarp();                     // loads are not put off
      if (fits && visible > a.top_k)
        chosen = choose_nearest(a.top_k, spread, FARTHEST, memory.pace, border, memory.candidates, lower_lanes);
    } else {
      int count = 0;
      if (fits) {
        Bits within = end == 0 || end + REACH >= FARTHEST ? ANY : end + REACH;
#pragma unroll 1
        for (;;) {
          entries.start(query, own);
          count = entries.gather(query, memory.candidates, within, x, visible, ranges, own, lower_lanes);
          if (count > a.top_k || within == ANY) break;
          within = ANY;
        }
      }
      constexpr int MOST = MOST_GATHERED / 32;
      if (count > a.top_k)
        chosen = count <= 96
                     ? choose_quickly<3>(a.top_k, memory.candidates, count, memory.pace, border, lower_lanes)
                     : choose_quickly<MOST>(a.top_k, memory.candidates, count, memory.pace, border, lower_lanes);
    }
    if (chosen) {
      end = border;
      emit(query, own);
      __syncwarp();
    } else {
      if (fits) undone.others |= turn;
      else undone.longer |= turn;
    }
  }
}

template <bool SHORTEST, class Emit>
__device__ inline void choose_near(const Args& a, Gathered& memory, u32 turns, Bits& end, Undone& undone, Emit emit) {
  if (a.num_curves == 1) choose_near<1, SHORTEST>(a, memory, turns, end, undone, emit);
  else if (a.num_curves == 2) choose_near<2, SHORTEST>(a, memory, turns, end, undone, emit);
  else choose_near<3, SHORTEST>(a, memory, turns, end, undone, emit);
}

// Choose among the candidates of any query, which are gathered; returns how many are chosen, or -1 where there are too
// many to gather.
__device__ inline int choose_far(const Args& a, const Chooser& query, Gathered& memory, Bits& end) {
  const int count = gather(a, query, memory);
  __syncwarp();
  if (count > MOST_GATHERED) return -1;
  if (count <= a.top_k) return count;
  if (count <= 64) choose_gathered<0, 2>(a, memory.candidates, count, memory.pace, end);
  else if (count <= 128) choose_gathered<2, 4>(a, memory.candidates, count, memory.pace, end);
  else choose_gathered<4, MOST_GATHERED / 32>(a, memory.candidates, count, memory.pace, end);
  return a.top_k;
}

// Write the list of a query with too many candidates to gather, in the order of visits; returns its length. The last
// one that is kept is found in counters in the warp's memory. A call of its own: it takes no registers elsewhere.
__device__ __noinline__ int list_far(const Args& a, const Chooser& query, Gathered& memory) {
  const Cut cut = cut_after(a.top_k, reinterpret_cast<int*>(memory.candidates), [&](auto offer) {
    visit_candidates(a, query, [&](int position, Coordinate distance, bool candidate) {
      if (candidate) offer(comparable(distance), position);
    });
  });
  int* row = query.row;
  int count = 0;
  visit_candidates(a, query, [&](int position, Coordinate distance, bool candidate) {
    const bool kept = candidate && before_cut(comparable(distance), position, cut.distance, cut.position);
    const u32 vote = __ballot_sync(FULL, kept);
    if (kept) row[count + below_lane(vote)] = query.start + position;
    count += __popc(vote);
  });
  __syncwarp();
  return count;
}

// Name nothing behind the `count` keys of a list.
__device__ inline void finish_list(const Args& a, const Chooser& query, int count) {
#pragma unroll 1
  for (int place = count + lane(); place < a.top_k; place += 32) query.row[place] = -1;
}

// Choose for all of the warp's queries. `emit(query, count, lane)` writes the list of those `count` keys that are at the front
// of the warp's memory, `emit_far(query, count)` completes one that is written.
template <class Emit, class EmitFar>
__device__ inline void choose_all(const Args& a, Gathered& memory, Emit emit, EmitFar emit_far) {
  u32 turns = (1u << look_up(a, memory)) - 1;
  Bits end = 0;
  if constexpr (sizeof(Bits) == 4) {
    const auto emit_near = [&](const Chooser& query, int own) { emit(query, a.top_k, own); };
    Undone undone = {turns, 0};
    if (i64(a.window) * a.num_curves <= MOST_GATHERED) {  // the most that they can be
      if (a.window <= BLOCK) {
        undone.longer = 0;
        choose_near<true>(a, memory, turns, end, undone, emit_near);
      }
      turns = undone.longer;
      undone.longer = 0;
      choose_near<false>(a, memory, turns, end, undone, emit_near);
    }
    turns = undone.longer | undone.others;
  }
  for (; turns; turns &= turns - 1) {
    const Chooser& query = memory.queries[__ffs(int(turns)) - 1];
    int count = choose_far(a, query, memory, end);
    if (count < 0) {
      count = list_far(a, query, memory);
      emit_far(query, count);
    } else {
      emit(query, count, lane());
    }
    finish_list(a, query, count);
    __syncwarp();
  }
}
