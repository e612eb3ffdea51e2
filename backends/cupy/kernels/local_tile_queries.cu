// The local window, backward, at the queries, on tensor cores: as forward, but products of grad_out with the staged
// rows of values instead of sums of these.
#include "local_tiles.cuh"

ZETA_KERNEL(local_tile_bwd_queries_kernel, 32 * WARPS, RESIDENT) {
  __shared__ KeyStage stages[WARPS][STAGES];
  LocalTile tile;
  if (!tile.find<&Sequence::queries>(a, a.q_heads, a.q_len)) return;
  KeyStage* staged = stages[threadIdx.x / 32];
  const SharedAddress stage = shared_address(staged);
  const int row = lane() / 4, column = 2 * (lane() % 4);
  const LocalTileQuery queries[2] = {{a, tile, row}, {a, tile, row + 8}};
  const float square = squared_gamma(a, tile.head % a.q_heads);
  float inverse[2];
  Pull pulls[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    inverse[n] = queries[n].exists() ? inverse_normalizer(a, queries[n].at) : 0.0f;
    pulls[n].clear();
  }
  u32 grad[DIM / 16][4];
  load_rows(grad, inverse[0] != 0 ? queries[0].grad : nullptr, inverse[1] != 0 ? queries[1].grad : nullptr);
  KeyBlocks blocks(a, tile);
  pipeline([&] { return blocks.next(); }, [&](int block) { blocks.look_up(block); },
           [&](int buffer, int block) {
             blocks.stage(staged[buffer], stage + buffer * int(sizeof(KeyStage)), block);
           },
           [&](int buffer, int block) {
    float products[2][4];
    multiply_rows(products, grad, stage + buffer * int(sizeof(KeyStage)));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int place = column + j % 2 + j / 2 * 8;
      const Coordinate* key = staged[buffer].points[place];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (inverse[n] == 0 || !queries[n].window.holds(block + place)) continue;
        const float u = reciprocal(local_distance(queries[n].x, key) + square);
        float difference[DK];
#pragma unroll
        for (int c = 0; c < DK; ++c) difference[c] = queries[n].x[c] - key[c];
        pulls[n].add(u, u * inverse[n], products[j / 2][2 * n + j % 2], difference, true);
      }
    }
  });
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    pulls[n].reduce<4>();
    if (column == 0 && queries[n].exists()) write_pull(a, queries[n].at, pulls[n]);
  }
}
