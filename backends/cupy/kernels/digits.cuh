// The `wanted`-th nearest of many candidates by their digits: distances are not negative, so that their bits are in the
// same order as they are; ties go to the most recent. A warp counts candidates by 8 bits at a time, in 256 counters of
// its own, and keeps the digits of the one it looks for. Nothing is stored, whatever the number of candidates.
#pragma once
#include "selected.cuh"

constexpr int DISTANCE_DIGITS = sizeof(Coordinate);
constexpr int DIGITS = DISTANCE_DIGITS + 4;

__device__ inline u64 distance_bits(Coordinate distance) {
#ifdef ZETA_HOST
  u64 bits = 0;
  std::memcpy(&bits, &distance, sizeof distance);
  return bits;
#else
  if constexpr (sizeof(Coordinate) == 8) return u64(__double_as_longlong(double(distance)));
  else return u64(u32(__float_as_int(float(distance))));
#endif
}

__device__ inline Coordinate distance_of(u64 bits) {
#ifdef ZETA_HOST
  Coordinate distance;
  std::memcpy(&distance, &bits, sizeof distance);
  return distance;
#else
  if constexpr (sizeof(Coordinate) == 8) return Coordinate(__longlong_as_double(i64(bits)));
  else return Coordinate(__int_as_float(int(u32(bits))));
#endif
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

  // Choose the next digit from the counters of all matching candidates; all lanes alike.
  __device__ void choose(int digit, const int* counters) {
    int mine = 0;
    for (int n = 0; n < 8; ++n) mine += counters[lane() * 8 + n];
    int sum = mine;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(FULL, sum, offset);
      if (lane() >= offset) sum += other;
    }
    const u32 reached = __ballot_sync(FULL, sum >= wanted);
    const int owner = __ffs(int(reached)) - 1;
    int before = sum - mine, chosen = lane() * 8;
    while (lane() == owner && before + counters[chosen] < wanted) before += counters[chosen++];
    chosen = __shfl_sync(FULL, chosen, owner);
    wanted -= __shfl_sync(FULL, before, owner);
    if (digit < DISTANCE_DIGITS) distance |= u64(chosen) << 8 * (DISTANCE_DIGITS - 1 - digit);
    else recency |= u32(chosen) << 8 * (DIGITS - 1 - digit);
  }
};

__device__ inline u32 age_of(int position) { return u32(NO_KEY - position); }
