// The local window, backward, at the queries, on tensor cores: as forward, but products of grad_out with the staged
// rows of values instead of sums of these.
#include "local_tiles.cuh"

ZETA_KERNEL(local_tile_bwd_queries_kernel, THREADS, LOCAL_RESIDENT) {
  __shared__ KeySlab shared;
  LocalBlock block;
  if (!block.find<&Sequence::queries>(a, a.q_len)) return;
  const int row = lane() / 4, column = 2 * (lane() % 4);
  const LocalTileQuery queries[2] = {{a, block, row}, {a, block, row + 8}};
  const float square = squared_gamma(a, block.head % a.q_heads);
  u32 grad[DIM / 16][4];
  load_two_rows(grad, queries[0].exists() ? queries[0].grad : nullptr, queries[1].exists() ? queries[1].grad : nullptr);
  const LocalKeys keys(a, block, shared);
  keys.stage(keys.first);
  float inverse[2];
  Pull pulls[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    inverse[n] = queries[n].exists() ? inverse_normalizer(a, queries[n].at) : 0.0f;
    pulls[n].clear();
  }
  keys.visit([&](int position, SharedAddress rows, const Coordinate (*points)[DK]) {
    float products[2][4];
    multiply_rows(products, grad, rows);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int place = column + j % 2 + j / 2 * 8;
      const Coordinate* key = points[place];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (inverse[n] == 0 || !queries[n].window.holds(position + place)) continue;
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
