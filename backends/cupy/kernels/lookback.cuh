// Sums over the blocks before a block, while they all run: each leaves its own count, then looks back. Blocks take
// numbers in the order in which they start, so that those before one have started and it waits for nobody who waits.
#pragma once
#include "platform.cuh"

constexpr u32 OF_TILE = 1u << 30;       // the word holds the count of its tile alone
constexpr u32 OF_ALL = 2u << 30;        // or of all tiles up to it
constexpr u32 COUNT = OF_TILE - 1;      // 0 where there is nothing yet

using Published = volatile u32;

// The block's number. Contains a barrier.
__device__ inline int take_number(int* counter) {
  __shared__ int number;
  if (threadIdx.x == 0) number = atomicAdd(counter, 1);
  __syncthreads();
  return number;
}

__device__ inline void publish(Published* word, int earlier, int count) {
  *word = (earlier > 0 ? OF_TILE : OF_ALL) | u32(count);
}

// Sum up the counts of `earlier` tiles, whose words lie `stride` apart before the own one, and publish it with the own.
__device__ inline int sum_of_earlier(Published* word, int stride, int earlier, int count) {
  constexpr int AHEAD = 8;              // independent loads in flight
  int sum = 0, back = 1;
  while (back <= earlier) {
    u32 words[AHEAD];
#pragma unroll
    for (int n = 0; n < AHEAD; ++n) words[n] = back + n <= earlier ? word[-i64(back + n) * stride] : OF_ALL;
    bool going = true;
#pragma unroll
    for (int n = 0; n < AHEAD; ++n) {
      going = going && words[n] != 0;
      if (!going) continue;
      sum += int(words[n] & COUNT);
      ++back;
      if (words[n] & OF_ALL) going = false, back = earlier + 1;
    }
  }
  if (earlier > 0) *word = OF_ALL | u32(sum + count);
  return sum;
}
