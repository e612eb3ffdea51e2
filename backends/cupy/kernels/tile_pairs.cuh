// Which queries name a key, for the pass at the keys: pairs of a key and a tile of 16 queries, with a bit for each of
// these. The pass at the queries writes the pairs of its tiles and counts those of each *group* of 16 keys, which are
// neighbours in code order; then they are moved to their groups. They stand there in any order: what is made of them
// depends on which they are alone.
#pragma once
#include "given.cuh"
#include "tensor.cuh"

constexpr int GIVEN_WARPS = 2;          // of a block
constexpr int JOINED = 32;              // places of a query that are joined at a time
constexpr int HEAVY = 2048;             // pairs: groups with more are summed in parts

__device__ inline int tiles_of_head(const Args& a) { return (group_size(a) * a.q_len + TILE - 1) / TILE; }
__device__ inline int groups_of_head(const Args& a) { return (a.k_len + TILE - 1) / TILE; }
__device__ inline i64 count_groups(const Args& a) { return i64(a.batch) * a.kv_heads * groups_of_head(a); }
__device__ inline int rounds_of(const Args& a) { return (a.width + JOINED - 1) / JOINED; }

// A pair where it is made. A query that names a key twice does so in the same round, in different copies, or in
// different rounds.
struct alignas(8) TilePair {
  u32 key;                              // group * 16 + place in it
  u32 rest;                             // bits of queries, copy (5 bits), round (11)
};

// A pair in its group.
struct alignas(8) GroupPair {
  u32 visit;                            // tile of the head * rounds + round
  u32 rest;                             // bits of queries, copy (5 bits), place of the key in its group (4)

  __device__ int copy() const { return int(rest >> 16 & 31); }
  __device__ int key() const { return int(rest >> 21); }
};

// What is counted for each group, and behind all groups for the call.
struct alignas(16) GroupCounts {
  int pairs;                            // for the call: room that is taken
  int start;                            // of its pairs; for the call: parts of heavy groups
  int moved;                            // pairs that stand in the group
  int part;                             // first of its parts, if it is heavy
};

struct alignas(8) HeavyPart { int group, part; };

__device__ inline int parts_of(int pairs) { return pairs > HEAVY ? (pairs + HEAVY - 1) / HEAVY : 0; }

// A query as the pass over keys reads it, in the order of tiles.
struct alignas(16) GivenRecord {
  float x[DK];
  float square;                         // gamma^2
  float inverse;                        // 1 / Z; 0 for a query that gives no gradients
  float delta;                          // D
  int row;                              // of grad_out, from that of the first query of the key head, in 16 bytes
};
