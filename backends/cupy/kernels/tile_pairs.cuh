// Which queries name a key, for the pass at the keys: pairs of a key and a tile of 16 queries, with a bit for each of
// these. The pass at the queries writes the pairs of its tiles, those of keys of one *group* as a run: a group are 16
// keys that are neighbours in code order. Then groups get lists of their runs, in any order: what is made of them
// depends on which they are alone.
#pragma once
#include "given.cuh"
#include "tensor.cuh"

constexpr int GIVEN_WARPS = 2;          // of a block
constexpr int JOINED = 32;              // places of a query that are joined at a time
constexpr int HEAVY = 2048;             // runs: groups with more are summed in parts

__device__ inline int tiles_of_head(const Args& a) { return (group_size(a) * a.q_len + TILE - 1) / TILE; }
__device__ inline int groups_of_head(const Args& a) { return (a.k_len + TILE - 1) / TILE; }
__device__ inline i64 count_groups(const Args& a) { return i64(a.batch) * a.kv_heads * groups_of_head(a); }
__device__ inline int rounds_of(const Args& a) { return (a.width + JOINED - 1) / JOINED; }

// A query that names a key twice does so in the same round, in different copies, or in different rounds.
struct alignas(8) TilePair {
  u32 key;                              // group * 16 + place in it
  u32 rest;                             // bits of queries, copy (5 bits), round (11)

  __device__ bool continues(TilePair before) const {
    return key / TILE == before.key / TILE && rest >> 16 == before.rest >> 16;
  }
};

// Pairs of a tile whose keys are of one group.
struct alignas(8) Run {
  u32 visit;                            // tile of the head * rounds + round
  u32 rest;                             // first pair of the tile's (21 bits), pairs less 1 (4), copy (5)

  __device__ int first() const { return int(rest & 0x1fffff); }
  __device__ int length() const { return int(rest >> 21 & 15) + 1; }
  __device__ int copy() const { return int(rest >> 25); }
};

// What is counted for each group, and behind all groups for the call.
struct alignas(16) GroupCounts {
  int runs;                             // for the call: room that is taken
  int start;                            // of its runs; for the call: parts of heavy groups
  int listed;                           // runs that stand in its list
  int part;                             // first of its parts, if it is heavy
};

struct alignas(8) HeavyPart { int group, part; };

__device__ inline int parts_of(int runs) { return runs > HEAVY ? (runs + HEAVY - 1) / HEAVY : 0; }

// A query as the pass over keys reads it, in the order of tiles.
struct alignas(16) GivenRecord {
  float x[DK];
  float square;                         // gamma^2
  float inverse;                        // 1 / Z; 0 for a query that gives no gradients
  float delta;                          // D
  int row;                              // of grad_out, from that of the first query of the key head, in 16 bytes
};
