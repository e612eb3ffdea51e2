// Tiles of the local window, on tensor cores: 16 consecutive queries of a head and blocks of 16 of the keys that some
// of them attend to, or 16 keys and blocks of 16 queries. Rows are consecutive, and neighbouring tiles share most.
// Lane l serves rows l / 4 and l / 4 + 8 of a tile.
#pragma once
#include "chunks.cuh"
#include "local.cuh"
#include "tensor.cuh"

// A warp's tile of queries or keys; `head` counts over all batch items.
struct LocalTile : Chunk {
  int head;

  template <auto LENGTH> __device__ bool find(const Args& a, int heads, int length) {
    const u32 warp = u32(warp_of_grid()), tiles = u32(length / TILE + a.num_sequences);
    head = int(warp / tiles);
    return head < a.batch * heads && find_chunk<TILE, LENGTH>(a, int(warp % tiles), *this);
  }
};

// One of the two queries of a lane.
struct LocalTileQuery {
  i64 at;                               // among all queries; -1 where there is none
  Coordinate x[DK];
  Window window;
  const Value* grad;                    // its row of grad_out, for backward passes

  __device__ LocalTileQuery(const Args& a, const LocalTile& tile, int place) : at(-1), grad(nullptr) {
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = 0;
    const int i = tile.first + place, head = tile.head % group_size(a);
    if (i >= tile.stop) return;
    const Sequence& s = sequences_of(a)[tile.sequence];
    const Query query = query_of(a, tile.head / group_size(a), tile.sequence, head * s.queries + i);
    at = query.at;
    window = Window(a, s, i);
    if (a.grad_out) grad = grad_row(a, query);
    const Coordinate* point = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = point[c];
  }
  __device__ bool exists() const { return at >= 0; }
};

// 16 keys and the rows of their values, on their way to shared memory.
struct KeyStage {
  alignas(16) unsigned char rows[STAGED_ROWS];
  Coordinate points[TILE][DK];
};

// The keys that some query of a tile attends to, in blocks of 16.
struct KeyBlocks {
  const Value* values;                  // of the sequence
  const Coordinate* keys;
  i64 value_stride, key_stride;
  int first, stop, following;           // positions, and the next block
  Coordinate looked_up[DK];             // key `lane` of the block looked up last

  __device__ KeyBlocks(const Args& a, const LocalTile& tile)
      : value_stride(a.v_stride), key_stride(a.k_stride) {
    const Sequence& s = sequences_of(a)[tile.sequence];
    const int head_row = tile.head / group_size(a);
    values = value_row(a, head_row, s.start);
    keys = key_point(a, head_row, s.start);
    first = following = Window(a, s, tile.first).first;
    stop = Window(a, s, tile.stop - 1).stop;
#pragma unroll
    for (int c = 0; c < DK; ++c) looked_up[c] = 0;
  }
  __device__ int next() {
    if (following >= stop) return -1;
    following += TILE;
    return following - TILE;
  }
  __device__ void look_up(int block) {
    const Coordinate* key = keys + min(block + lane() % TILE, stop - 1) * key_stride;
#pragma unroll
    for (int c = 0; c < DK; ++c) looked_up[c] = key[c];
  }
  __device__ void stage(KeyStage& into, SharedAddress to, int block) const {
    stage_rows(to, [&](int row, const Value*& from) {
      from = values + (block + row) * value_stride;
      return block + row < stop;
    });
#pragma unroll
    for (int c = 0; c < DK; ++c) if (lane() < TILE) into.points[lane()][c] = looked_up[c];
  }
};

// Squared distance for weights: it decides nothing, and a compiler may contract it.
__device__ inline float local_distance(const Coordinate* x, const Coordinate* y) {
  float total = 0;
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    const float difference = x[c] - y[c];
    total += difference * difference;
  }
  return total;
}
