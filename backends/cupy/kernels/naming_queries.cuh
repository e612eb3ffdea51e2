// The queries that name keys of a group, each once, with a bit for each key. They come in the order of the visits of
// their tiles, which are marked in a bit map and so get ranks: in which order the runs are listed does not matter.
#pragma once
#include "tile_pairs.cuh"

constexpr int MAP_WORDS = 256;
constexpr int MAP_VISITS = 32 * MAP_WORDS;  // that are looked at together
constexpr int RANKS = 64;               // tiles whose queries are listed at a time

// What a warp keeps of them in shared memory.
struct NamingQueries {
  u32 bits[MAP_WORDS];                  // visits that there are
  int before[MAP_WORDS];                // how many come before the word
  u32 tiles[RANKS];                     // of visits
  union {
    alignas(16) u32 names[RANKS][TILE / 2];  // which queries of a tile name each key, keys n and n + 8 in a word
    u32 listed[RANKS * TILE];           // which keys a query names, above that its place among those of the tiles
  };
};

// Transpose 16 x 16 bits: word n has rows n and n + 8.
__device__ inline void transpose(u32 (&words)[TILE / 2]) {
#pragma unroll
  for (int n = 0; n < TILE / 2; ++n) words[n] = __byte_perm(words[n], 0, 0x3120);
#pragma unroll
  for (int size = 4; size > 0; size /= 2) {
    const u32 mask = size == 4 ? 0x0f0f0f0fu : size == 2 ? 0x33333333u : 0x55555555u;
#pragma unroll
    for (int n = 0; n < TILE / 2; ++n) {
      if (n & size) continue;
      const u32 swapped = (words[n] >> size ^ words[n + size]) & mask;
      words[n + size] ^= swapped;
      words[n] ^= swapped << size;
    }
  }
}

// Visits [first, first + size) in one copy.
struct Visits {
  u32 first, size;
  int copy;

  __device__ bool has(const Run& run) const { return run.visit - first < size && run.copy() == copy; }
};

// The runs of a group.
struct RunList {
  const TilePair* pairs;                // of the head row's tiles
  const Run* runs;
  int count;

  __device__ RunList(const Args& a, int head_row, const GroupCounts& counts) {
    pairs = static_cast<const TilePair*>(a.tile_pairs) + i64(head_row) * tiles_of_head(a) * TILE * a.width;
    runs = static_cast<const Run*>(a.group_runs) + counts.start;
    count = counts.runs;
  }

  // Mark which of some visits there are; returns how many. `copies` becomes the greatest copy that the lane has seen.
  __device__ int mark(NamingQueries& memory, const Visits& visits, int& copies) const {
    for (int n = lane(); n < MAP_WORDS; n += 32) memory.bits[n] = 0;
    __syncwarp();
    for (int n = lane(); n < count; n += 32) {
      const Run run = runs[n];
      copies = max(copies, run.copy());
      const u32 visit = run.visit - visits.first;
      if (visits.has(run)) atomicOr(&memory.bits[visit / 32], 1u << visit % 32);
    }
    __syncwarp();
    int total = 0;
#pragma unroll
    for (int n = 0; n < MAP_WORDS; n += 32) {
      const int own = __popc(memory.bits[n + lane()]), last = sum_to_lane(own);
      memory.before[n + lane()] = total + last - own;
      total += __shfl_sync(FULL, last, 31);
    }
    __syncwarp();
    return total;
  }

  // List the queries of the marked visits with ranks from `first` on; returns how many they are.
  __device__ int list(const Args& a, NamingQueries& memory, const Visits& visits, int first) const {
    int4* cleared = reinterpret_cast<int4*>(memory.names);
#pragma unroll
    for (int n = 0; n < RANKS * TILE / 2 / 128; ++n) cleared[n * 32 + lane()] = int4{0, 0, 0, 0};
    __syncwarp();
    const int rounds = rounds_of(a);
    for (int n = lane(); n < count; n += 32) {
      const Run run = runs[n];
      if (!visits.has(run)) continue;
      const u32 visit = run.visit - visits.first, word = visit / 32, below = (1u << visit % 32) - 1;
      const int rank = memory.before[word] + __popc(memory.bits[word] & below) - first;
      if (u32(rank) >= u32(RANKS)) continue;
      const u32 tile = rounds > 1 ? run.visit / u32(rounds) : run.visit;
      memory.tiles[rank] = tile;
      const TilePair* of_run = pairs + i64(tile) * TILE * a.width + run.first();
      for (int j = 0; j < run.length(); ++j) {
        const TilePair pair = of_run[j];
        unsigned short* of_key = reinterpret_cast<unsigned short*>(&memory.names[rank][pair.key % 8]);
        of_key[pair.key / 8 % 2] = (unsigned short)(pair.rest & 0xffff);
      }
    }
    __syncwarp();
    u32 words[RANKS / 32][TILE / 2];
    int own = 0;
#pragma unroll
    for (int n = 0; n < RANKS / 32; ++n) {
#pragma unroll
      for (int j = 0; j < TILE / 2; ++j) words[n][j] = memory.names[n * 32 + lane()][j];
      transpose(words[n]);
#pragma unroll
      for (int j = 0; j < TILE / 2; ++j) own += ((words[n][j] & 0xffff) != 0) + (words[n][j] >> 16 != 0);
    }
    const int last = sum_to_lane(own);
    __syncwarp();                       // all lanes have read what is written over
    int place = last - own;
#pragma unroll
    for (int n = 0; n < RANKS / 32; ++n) {
#pragma unroll
      for (int j = 0; j < TILE / 2; ++j) {
        const u32 query = u32(n * 32 + lane()) * TILE + j, keys = words[n][j];
        if (keys & 0xffff) memory.listed[place++] = query << 16 | (keys & 0xffff);
        if (keys >> 16) memory.listed[place++] = (query + TILE / 2) << 16 | keys >> 16;
      }
    }
    __syncwarp();
    return __shfl_sync(FULL, last, 31);
  }
};
