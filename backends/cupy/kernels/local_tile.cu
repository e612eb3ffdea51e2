// The local window, forward, on tensor cores: values of 16 bits, a multiple of 16 columns, float coordinates. A warp
// takes 16 consecutive queries of a head, finds the nearest key of each, and multiplies their weights, relative to its,
// for 16 keys with the rows of these. A product multiplies every row with every weight, those that are 0 too: where
// that gives NaN or infinity, because of a value that may be none of the query's, the tile is done again, query by
// query. The values are read, and the means read and written: 0.4 GB at 65 536 tokens, 16 heads and 64 columns, a floor
// of 0.1 ms.
#include "local_tiles.cuh"

// The least squared distance of the keys in each window.
__device__ inline void find_nearest(const KeyBlocks& blocks, const LocalTileQuery* queries, float* nearest) {
  nearest[0] = nearest[1] = infinity();
  for (int block = blocks.first; block < blocks.stop; block += TILE) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int position = block + 4 * j + lane() % 4;
      const Coordinate* key = blocks.keys + min(position, blocks.stop - 1) * blocks.key_stride;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float distance = local_distance(queries[n].x, key);
        if (queries[n].window.holds(position) && distance < nearest[n]) nearest[n] = distance;
      }
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      const float other = __shfl_xor_sync(FULL, nearest[n], offset);
      nearest[n] = other < nearest[n] ? other : nearest[n];
    }
}

// Merge a query's part with the parts before: `sums` has its columns at 2 n and 2 n + 1 of each four.
__device__ inline void write_local_part(const Args& a, i64 at, const float (*sums)[4], int n, float total,
                                        float inverse, float before) {
  const int column = 2 * (lane() % 4);
  const float weight = total == 0 ? 0.0f : total * inverse, together = before + weight;
  const float own = weight == 0 ? 0.0f : weight / together / total, others = before == 0 ? 0.0f : before / together;
  u32* out = reinterpret_cast<u32*>(static_cast<Value*>(a.out) + at * DIM + column);
#pragma unroll
  for (int c = 0; c < DIM / 8; ++c) {
    float x = 0, y = 0;
    if (own != 0) x = sums[c][2 * n] * own, y = sums[c][2 * n + 1] * own;
    if (others != 0) x += others * low(out[c * 4]), y += others * high(out[c * 4]);
    out[c * 4] = pack(x, y);
  }
  if (column == 0) static_cast<float*>(a.normalizer)[at] = together;
}

ZETA_KERNEL(local_tile_fwd_kernel, 32 * WARPS, RESIDENT) {
  __shared__ KeyStage stages[WARPS][STAGES];
  LocalTile tile;
  if (!tile.find<&Sequence::queries>(a, a.q_heads, a.q_len)) return;
  KeyStage* staged = stages[threadIdx.x / 32];
  const SharedAddress stage = shared_address(staged);
  const int row = lane() / 4, column = 2 * (lane() % 4);
  const LocalTileQuery queries[2] = {{a, tile, row}, {a, tile, row + 8}};
  const float square = squared_gamma(a, tile.head % a.q_heads);
  KeyBlocks blocks(a, tile);
  float nearest[2], inverse[2], total[2] = {0, 0}, sums[DIM / 8][4] = {};
  find_nearest(blocks, queries, nearest);
#pragma unroll
  for (int n = 0; n < 2; ++n) inverse[n] = Weights(square, nearest[n]).inverse;
  pipeline([&] { return blocks.next(); }, [&](int block) { blocks.look_up(block); },
           [&](int buffer, int block) {
             blocks.stage(staged[buffer], stage + buffer * int(sizeof(KeyStage)), block);
           },
           [&](int buffer, int block) {
    float weights[2][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int place = column + j % 2 + j / 2 * 8;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float distance = local_distance(queries[n].x, staged[buffer].points[place]);
        const bool attends = queries[n].window.holds(block + place);
        weights[n][j] = attends ? reciprocal((distance + square) * inverse[n]) : 0.0f;
        total[n] += weights[n][j];
      }
    }
    const u32 packed[4] = {pack(weights[0][0], weights[0][1]), pack(weights[1][0], weights[1][1]),
                           pack(weights[0][2], weights[0][3]), pack(weights[1][2], weights[1][3])};
    add_rows(sums, packed, stage + buffer * int(sizeof(KeyStage)));
  });
  bool finite = true;
#pragma unroll
  for (int c = 0; c < DIM / 8; ++c)
#pragma unroll
    for (int j = 0; j < 4; ++j) finite = finite && fabsf(sums[c][j]) < infinity();
  if (__ballot_sync(FULL, !finite)) {
    const i64 first = i64(tile.head) * a.q_len + sequences_of(a)[tile.sequence].start;
    for (int i = tile.first; i < tile.stop; ++i) attend_locally(a, first + i);
    return;
  }
  float before[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    total[n] = warp_sum<4>(total[n]);
    before[n] = a.prior && queries[n].exists() ? static_cast<const float*>(a.normalizer)[queries[n].at] : 0.0f;
  }
  __syncwarp();                         // all lanes have read the normalizers
#pragma unroll
  for (int n = 0; n < 2; ++n)
    if (queries[n].exists()) write_local_part(a, queries[n].at, sums, n, total[n], inverse[n], before[n]);
}
