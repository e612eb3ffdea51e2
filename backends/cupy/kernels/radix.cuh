// The ranks of the items of a tile by one digit, in a stable order. CUB, which CuPy brings along, finds them; the
// tests' host build has a plain loop.
#pragma once
#include "items.cuh"

constexpr int SORT_THREADS = RADIX;     // a thread answers for a digit too
constexpr int EACH_OF_TILE = 11, SORT_TILE = SORT_THREADS * EACH_OF_TILE;  // items
using TileItems = u64[EACH_OF_TILE];    // of a thread
using TileRanks = int[EACH_OF_TILE];

// Where in its tile a thread's item stands: those of a warp lie together, 32 side by side.
__device__ inline int place_in_tile(int n) { return int(threadIdx.x) / 32 * (32 * EACH_OF_TILE) + n * 32 + lane(); }

// Find the ranks of a thread's items. `use_count` gets how many of the tile have the thread's digit, as soon as that is
// known; returned is how many have a smaller one. All threads of the block together.
#ifdef ZETA_HOST
struct RankMemory {
  int digits[SORT_TILE], ranks[SORT_TILE], counts[RADIX], starts[RADIX];
};

template <class UseCount>
inline int find_ranks(RankMemory& memory, TileItems& items, TileRanks& ranks, RadixDigit digit, UseCount use_count) {
  for (int n = 0; n < EACH_OF_TILE; ++n) memory.digits[place_in_tile(n)] = digit.of(items[n]);
  __syncthreads();
  if (threadIdx.x == 0) {
    int next[RADIX] = {}, start = 0;
    for (const int found : memory.digits) ++next[found];
    for (int n = 0; n < RADIX; ++n) {
      memory.counts[n] = next[n];
      next[n] = memory.starts[n] = start;
      start += memory.counts[n];
    }
    for (int n = 0; n < SORT_TILE; ++n) memory.ranks[n] = next[memory.digits[n]]++;
  }
  __syncthreads();
  use_count(memory.counts[threadIdx.x]);
  for (int n = 0; n < EACH_OF_TILE; ++n) ranks[n] = memory.ranks[place_in_tile(n)];
  return memory.starts[threadIdx.x];
}
#else
#include <cub/block/block_radix_rank.cuh>

using Ranker = cub::BlockRadixRankMatchEarlyCounts<SORT_THREADS, RADIX_BITS, false>;
using RankMemory = Ranker::TempStorage;

struct DigitExtractor {
  RadixDigit digit;
  __device__ u32 Digit(u64 item) const { return u32(digit.of(item)); }
};

template <class UseCount> struct CountCallback {
  static constexpr bool EMPTY = false;
  UseCount use_count;
  __device__ void operator()(int (&counts)[1]) const { use_count(counts[0]); }
};

template <class UseCount>
__device__ inline int find_ranks(RankMemory& memory, TileItems& items, TileRanks& ranks, RadixDigit digit,
                                 UseCount use_count) {
  int smaller[1];
  Ranker(memory).RankKeys(items, ranks, DigitExtractor{digit}, smaller, CountCallback<UseCount>{use_count});
  return smaller[0];
}
#endif
