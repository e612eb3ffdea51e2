// Which keys a query attends to: the union of its windows, each key once, cut to the nearest top_k where it is larger.
// A warp takes queries that are neighbours in code order, one after another. It gathers the candidates of one in shared
// memory and chooses among them there. Most are farther than another query's nearest suggest and are left out at once;
// if too few remain, all are gathered. Candidates that are too many are found again and again, digit by digit.
#pragma once
#include "digits.cuh"
#include "nearest.cuh"

constexpr int MOST_CURVES = 3;
constexpr int TURNS = 16;               // queries of a warp, looked up together
constexpr int MOST_GATHERED = 256;      // candidates of a query in shared memory
constexpr int CHOOSING_WARPS = 8;       // of a block
constexpr int CHOOSING_BLOCKS = sizeof(Coordinate) == 8 ? 1 : 4;  // of a multiprocessor, at least

// A query with its ranges on all curves.
struct Chooser {
  Coordinate x[DK];
  int2 ranges[MOST_CURVES];             // on each curve, first entry and length; 0 on curves that there are not
  i64 at;
  i64 table;                            // first entry of its row, among all (batch, kv_heads, entries)
  int visible;
  int start;                            // of the sequence
};

// What a warp keeps in shared memory.
struct alignas(16) Gathered {
  Chooser queries[TURNS];
  Candidate candidates[MOST_GATHERED];
  Bits pace;                            // between distances, for each key too few or too many, see nearest.cuh
};

// Look up the warp's queries; returns how many there are. The warps of a block take turns, so that they read much the
// same entries at the same time.
__device__ inline int look_up(const Args& a, Gathered& memory) {
  const i64 all = i64(a.batch) * a.q_heads * a.q_len;
  const i64 first = i64(blockIdx.x) * (CHOOSING_WARPS * TURNS) + uniform_warp_of_block();
  if (lane() < TURNS && first + lane() * CHOOSING_WARPS < all) {
    const Query query = query_in_slot(a, first + lane() * CHOOSING_WARPS);
    const Sequence& s = sequences_of(a)[query.sequence];
    Chooser& chooser = memory.queries[lane()];
    const Coordinate* x = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) chooser.x[c] = x[c];
#pragma unroll
    for (int curve = 0; curve < MOST_CURVES; ++curve) {
      const int2 range = curve < a.num_curves ? static_cast<const int2*>(a.ranges[curve])[query.at] : int2{0, 0};
      chooser.ranges[curve] = int2{range.x, range.y - range.x};
    }
    chooser.at = query.at;
    chooser.table = query.head_row * a.entries + s.entry;
    chooser.visible = int(query.visible);
    chooser.start = s.start;
  }
  memory.pace = Bits(PACE / float(a.top_k));
  __syncwarp();
  return int(min(max((all - first + CHOOSING_WARPS - 1) / CHOOSING_WARPS, i64(0)), i64(TURNS)));
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

// Gather the candidates of a query with long ranges, full of keys that it does not see, or with wide windows: all of
// them, since a second visit would take long.
__device__ __noinline__ int gather_far(const Args& a, const Chooser& query, Gathered& memory) {
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

constexpr int FEW = 5, FIRST = 3;       // blocks of a range that is not long, and those that are loaded in any case

// A short range on one curve, on its way.
template <int CURVE> struct Near {
  const Point* points;
  const int* ranks;
  int length;
  Entry<CURVE> entries[FIRST];

  // Behind the range are other entries, or those that pad the table.
  __device__ void load(Entry<CURVE>& entry, int n) {
    entry.load(points + n * BLOCK, ranks + n * BLOCK * CURVE);
  }
  __device__ void start(const Args& a, i64 table, const int2* ranges) {
    const i64 first = table + ranges[CURVE].x + lane();
    points = static_cast<const Point*>(a.points[CURVE]) + first;
    ranks = static_cast<const int*>(a.earlier[CURVE]) + first * CURVE;
    length = ranges[CURVE].y;
#pragma unroll
    for (int n = 0; n < FIRST; ++n) load(entries[n], n);
  }
  // Gather the candidates behind `count` others; returns how many they are then. `x` and `visible` are the query's.
  __device__ int gather(Gathered& memory, int count, Bits within, const Coordinate* x, int visible,
                        const int2* ranges) {
    const auto take = [&](const Entry<CURVE>& entry, int n) {
      const Point& point = entry.point;
      const Bits bits = Bits(distance_bits(squared_distance(x, point.x)));
      const bool near = (n * BLOCK < length - lane()) & (point.position < visible) & (bits <= within) &
                        entry.is_first(ranges);
      const u32 vote = __ballot_sync(FULL, near);
      if (near) memory.candidates[count + below_lane(vote)] = Candidate{bits, point.position};
      count += __popc(vote);
    };
#pragma unroll
    for (int n = 0; n < FIRST; ++n) take(entries[n], n);
#pragma unroll
    for (int n = FIRST; n < FEW; ++n) {
      if (n * BLOCK >= length) break;
      load(entries[0], n);
      take(entries[0], n);
    }
    return count;
  }
};

// Gather those of a query with short ranges. The next curve's are on their way while one's are used: barriers keep the
// compiler from putting loads off until they are needed.
template <int CURVES>
__device__ inline int gather_near(const Args& a, const Chooser& query, Gathered& memory, Bits within,
                                  const int2* ranges) {
  const i64 table = query.table;
  Near<0> first;
  first.start(a, table, ranges);
  Near<1> second;
  if (CURVES > 1) second.start(a, table, ranges);
  Coordinate x[DK];
#pragma unroll
  for (int c = 0; c < DK; ++c) x[c] = query.x[c];
  const int visible = query.visible;
  __syncwarp();
  int count = first.gather(memory, 0, within, x, visible, ranges);
  Near<2> third;
  if (CURVES > 2) third.start(a, table, ranges);
  __syncwarp();
  if (CURVES > 1) count = second.gather(memory, count, within, x, visible, ranges);
  if (CURVES > 2) count = third.gather(memory, count, within, x, visible, ranges);
  return count;
}

// Gather the candidates of a query that are not farther than `within`, which becomes ANY where all are gathered;
// returns how many they are, with those that find no room.
__device__ inline int gather_all(const Args& a, const Chooser& query, Gathered& memory, Bits& within) {
  int2 ranges[MOST_CURVES];             // first entries and lengths
  int longest = 0;
#pragma unroll
  for (int curve = 0; curve < MOST_CURVES; ++curve) {
    ranges[curve] = query.ranges[curve];
    longest = max(longest, ranges[curve].y);
  }
  if (longest == 0) return 0;
  if (longest > FEW * BLOCK || i64(a.window) * a.num_curves > MOST_GATHERED) {
    within = ANY;
    return gather_far(a, query, memory);
  }
  if (a.num_curves == 1) return gather_near<1>(a, query, memory, within, ranges);
  if (a.num_curves == 2) return gather_near<2>(a, query, memory, within, ranges);
  return gather_near<3>(a, query, memory, within, ranges);
}

// Gather the candidates of a query and choose. The chosen ones are left at the front of the warp's memory, in the order
// of visits, which later keys do not change; returns how many they are, or -1 where there are too many candidates to
// gather. Where another query's nearest end tells how far to look, which is seldom not far enough, others are left out.
__device__ inline int choose(const Args& a, const Chooser& query, Gathered& memory, Bits& end) {
  Bits within = end == 0 || end + REACH >= FARTHEST ? ANY : end + REACH;
  int count;
  for (;;) {
    count = gather_all(a, query, memory, within);
    __syncwarp();
    if (count >= a.top_k || within == ANY) break;
    end = within;
    within = ANY;
  }
  if (count > MOST_GATHERED) return -1;
  if (count <= a.top_k) {
    if (within == ANY) end = 0;
    return count;
  }
  if (count <= 64) choose_gathered<0, 2>(a, memory.candidates, count, within, memory.pace, end);
  else if (count <= 96) choose_gathered<2, 3>(a, memory.candidates, count, within, memory.pace, end);
  else if (count <= 128) choose_gathered<3, 4>(a, memory.candidates, count, within, memory.pace, end);
  else choose_gathered<4, MOST_GATHERED / 32>(a, memory.candidates, count, within, memory.pace, end);
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
  int* row = static_cast<int*>(a.indices) + query.at * a.top_k;
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
  if (count == a.top_k) return;         // as most are
  int* row = static_cast<int*>(a.indices) + query.at * a.top_k;
#pragma unroll 1
  for (int place = count + lane(); place < a.top_k; place += 32) row[place] = -1;
}
