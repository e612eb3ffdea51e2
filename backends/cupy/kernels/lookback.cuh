// Sums over the blocks before a block, while they all run: each leaves its own counts, then looks back. GPUs start
// blocks in the order of their indices, which the scans of NVIDIA's CUB rely on too: those before one have started, and
// it waits for nobody who waits for it.
#pragma once
#include "platform.cuh"

struct Counts {
  int keys, queries;
};

// A word of two counts, and whether they are those of its block alone or of all blocks up to it; 0 where there are
// none yet.
using Published = volatile u64;
constexpr u64 OF_BLOCK = u64(1) << 62;
constexpr u64 OF_ALL = u64(2) << 62;
constexpr u32 COUNT = (1u << 31) - 1;

__device__ inline u64 packed(Counts counts) { return u64(u32(counts.keys)) << 31 | u32(counts.queries); }

// Sum up the counts of the `earlier` blocks, whose words lie before the own one, and publish the own. All lanes of a
// warp together, which look at 32 blocks at a time.
__device__ inline Counts sum_of_earlier(Published* word, int earlier, Counts own) {
  if (lane() == 0) *word = (earlier > 0 ? OF_BLOCK : OF_ALL) | packed(own);
  Counts sum{0, 0};
  for (int back = lane() + 1;;) {
    const u64 found = back <= earlier ? word[-back] : OF_ALL;
    const u32 whole = __ballot_sync(FULL, found >= OF_ALL), there = __ballot_sync(FULL, found != 0);
    const u32 needed = whole ? whole ^ (whole - 1) : FULL;  // up to the nearest that holds the sum of all before it
    if (needed & ~there) continue;
    const bool counts = needed >> lane() & 1;
    sum.keys += __reduce_add_sync(FULL, counts ? int(u32(found >> 31) & COUNT) : 0);
    sum.queries += __reduce_add_sync(FULL, counts ? int(u32(found) & COUNT) : 0);
    if (whole) break;
    back += 32;
  }
  if (earlier > 0 && lane() == 0) *word = OF_ALL | packed({sum.keys + own.keys, sum.queries + own.queries});
  return sum;
}
