// Re-ranking: where the union of a query's windows holds more than top_k keys, the last one that is kept, as two numbers
// a query. One warp a query.
#include "digits.cuh"

ZETA_KERNEL(cut_kernel, 256) {
  __shared__ int all_counters[8][256];
  const i64 slot = warp_of_grid();
  if (slot >= i64(a.batch) * a.q_heads * a.q_len) return;
  int* counters = all_counters[threadIdx.x / 32];
  const Selector s = selector_of(a, slot);
  Nearest nearest;
  nearest.wanted = a.top_k;
  Coordinate cut_distance = infinity();
  int cut_position = -1;
  for (int digit = 0; digit < DIGITS; ++digit) {
    for (int n = 0; n < 8; ++n) counters[lane() * 8 + n] = 0;
    __syncwarp();
    int candidates = 0;
    for (int curve = 0; curve < CURVES; ++curve) {
      for (i64 e = s.ranges[curve].x; e < s.ranges[curve].y; e += 32) {
        int position = NO_KEY, next = 0;
        Coordinate distance = 0;
        const bool found = s.candidate(curve, e + lane(), position, distance);
        candidates += __popc(__ballot_sync(FULL, found));
        if (found && nearest.matches(digit, distance_bits(distance), age_of(position), next))
          atomicAdd(&counters[next], 1);
      }
    }
    __syncwarp();
    if (candidates <= a.top_k) break;   // known after the first digit: nothing is cut
    nearest.choose(digit, counters);
    __syncwarp();
    if (digit == DIGITS - 1) {
      cut_distance = distance_of(nearest.distance);
      cut_position = NO_KEY - int(nearest.recency);
    }
  }
  if (lane() == 0) {
    static_cast<Coordinate*>(a.cut_distance)[s.query.at] = cut_distance;
    static_cast<int*>(a.cut_position)[s.query.at] = cut_position;
  }
}
