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
constexpr int SHORT = 5 * BLOCK;        // ranges up to here are walked without a look at the skip index

// A query with its ranges on all curves.
struct Chooser {
  Coordinate x[DK];
  int2 ranges[MOST_CURVES];             // [0, 0) on curves that there are not
  i64 at;
  i64 table;                            // first entry of its row, among all (batch, kv_heads, entries)
  int visible;
  int start;                            // of the sequence
  int head_row;
  int head;                             // among all of its batch item
};

// What a warp keeps in shared memory.
struct Gathered {
  Chooser queries[TURNS];
  Bits distances[MOST_GATHERED];        // plus 1, so that none is 0
  int positions[MOST_GATHERED];
};

template <class T> __device__ inline T warp_greatest(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(FULL, value, offset));
  return value;
}

__device__ inline int below_lane(u32 vote) { return __popc(vote & ((1u << lane()) - 1)); }

// Look up the warp's queries; returns how many there are.
__device__ inline int look_up(const Args& a, Gathered& memory) {
  const i64 first = warp_of_grid() * TURNS, all = i64(a.batch) * a.q_heads * a.q_len;
  if (first + lane() < all && lane() < TURNS) {
    const Query query = query_in_slot(a, 0, first + lane());
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
    chooser.head_row = query.head_row;
    chooser.head = query.head_row % a.kv_heads * group_size(a) + query.head;
  }
  __syncwarp();
  return int(min(max(all - first, i64(0)), i64(TURNS)));
}

// Visit one curve's candidates that no curve before it has, 32 entries at a time: all lanes call
// `f(position, distance, candidate)` together.
template <int CURVE, class F> __device__ inline void visit_range(const Args& a, const Chooser& query, F f) {
  struct Entry { Point point; int earlier[CURVE > 0 ? CURVE : 1]; };
  const int2 range = query.ranges[CURVE];
  const Point* points = static_cast<const Point*>(a.points[CURVE]) + query.table;
  const int* earlier = static_cast<const int*>(a.earlier[CURVE]) + query.table * CURVE;
  const auto load = [&](int first, Entry& entry) {
    const int e = first + lane();
    entry.point.position = NO_KEY;
    if (e < range.x || e >= range.y) return;
    entry.point = points[e];
#pragma unroll
    for (int curve = 0; curve < CURVE; ++curve) entry.earlier[curve] = earlier[e * CURVE + curve];
  };
  const auto use = [&](const Entry& entry) {
    bool candidate = entry.point.position < query.visible;
#pragma unroll
    for (int curve = 0; curve < CURVE; ++curve) {
      const int2 other = query.ranges[curve];
      candidate = candidate && u32(entry.earlier[curve] - other.x) >= u32(other.y - other.x);
    }
    f(entry.point.position, comparable(squared_distance(query.x, entry.point.x)), candidate);
  };
  Entry entry = {}, next = {};
  if (range.y - range.x <= SHORT) {
    load(range.x, entry);
    for (int first = range.x; first < range.y; first += BLOCK) {
      load(first + BLOCK, next);        // on its way while this one is used
      use(entry);
      entry = next;
    }
    return;
  }
  const int* fine = static_cast<const int*>(a.fine[CURVE]) + query.table / BLOCK;
  for (int group = range.x / BLOCK; group * BLOCK < range.y; group += BLOCK) {
    const bool sees = (group + lane()) * BLOCK < range.y && fine[group + lane()] < query.visible;
    for (u32 left = __ballot_sync(FULL, sees); left; left &= left - 1) {
      load((group + __ffs(int(left)) - 1) * BLOCK, entry);
      use(entry);
    }
  }
}

template <class F> __device__ inline void visit_candidates(const Args& a, const Chooser& query, F f) {
  visit_range<0>(a, query, f);
  if (a.num_curves > 1) visit_range<1>(a, query, f);
  if (a.num_curves > 2) visit_range<2>(a, query, f);
}

// Where the nearest end: values below it are chosen, and of those equal to it some where `equal_chosen` says so.
template <class T> struct Border {
  T value;
  int below;                            // values less than it, or not greater: then these are all that were wanted
};

// Find the border after the `wanted` least of a warp's values, of which more are less than `padding`. All are above 0.
// `guess` is where to begin, if it is not 0; values are spread like the squared distances of evenly spread points.
template <int N, class T>
__device__ inline Border<T> border_after(int wanted, int count, const T (&values)[N], T padding, T guess) {
  constexpr float OCTAVE = sizeof(T) == 8 ? 4503599627370496.0f : 8388608.0f;  // a factor of 2 in bits of a float
  T lo = 0, hi = padding - 1, pivot = guess;
  int up_to_lo = 0, up_to_hi = count;
  if (guess == 0) {                     // at most so far is one value of each lane
    T least = values[0];
#pragma unroll
    for (int n = 1; n < N; ++n) least = min(least, values[n]);
    pivot = warp_greatest(least == padding ? T(0) : least);
  }
  for (int round = 0;; ++round) {
    int mine = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) mine += values[n] <= pivot;
    const int up_to = __reduce_add_sync(FULL, mine);
    if (up_to == wanted) return {pivot, wanted};
    if (up_to < wanted) lo = pivot, up_to_lo = up_to;
    else hi = pivot, up_to_hi = up_to;
    if (hi - lo == 1) return {hi, up_to_lo};
    float step = 0;                     // from lo
    if (round % 4 == 3) step = 0.5f * float(hi - lo);
    else if (up_to_lo > 0 && up_to_hi < count)
      step = float(hi - lo) * (float(wanted - up_to_lo) / float(up_to_hi - up_to_lo));
    else
      step = float(pivot - lo) + OCTAVE * (2.0f / DK) * log2f(float(wanted) / (float(up_to) + 0.5f));
    const float most = float(hi - lo);
    const T moved = step <= 1.0f ? T(1) : step >= most ? hi - lo - 1 : T(step);
    pivot = lo + min(max(moved, T(1)), T(hi - lo - 1));
  }
}

// Choose among `count` gathered candidates, more than top_k, and move the chosen ones to the front; returns how many
// they are. `guess` is the last query's border, then this one's.
template <int N> __device__ inline int choose_gathered(const Args& a, Gathered& memory, int count, Bits& guess) {
  Bits values[N];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int place = n * 32 + lane();
    values[n] = place < count ? memory.distances[place] : ~Bits(0);
  }
  const Border<Bits> border = border_after(a.top_k, count, values, ~Bits(0), guess);
  guess = border.value;
  u32 oldest = ~0u;                     // of those at the border
  if (border.below < a.top_k) {         // not all of them are chosen: the most recent
    u32 ages[N];
    int equal = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const bool is = values[n] == border.value;
      ages[n] = is ? u32(NO_KEY - memory.positions[n * 32 + lane()]) + 1 : ~0u;
      equal += is;
    }
    oldest = border_after(a.top_k - border.below, __reduce_add_sync(FULL, equal), ages, ~0u, 0u).value;
  }
  int chosen = 0;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (n * 32 >= count) break;
    const int place = n * 32 + lane(), position = place < count ? memory.positions[place] : 0;
    const bool is = values[n] < border.value || (values[n] == border.value && u32(NO_KEY - position) < oldest);
    const u32 vote = __ballot_sync(FULL, is);
    __syncwarp();                       // all lanes have read what is written over
    if (is) {
      memory.distances[chosen + below_lane(vote)] = values[n];
      memory.positions[chosen + below_lane(vote)] = position;
    }
    chosen += __popc(vote);
  }
  __syncwarp();
  return chosen;
}

// Gather the candidates of a query and choose. The chosen ones are left in `memory`, in an order that later keys do not
// change; returns how many they are, or -1 where there are too many candidates to gather.
__device__ inline int choose(const Args& a, const Chooser& query, Gathered& memory, Bits& guess) {
  int count = 0;
  visit_candidates(a, query, [&](int position, Coordinate distance, bool candidate) {
    const u32 vote = __ballot_sync(FULL, candidate);
    const int place = count + below_lane(vote);
    if (candidate && place < MOST_GATHERED) {
      memory.distances[place] = Bits(distance_bits(distance)) + 1;
      memory.positions[place] = position;
    }
    count += __popc(vote);
  });
  __syncwarp();
  if (count > MOST_GATHERED) return -1;
  if (count <= a.top_k) return count;
  return count <= 128 ? choose_gathered<4>(a, memory, count, guess)
                      : choose_gathered<MOST_GATHERED / 32>(a, memory, count, guess);
}

// Where candidates are too many to gather: find the last one that is kept, in counters in the warp's memory.
__device__ inline Cut find_cut(const Args& a, const Chooser& query, Gathered& memory) {
  return cut_after(a.top_k, memory.positions, [&](auto offer) {
    visit_candidates(a, query, [&](int position, Coordinate distance, bool candidate) {
      if (candidate) offer(distance, position);
    });
  });
}

// Visit those that are kept as `visit_candidates` does.
template <class F> __device__ inline void visit_kept(const Args& a, const Chooser& query, const Cut& cut, F f) {
  visit_candidates(a, query, [&](int position, Coordinate distance, bool candidate) {
    f(position, candidate && before_cut(distance, position, cut.distance, cut.position));
  });
}
