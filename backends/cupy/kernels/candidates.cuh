// The candidates of a query: the keys of its ranges on all curves that it sees, each key once. A warp takes queries
// that are neighbours in code order, and looks up where their ranges lie together.
//
// A key that ranges of several curves share is a candidate on the first of them. Whether an earlier range has it shows
// in its sorted place on that curve, see items.cuh: entries of all levels stand in the order of these.
#pragma once
#include "items.cuh"
#include "nearest.cuh"

constexpr int TURNS = 16;               // queries of a warp, looked up together
constexpr int MOST_GATHERED = 256;      // candidates of a query in shared memory
constexpr int AHEAD_BLOCKS = 2;         // of 32 entries, of a range: windows of 32 have mostly no more
constexpr int DIRECT_BLOCKS = 3;
constexpr int NEAR_BLOCKS = 6;
constexpr int CHOOSING_WARPS = 4;       // of a block: with more, those that are done wait for others
constexpr int CHOOSING_BLOCKS = sizeof(Coordinate) == 8 ? 2 : 8;  // of a multiprocessor, at least

// Sorted places on a curve.
struct PlaceRange {
  int first, length;                    // one less than there are

  __device__ bool has(int place) const { return u32(place - first) <= u32(length); }
};

// A query with its ranges on all curves. Addresses are worked out for the warp's queries together, one in each lane.
struct alignas(16) Chooser {
  Coordinate x[DK];
  int visible;
  int lengths[MOST_CURVES];             // of the ranges; 0 on curves that there are not
  int start;                            // of the sequence
  PlaceRange places[MOST_CURVES - 1];   // from the first entries' to the last ones', on all curves but the last
  const Point* points[MOST_CURVES];     // of the first entries
  const int* earlier[MOST_CURVES];      // and of their places on the curves before
  int* row;                             // where its list is to stand
  float* distances;                     // and those of the keys in it, where they are asked for
  i64 table;                            // first entry of its row, among all (batch, kv_heads, entries)
  i64 at;
  int firsts[MOST_CURVES];              // entries, from that of the row
};

// What a warp keeps in shared memory.
struct alignas(16) Gathered {
  Chooser queries[TURNS];
  Candidate candidates[MOST_GATHERED];
  Bits pace;                            // between distances, for each key too few or too many, see nearest.cuh
  Bits end;                             // where the last query's nearest end, or 0
  u32 left;                             // list of queries, as bits, whose keys are not chosen yet
  u32 ahead, direct, near;              // and of those that are chosen for in one of these ways, see choose_near.cuh
};

// Look up the warp's queries, which are of one row's heads, and list them all.
__device__ inline void look_up(const Args& a, Gathered& memory) {
  const u32 of_head = u32(a.q_len) * group_size(a), tiles = (of_head + TURNS - 1) / TURNS;
  const u32 tile = u32(uniform_warp_of_grid()), head_row = tile / tiles;
  const int number = int((tile - head_row * tiles) * TURNS) + lane();
  const bool exists = head_row < u32(a.batch) * a.kv_heads && lane() < TURNS && number < int(of_head);
  bool ahead = false, direct = false, near = false;
  if (exists) {
    const int sequence = a.cu_seqlens ? sequence_of_token(a, number / group_size(a)) : 0;
    const int* order = static_cast<const int*>(a.query_order) + i64(head_row) * of_head;
    const Query query = query_of(a, head_row, sequence, order[number]);
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
      chooser.firsts[curve] = range.x;
      chooser.lengths[curve] = range.y - range.x;
      chooser.points[curve] = static_cast<const Point*>(a.points[curve]) + entry;
      chooser.earlier[curve] = static_cast<const int*>(a.earlier[curve]) + entry * curve;
      if (curve + 1 < a.num_curves && range.x < range.y) {
        const int* places = sorted_places(a, curve * a.batch * a.kv_heads + query.head_row) + s.start;
        const Point* points = chooser.points[curve];
        const int first = places[points[0].position], last = places[points[range.y - range.x - 1].position];
        chooser.places[curve] = {first, last - first};
      }
    }
    chooser.visible = int(query.visible);
    const int blocks = (max(max(chooser.lengths[0], chooser.lengths[1]), chooser.lengths[2]) + BLOCK - 1) / BLOCK;
    const i64 most = i64(a.window) * a.num_curves;  // candidates
    near = blocks <= NEAR_BLOCKS && most <= MOST_GATHERED;
    direct = near && blocks <= DIRECT_BLOCKS && min(most, i64(chooser.visible)) > a.top_k;
    ahead = direct && blocks <= AHEAD_BLOCKS && a.window <= BLOCK;
    chooser.at = query.at;
    chooser.row = static_cast<int*>(a.indices) + query.at * a.top_k;
    chooser.distances = static_cast<float*>(a.distances) + query.at * a.top_k;
    chooser.start = s.start;
  }
  const u32 left = __ballot_sync(FULL, exists);
  const u32 votes[3] = {__ballot_sync(FULL, ahead), __ballot_sync(FULL, direct), __ballot_sync(FULL, near)};
  if (lane() == 0) {
    memory.pace = Bits(PACE / float(a.top_k));
    memory.left = left;
    memory.end = 0;
    memory.ahead = votes[0];
    memory.direct = votes[1] & ~votes[0];
    memory.near = votes[2];             // and of the others, where there are too few candidates
  }
  __syncwarp();
}

// An entry of a curve's range on its way to a lane.
template <int CURVE> struct Entry {
  Point point;
  struct alignas(4 * (CURVE > 0 ? CURVE : 1)) Earlier { int places[CURVE > 0 ? CURVE : 1]; } earlier;

  __device__ void load(const Point* point_at, const int* earlier_at) {
    point = load_here<Point>(point_at);
    if (CURVE > 0) earlier = load_here<Earlier>(earlier_at);
  }
  // Whether no range before has the key.
  __device__ bool is_first(const PlaceRange* ranges) const {
    bool first = true;
#pragma unroll
    for (int curve = 0; curve < CURVE; ++curve) first = first & !ranges[curve].has(earlier.places[curve]);
    return first;
  }
};

// Visit one curve's candidates that no curve before it has, 32 entries at a time: all lanes call
// `f(position, distance, candidate)` together. The skip index tells which blocks are worth a visit.
template <int CURVE, class F> __device__ inline void visit_range(const Args& a, const Chooser& query, F f) {
  const int2 range = {query.firsts[CURVE], query.firsts[CURVE] + query.lengths[CURVE]};
  const Point* points = query.points[CURVE] - range.x;
  const int* earlier = query.earlier[CURVE] - i64(range.x) * CURVE;
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
        entries[n].load(points + own, earlier + i64(own) * CURVE);
      }
      __syncwarp();                     // the compiler must not put loads off
#pragma unroll
      for (int n = 0; n < TOGETHER; ++n) {
        if (n >= count) break;
        const Point& point = entries[n].point;
        const bool inside = (places[n] >= range.x) & (places[n] < range.y);
        f(point.position, squared_distance(query.x, point.x),
          inside & (point.position < query.visible) & entries[n].is_first(query.places));
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
