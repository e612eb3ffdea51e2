// Re-ranking: where the union of a query's windows holds more than top_k keys, the last one that is kept, as two
// numbers a query. One warp a query. It keeps the candidates in shared memory and finds the cut bit by bit, with a vote
// on each; where they are too many for that it walks over the ranges, digit by digit.
#include "digits.cuh"

constexpr int WARPS_OF_CUT = 8;
constexpr int MOST_KEPT = 256;          // candidates of a warp in shared memory: four windows of 64

// The `wanted`-th smallest of `matching` values, or a number between it and the next. `get(n, value)` gives them and
// says of which n < count there is one. `beyond` becomes the number of values equal to the result that are too many.
template <class Bits, class Get>
__device__ inline Bits smallest(int wanted, int matching, int count, int width, Get get, int& beyond) {
  Bits found = 0;                       // `matching` counts the values that begin like it
  for (int bit = width - 1; bit >= 0; --bit) {
    int zeros = 0;
    for (int first = 0; first < count; first += 32) {
      Bits value = 0;
      const bool is = first + lane() < count && get(first + lane(), value) && value >> bit == found >> bit;
      zeros += __popc(__ballot_sync(FULL, is));
    }
    if (zeros >= wanted) {
      matching = zeros;
    } else {
      wanted -= zeros;
      matching -= zeros;
      found |= Bits(1) << bit;
    }
    if (matching == wanted) {           // all that begin like this are kept
      beyond = 0;
      return found | ((Bits(1) << bit) - 1);
    }
  }
  beyond = matching - wanted;
  return found;
}

__device__ inline bool same(Coordinate a, Coordinate b) { return distance_bits(a) == distance_bits(b); }

ZETA_KERNEL(cut_kernel, 32 * WARPS_OF_CUT) {
  __shared__ int counters[WARPS_OF_CUT][256];
  __shared__ Coordinate distances[WARPS_OF_CUT][MOST_KEPT];
  __shared__ int positions[WARPS_OF_CUT][MOST_KEPT];
  const i64 slot = warp_of_grid();
  if (slot >= i64(a.batch) * a.q_heads * a.q_len) return;
  const Selector s = selector_of(a, slot);
  const int warp = threadIdx.x / 32;
  int count = 0;
  s.visit_candidates([&](int, i64, int position, Coordinate distance, bool candidate) {
    const u32 vote = __ballot_sync(FULL, candidate);
    const int place = count + __popc(vote & ((1u << lane()) - 1));
    if (candidate && place < MOST_KEPT) distances[warp][place] = distance, positions[warp][place] = position;
    count += __popc(vote);
  });
  __syncwarp();
  Cut cut;
  if (count > MOST_KEPT) {
    cut = cut_after(a.top_k, counters[warp], [&](auto offer) {
      s.visit_candidates([&](int, i64, int position, Coordinate distance, bool candidate) {
        if (candidate) offer(distance, position);
      });
    });
  } else if (count > a.top_k) {
    int beyond;
    const Bits last = smallest<Bits>(a.top_k, count, count, 8 * sizeof(Bits) - 1, [&](int n, Bits& value) {
      value = Bits(distance_bits(distances[warp][n]));
      return true;
    }, beyond);
    cut.distance = distance_of(min(u64(last), distance_bits(infinity())));
    cut.position = 0;
    if (beyond > 0) {                   // of the keys at that distance, the most recent
      int equal = 0, unused;
      for (int first = 0; first < count; first += 32) {
        const int n = first + lane();
        equal += __popc(__ballot_sync(FULL, n < count && same(distances[warp][n], cut.distance)));
      }
      const u32 age = smallest<u32>(equal - beyond, equal, count, 31, [&](int n, u32& value) {
        value = u32(NO_KEY - positions[warp][n]);
        return same(distances[warp][n], cut.distance);
      }, unused);
      cut.position = NO_KEY - int(age);
    }
  }
  if (lane() == 0) {
    static_cast<Coordinate*>(a.cut_distance)[s.query.at] = cut.distance;
    static_cast<int*>(a.cut_position)[s.query.at] = cut.position;
  }
}
