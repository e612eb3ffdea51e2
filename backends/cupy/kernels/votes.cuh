// What the lanes of a warp hold, small numbers, told to the lane of each number.
#pragma once
#include "platform.cuh"

struct Votes {
  u32 equal;                            // lanes that hold the number of the own lane
  u32 above;                            // and those that hold a greater one
};

// For numbers below 2^BITS; all lanes together. Of lanes beyond 2^BITS nothing is known.
template <int BITS> __device__ inline Votes vote(int number) {
  Votes votes{FULL, 0};
#pragma unroll
  for (int bit = BITS - 1; bit >= 0; --bit) {
    const u32 set = __ballot_sync(FULL, number >> bit & 1), own = lane() >> bit & 1 ? FULL : 0;
    votes.above |= votes.equal & set & ~own;
    votes.equal &= ~(set ^ own);
  }
  return votes;
}
