// The local window, forward, on tensor cores: values of 16 bits, a multiple of 16 columns, float coordinates. A warp
// multiplies the weights of its 16 queries for 16 keys with the rows of these. A product multiplies every row with
// every weight, those that are 0 too: where that gives NaN or infinity, because of a value that may be none of the
// query's, the tile is done again, query by query. The values are read and the means written, or read and written: a
// floor of 0.1 ms at 65 536 tokens, 16 heads and 64 columns.
#include "local_tiles.cuh"

// What weights are relative to. Those in half precision have to be between 0 and 1: to the weight of the nearest key.
// Bfloat16 has the range of float, so that any key will do: the latest one. Where a weight is too large after all, sums
// are not finite.
__device__ inline void find_scales(const LocalTileQuery* queries, const LocalKeys& keys, float square, float* inverse) {
  float nearest[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int latest = max(queries[n].window.stop - 1, keys.first);
    nearest[n] = keys.first < keys.stop ? local_distance(queries[n].x, keys.points + latest * keys.point_stride) : 0.0f;
  }
  if (IS_HALF) {
    for (int position = keys.first_of_warp + lane() % 4; position < keys.stop_of_warp; position += 4) {
      const Coordinate* key = keys.points + position * keys.point_stride;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float distance = local_distance(queries[n].x, key);
        if (queries[n].window.holds(position)) nearest[n] = fminf(nearest[n], distance);
      }
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int offset = 1; offset < 4; offset *= 2)
        nearest[n] = fminf(nearest[n], __shfl_xor_sync(FULL, nearest[n], offset));
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) inverse[n] = reciprocal(nearest[n] + square);
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

ZETA_KERNEL(local_tile_fwd_kernel, THREADS, LOCAL_RESIDENT) {
  __shared__ KeySlab shared;
  LocalBlock block;
  if (!block.find<&Sequence::queries>(a, a.q_len)) return;
  const int row = lane() / 4, column = 2 * (lane() % 4);
  const LocalTileQuery queries[2] = {{a, block, row}, {a, block, row + 8}};
  const float square = squared_gamma(a, block.head % a.q_heads);
  const LocalKeys keys(a, block, shared);
  float inverse[2], total[2] = {0, 0}, sums[DIM / 8][4] = {};
  find_scales(queries, keys, square, inverse);
  keys.stage(keys.first);
  keys.visit([&](int position, SharedAddress rows, const Coordinate (*points)[DK]) {
    float weights[2][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int place = column + j % 2 + j / 2 * 8;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float distance = local_distance(queries[n].x, points[place]);
        const bool attends = queries[n].window.holds(position + place);
        weights[n][j] = attends ? reciprocal((distance + square) * inverse[n]) : 0.0f;
        total[n] += weights[n][j];
      }
    }
    const u32 packed[4] = {pack(weights[0][0], weights[0][1]), pack(weights[1][0], weights[1][1]),
                           pack(weights[0][2], weights[0][3]), pack(weights[1][2], weights[1][3])};
    add_rows(sums, packed, rows);
  });
  bool finite = true;
#pragma unroll
  for (int c = 0; c < DIM / 8; ++c)
#pragma unroll
    for (int j = 0; j < 4; ++j) finite = finite && fabsf(sums[c][j]) < infinity();
  if (__ballot_sync(FULL, !finite)) {
    const i64 first = i64(block.head) * a.q_len + sequences_of(a)[block.sequence].start;
    for (int i = block.tile(); i < block.tile_stop(); ++i) attend_locally(a, first + i);
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
