// The candidates of a query: the keys of its ranges on all curves that it sees, each key once. A warp takes queries
// that are neighbours in code order, and looks up where their ranges lie together.
#pragma once
#include "nearest.cuh"

constexpr int MOST_CURVES = 3;
constexpr int TURNS = 16;               // queries of a warp, looked up together
constexpr int MOST_GATHERED = 256;      // candidates of a query in shared memory
constexpr int CHOOSING_WARPS = 4;       // of a block: with more, those that are done wait for others
constexpr int CHOOSING_BLOCKS = sizeof(Coordinate) == 8 ? 2 : 8;  // of a multiprocessor, at least

// A query with its ranges on all curves. Addresses are worked out for the warp's queries together, one in each lane.
struct alignas(16) Chooser {
  Coordinate x[DK];
  int visible;
  int2 ranges[MOST_CURVES];             // on each curve, first entry and length; 0 on curves that there are not
  const Point* points[MOST_CURVES];     // of the first entries
  const int* ranks[MOST_CURVES];        // and their places on the curves before
  i64 table;                            // first entry of its row, among all (batch, kv_heads, entries)
  i64 at;
  int* row;                             // where its list is to stand
  float* distances;                     // and those of the keys in it, where they are asked for
  int start;                            // of the sequence
  int unused[4];                        // so that lanes that write do so in different banks
};

// What a warp keeps in shared memory.
struct alignas(16) Gathered {
  Chooser queries[TURNS];
  Candidate candidates[MOST_GATHERED];
  Bits pace;                            // between distances, for each key too few or too many, see nearest.cuh
  u32 left;                             // list of queries, as bits, whose keys are not chosen yet
};

// Look up the warp's queries and list them all.
__device__ inline void look_up(const Args& a, Gathered& memory) {
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
  if (lane() == 0) {
    memory.pace = Bits(PACE / float(a.top_k));
    memory.left = (1u << int(min(max(all - first, i64(0)), i64(TURNS)))) - 1;
  }
  __syncwarp();
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
  const Point* points = query.points[CURVE] - range.x;
  const int* ranks = query.ranks[CURVE] - i64(range.x) * CURVE;
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

// Gather the candidates of a query in shared memory; returns how many they are, with those that find no room.
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

// Name nothing behind the `count` keys of a list.
__device__ inline void fill_list(const Args& a, const Chooser& query, int count, int own) {
#pragma unroll 1
  for (int place = count + own; place < a.top_k; place += 32) query.row[place] = -1;
}
