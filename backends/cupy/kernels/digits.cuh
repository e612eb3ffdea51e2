// The `wanted`-th nearest of many candidates by their digits: distances are not negative, so that their bits are in the
// same order as they are; ties go to the most recent. A warp counts candidates by 8 bits at a time, in 256 counters of
// its own, and keeps the digits of the one it looks for. Nothing is stored, whatever the number of candidates.
#pragma once
#include "selected.cuh"

constexpr int DISTANCE_DIGITS = sizeof(Coordinate);
constexpr int DIGITS = DISTANCE_DIGITS + 4;

__device__ inline Coordinate distance_of(u64 bits) {
  if constexpr (sizeof(Coordinate) == 8) return Coordinate(__longlong_as_double(i64(bits)));
  else return Coordinate(__int_as_float(int(u32(bits))));
}

struct Nearest {                        // the digits found so far
  u64 distance = 0;
  u32 recency = 0;                      // 2^31 - 1 - position: smaller is more recent
  int wanted;

  // Whether a candidate has these first digits, and its next one.
  __device__ bool matches(int digit, u64 bits, u32 age, int& next) const {
    if (digit < DISTANCE_DIGITS) {
      const int shift = 8 * (DISTANCE_DIGITS - 1 - digit);
      next = int(bits >> shift & 255);
      return digit == 0 || bits >> shift >> 8 == distance >> shift >> 8;
    }
    const int shift = 8 * (DIGITS - 1 - digit);
    next = int(age >> shift & 255);
    return bits == distance && (digit == DISTANCE_DIGITS || age >> shift >> 8 == recency >> shift >> 8);
  }

  // Choose the next digit from the counters of all matching candidates; all lanes alike. False if there are no more
  // candidates than wanted, which the first digit shows.
  __device__ bool choose(int digit, const int* counters) {
    int mine = 0;
    for (int n = 0; n < 8; ++n) mine += counters[lane() * 8 + n];
    const int sum = sum_to_lane(mine);
    if (digit == 0 && __shfl_sync(FULL, sum, 31) <= wanted) return false;
    const u32 reached = __ballot_sync(FULL, sum >= wanted);
    const int owner = __ffs(int(reached)) - 1;
    int before = sum - mine, chosen = lane() * 8;
    while (lane() == owner && before + counters[chosen] < wanted) before += counters[chosen++];
    chosen = __shfl_sync(FULL, chosen, owner);
    wanted -= __shfl_sync(FULL, before, owner);
    if (digit < DISTANCE_DIGITS) distance |= u64(chosen) << 8 * (DISTANCE_DIGITS - 1 - digit);
    else recency |= u32(chosen) << 8 * (DIGITS - 1 - digit);
    return true;
  }
};

// What is kept of a query's candidates: those that `before_cut` lets pass; all, as it is made.
struct Cut {
  Coordinate distance = infinity();
  int position = -1;
};

// Find the cut after the `wanted` nearest. `visit(offer)` calls `offer(distance, position)` in the lane
// that has a candidate, for each of them. `counters` are the warp's.
template <class Visit> __device__ inline Cut cut_after(int wanted, int* counters, Visit visit) {
  Nearest nearest;
  nearest.wanted = wanted;
  for (int digit = 0; digit < DIGITS; ++digit) {
    for (int n = 0; n < 8; ++n) counters[lane() * 8 + n] = 0;
    __syncwarp();
    visit([&](Coordinate distance, int position) {
      int next;
      if (nearest.matches(digit, distance_bits(distance), u32(NO_KEY - position), next)) atomicAdd(&counters[next], 1);
    });
    __syncwarp();
    if (!nearest.choose(digit, counters)) return Cut();
    __syncwarp();
  }
  Cut cut;
  cut.distance = distance_of(nearest.distance);
  cut.position = NO_KEY - int(nearest.recency);
  return cut;
}
