// Which keys a query attends to: the union of its windows, each key once, cut to the nearest top_k where it is larger.
// A warp takes queries that are neighbours in code order, one after another. It gathers the candidates of one in shared
// memory, then looks for the distance that separates the nearest: it counts how many are at most so far, and moves on
// by that count. Candidates that are too many for that are found again and again, digit by digit.
#pragma once
#include "digits.cuh"

constexpr int MOST_CURVES = 3;
constexpr int TURNS = 8;                // queries of a warp, looked up together
constexpr int MOST_GATHERED = 256;      // candidates of a query in shared memory
constexpr int CHOOSING_WARPS = 8;       // of a block
constexpr int CHOOSING_BLOCKS = sizeof(Coordinate) == 8 ? 1 : 4;  // of a multiprocessor, at least

// A factor of 2 in the bits of a distance, and how much farther than the last query's nearest keys one's own may be:
// nearly twice as many are expected up to there, if they are spread evenly.
constexpr Bits OCTAVE = Bits(1) << (sizeof(Bits) == 8 ? 52 : 23) % (8 * sizeof(Bits));
constexpr Bits REACH = Bits(2.0f / DK * 0.9f * float(OCTAVE));
constexpr Bits FARTHEST = Bits(sizeof(Bits) == 8 ? 0x7ff0000000000000ull : 0x7f800000ull);  // infinity
template <int BYTES> struct SignedOf { using type = int; };
template <> struct SignedOf<8> { using type = i64; };
using Signed = SignedOf<sizeof(Bits)>::type;

// A query with its ranges on all curves.
struct Chooser {
  Coordinate x[DK];
  int2 ranges[MOST_CURVES];             // [0, 0) on curves that there are not
  i64 at;
  i64 table;                            // first entry of its row, among all (batch, kv_heads, entries)
  int visible;
  int start;                            // of the sequence
};

struct Candidate {
  Bits distance;                        // as an integer
  int position;
};

// What a warp keeps in shared memory.
struct Gathered {
  Chooser queries[TURNS];
  Candidate candidates[MOST_GATHERED];
};

template <class T> __device__ inline T warp_greatest(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(FULL, value, offset));
  return value;
}

__device__ inline int below_lane(u32 vote) { return __popc(vote & ((1u << lane()) - 1)); }

// Look up the warp's queries; returns how many there are.
__device__ inline int look_up(const Args& a, Gathered& memory) {
  const i64 first = uniform_warp_of_grid() * TURNS, all = i64(a.batch) * a.q_heads * a.q_len;
  if (first + lane() < all && lane() < TURNS) {
    const Query query = query_in_slot(a, first + lane());
    const Sequence& s = sequences_of(a)[query.sequence];
    Chooser& chooser = memory.queries[lane()];
    const Coordinate* x = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) chooser.x[c] = x[c];
#pragma unroll
    for (int curve = 0; curve < MOST_CURVES; ++curve)
      chooser.ranges[curve] = curve < a.num_curves ? static_cast<const int2*>(a.ranges[curve])[query.at] : int2{0, 0};
    chooser.at = query.at;
    chooser.table = query.head_row * a.entries + s.entry;
    chooser.visible = int(query.visible);
    chooser.start = s.start;
  }
  __syncwarp();
  return int(min(max(all - first, i64(0)), i64(TURNS)));
}

// An entry of a curve's range on its way to a lane.
template <int CURVE> struct Entry {
  Point point;
  struct alignas(4 * (CURVE > 0 ? CURVE : 1)) Earlier { int ranks[CURVE > 0 ? CURVE : 1]; } earlier;

  // The `n`-th from where the row's points and ranks on earlier curves are.
  __device__ void load(const Point* points, const int* ranks, int n) {
    point = load_here<Point>(steps_on<sizeof(Point)>(points, n));
    if (CURVE > 0) earlier = load_here<Earlier>(steps_on<sizeof(Earlier)>(ranks, n));
  }
  // Whether no curve before has the key.
  __device__ bool is_first(const int2* ranges) const {
    bool first = true;
#pragma unroll
    for (int curve = 0; curve < CURVE; ++curve)
      first = first & (u32(earlier.ranks[curve] - ranges[curve].x) >= u32(ranges[curve].y - ranges[curve].x));
    return first;
  }
};

// Visit one curve's candidates that no curve before it has, 32 entries at a time: all lanes call
// `f(position, distance, candidate)` together. The skip index tells which blocks are worth a visit.
template <int CURVE, class F> __device__ inline void visit_range(const Args& a, const Chooser& query, F f) {
  const int2 range = query.ranges[CURVE];
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
        entries[n].load(points, ranks, min(max(places[n], range.x), range.y - 1));
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

// Gather a candidate of each lane that has one not farther than `limit`, behind `count` others; returns how many they
// are then, with those that find no room.
__device__ inline int gather(Gathered& memory, int count, Bits limit, int position, Coordinate distance,
                             bool candidate) {
  const Bits bits = min(Bits(distance_bits(distance)), FARTHEST);  // one that is not a number is infinite
  candidate = candidate && bits <= limit;
  const u32 vote = __ballot_sync(FULL, candidate);
  const int place = count + below_lane(vote);
  if (candidate && place < MOST_GATHERED) memory.candidates[place] = Candidate{bits, position};
  return count + __popc(vote);
}

// Gather the candidates of a query with long ranges, full of keys that it does not see.
__device__ __noinline__ int gather_far(const Args& a, const Chooser& query, Gathered& memory, Bits limit) {
  int count = 0;
  visit_candidates(a, query, [&](int position, Coordinate distance, bool candidate) {
    count = gather(memory, count, limit, position, distance, candidate);
  });
  return count;
}

constexpr int FEW = 5;                  // blocks of a range that is not long

// Gather those of a short range. `x` and `visible` are the query's.
template <int CURVE>
__device__ inline int gather_near(const Args& a, const Chooser& query, Gathered& memory, int count, Bits limit,
                                  const Coordinate* x, int visible) {
  const int2 range = query.ranges[CURVE];
  const int length = __shfl_sync(FULL, range.y - range.x, 0);  // the compiler then knows that all lanes have the same
  if (length == 0) return count;
  const i64 first = query.table + range.x;
  const Point* points = static_cast<const Point*>(a.points[CURVE]) + first;
  const int* ranks = static_cast<const int*>(a.earlier[CURVE]) + first * CURVE;
  Entry<CURVE> entries[FEW];
  // Beyond the range the last entry stands in for one, which takes fewer instructions than none.
  const auto load = [&](int n) { entries[n].load(points, ranks, min(n * BLOCK + lane(), length - 1)); };
  load(0);
  load(1);
#pragma unroll
  for (int n = 0; n < FEW; ++n) {
    if (n * BLOCK >= length) break;
    if (n + 2 < FEW) load(n + 2);       // on its way while this one is used:
    __syncwarp();                       // the compiler must not put it off until it is needed
    const Point& point = entries[n].point;
    const bool inside = n * BLOCK + lane() < length;
    const bool candidate = inside & (point.position < visible) & entries[n].is_first(query.ranges);
    count = gather(memory, count, limit, point.position, squared_distance(x, point.x), candidate);
  }
  return count;
}

// Gather the candidates of a query that are not farther than `limit`; returns how many they are, with those that find
// no room.
__device__ inline int gather_all(const Args& a, const Chooser& query, Gathered& memory, Bits limit) {
  int longest = 0;
#pragma unroll
  for (int curve = 0; curve < MOST_CURVES; ++curve)
    longest = max(longest, query.ranges[curve].y - query.ranges[curve].x);
  if (longest > FEW * BLOCK) return gather_far(a, query, memory, limit);
  Coordinate x[DK];
#pragma unroll
  for (int c = 0; c < DK; ++c) x[c] = query.x[c];
  const int visible = query.visible;
  int count = gather_near<0>(a, query, memory, 0, limit, x, visible);
  if (a.num_curves > 1) count = gather_near<1>(a, query, memory, count, limit, x, visible);
  if (a.num_curves > 2) count = gather_near<2>(a, query, memory, count, limit, x, visible);
  return count;
}

// Where the nearest end: values below it are chosen, and of those equal to it some.
template <class T> struct Border {
  T value;
  int below;                            // values less than it, or not greater: then these are all that were wanted
};

// Find the border after the `wanted` least of a warp's values, of which `count`, more than that, are not greater than
// `top`. All are above 0 and, with `top`, below half of what T holds. The first steps, from `top` or, where that is
// `far`, from one of the values, are as long as they should be if these are squared distances to points spread evenly.
template <int N, class T>
__device__ inline Border<T> border_after(int wanted, int count, const T (&values)[N], T top, bool far) {
  constexpr int FREE_STEPS = 8;         // after them brackets are halved
  constexpr float SCALE = 2.0f / DK * float(OCTAVE);
  const float aim = SCALE * log2_roughly(float(wanted) + 0.5f);
  T lo = 0, hi = top, pivot = top;
  int up_to = count, up_to_lo = 0;
  if (far) {                            // from the first value up to which each lane has one
    T least = values[0];
#pragma unroll
    for (int n = 1; n < N; ++n) least = min(least, values[n]);
    pivot = warp_greatest(least > top ? T(0) : least);
  }
  for (int round = far ? 0 : 1;; ++round) {
    if (round > 0) {
      const T moved = pivot + T(Signed(aim - SCALE * log2_roughly(float(up_to) + 0.5f)));
      const bool inside = moved > lo && moved < hi && round <= FREE_STEPS;
      pivot = inside ? moved : lo + (hi - lo) / 2;
    }
    int mine = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) mine += int(T(values[n] - pivot - 1) >> (8 * sizeof(T) - 1));  // 1 if not greater
    up_to = __reduce_add_sync(FULL, mine);
    if (up_to == wanted) return {pivot, wanted};
    if (up_to < wanted) lo = pivot, up_to_lo = up_to;
    else hi = pivot;
    if (hi - lo == 1) return {hi, up_to_lo};
  }
}

// Choose among `count` gathered candidates, more than top_k and not farther than `limit`, and move the chosen ones to
// the front; returns how many they are. `end` becomes where they end.
template <int N>
__device__ inline int choose_gathered(const Args& a, Gathered& memory, int count, Bits limit, Bits& end) {
  Bits values[N];                       // distances, plus 1
  int positions[N];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int place = n * 32 + lane();
    const Candidate candidate = memory.candidates[place];
    values[n] = place < count ? candidate.distance + 1 : FARTHEST + 2;
    positions[n] = candidate.position;
  }
  const Border<Bits> border = border_after(a.top_k, count, values, limit + 1, limit == FARTHEST);
  end = border.value;
  u32 oldest = ~0u;                     // of those at the border
  if (border.below < a.top_k) {         // not all of them are chosen: the most recent
    u32 ages[N];
    int equal = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const bool is = values[n] == border.value;
      ages[n] = u32(NO_KEY) + !is - (is ? positions[n] : 0);
      equal += is;
    }
    equal = __reduce_add_sync(FULL, equal);
    oldest = border_after(a.top_k - border.below, equal, ages, u32(NO_KEY), true).value;
  }
  __syncwarp();                         // all lanes have read what is written over now
  int chosen = 0;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const bool is = values[n] < border.value || (values[n] == border.value && u32(NO_KEY - positions[n]) <= oldest);
    const u32 vote = __ballot_sync(FULL, is);
    if (is) memory.candidates[chosen + below_lane(vote)] = Candidate{values[n] - 1, positions[n]};
    chosen += __popc(vote);
  }
  __syncwarp();
  return chosen;
}

// Gather the candidates of a query and choose. The chosen ones are left at the front of the warp's memory, in an order
// that later keys do not change; returns how many they are, or -1 where there are too many candidates to gather.
__device__ inline int choose(const Args& a, const Chooser& query, Gathered& memory, Bits& end) {
  // Those much farther than the last query's are left out at first.
  Bits limit = end == 0 ? FARTHEST : min(end + REACH, FARTHEST);
  int count;
  for (;;) {
    count = gather_all(a, query, memory, limit);
    if (count >= a.top_k || limit == FARTHEST) break;
    limit = FARTHEST;
  }
  __syncwarp();
  if (count > MOST_GATHERED) return -1;
  if (count <= a.top_k) return count;
  if (count <= 64) return choose_gathered<2>(a, memory, count, limit, end);
  if (count <= 128) return choose_gathered<4>(a, memory, count, limit, end);
  return choose_gathered<MOST_GATHERED / 32>(a, memory, count, limit, end);
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
  int* row = static_cast<int*>(a.indices) + query.at * a.top_k;
#pragma unroll 1
  for (int place = count + lane(); place < a.top_k; place += 32) row[place] = -1;
}
