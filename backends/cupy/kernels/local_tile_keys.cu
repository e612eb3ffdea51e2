// The local window, backward, at the keys, on tensor cores: a warp visits the queries of all heads whose windows hold
// some of its 16 keys, 16 at a time: p grad_out for the values, and the pulls at the keys.
#include "local_tiles.cuh"

// What the pass over keys reads of a query, beside its row of grad_out.
struct LocalRecord {
  Coordinate x[DK];
  float inverse;                        // 1 / Z; 0 where there is no query, or nothing has weight
  float delta;                          // D
  float square;                         // gamma^2
};

struct QuerySlab {
  alignas(16) unsigned char rows[SLAB * ROW_BYTES];
  LocalRecord records[SLAB];
};

// Stage the queries of a head from number `first` on.
__device__ inline void stage_queries(const Args& a, const LocalBlock& block, int head, int first, int count,
                                     QuerySlab& shared) {
  Query query = {};
  query.head_row = block.head;
  query.head = head;
  query.token = sequences_of(a)[block.sequence].start + first;
  stage_slab(shared_address(shared.rows), grad_row(a, query), a.g_stride, count);
  const Coordinate* points = query_point(a, query);
  const i64 at = (i64(block.head) * group_size(a) + head) * a.q_len + query.token;
  const float square = squared_gamma(a, head_of(a, query));
  const int n = threadIdx.x, existing = min(n, count - 1);
  if (n >= SLAB) return;
  LocalRecord record;
  record.delta = static_cast<const float*>(a.delta)[at + existing];
  record.square = square;
#pragma unroll
  for (int c = 0; c < DK; ++c) record.x[c] = points[existing * a.q_stride + c];
  record.inverse = inverse_normalizer(a, at + existing);
  if (n >= count) record.inverse = 0;
  shared.records[n] = record;
}

// Visit the tiles of queries of all heads that attend to this warp's keys: `f(first query, staged rows, records)`. All
// threads of the block together.
template <class F>
__device__ inline void visit_queries(const Args& a, const LocalBlock& block, QuerySlab& shared, F f) {
  const Sequence& s = sequences_of(a)[block.sequence];
  const Attending of_block(a, s, block.first, block.stop), of_warp(a, s, block.tile(), block.tile_stop());
  const int slabs = (of_block.stop - of_block.first + SLAB - 1) / SLAB;
  for (int head = 0; head < group_size(a); ++head) {
    for (int n = 0; n < slabs; ++n) {
      const int slab = of_block.first + n * SLAB;
      if (head + n > 0) __syncthreads();  // all have used the one before
      stage_queries(a, block, head, slab, min(of_block.stop - slab, SLAB), shared);
      wait_for_stage();
      __syncthreads();
      if (block.tile() >= block.tile_stop()) continue;
      visit_tiles(slab, of_warp.first, of_warp.stop, [&](int row) {
        f(slab + row, shared_address(shared.rows) + row * ROW_BYTES, shared.records + row);
      });
    }
  }
}

ZETA_KERNEL(local_tile_bwd_keys_kernel, THREADS, LOCAL_RESIDENT) {
  __shared__ QuerySlab shared;
  LocalBlock block;
  if (!block.find<&Sequence::keys>(a, a.k_len)) return;
  const Sequence& s = sequences_of(a)[block.sequence];
  const int row = lane() / 4, column = 2 * (lane() % 4);
  // The two keys of this lane.
  Coordinate x[2][DK];
  const Value* value_rows[2];
  int latest[2];                        // the query at the key's position: it is attended to from there on
  bool exists[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int position = block.tile() + row + 8 * n;
    exists[n] = position < block.stop;
    latest[n] = int(position - a.q_offset);
    value_rows[n] = exists[n] ? value_row(a, block.head, s.start + position) : nullptr;
    const Coordinate* key = key_point(a, block.head, s.start + (exists[n] ? position : block.first));
#pragma unroll
    for (int c = 0; c < DK; ++c) x[n][c] = key[c];
  }
  u32 values[DIM / 16][4];
  load_two_rows(values, value_rows[0], value_rows[1]);
  float sums[DIM / 8][4] = {}, pull[2][DK] = {};
  visit_queries(a, block, shared, [&](int first, SharedAddress rows, const LocalRecord* records) {
    float products[2][4], weights[2][4];
    multiply_rows(products, values, rows);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int place = column + j % 2 + j / 2 * 8;
      const LocalRecord& record = records[place];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const bool attends = exists[n] && u32(first + place - latest[n]) < u32(a.local_window) && record.inverse != 0;
        const float u = attends ? reciprocal(local_distance(record.x, x[n]) + record.square) : 0.0f;
        const float p = u * record.inverse;
        weights[n][j] = p;
        if (p == 0) continue;
        const float slope = 2 * u * p * (products[j / 2][2 * n + j % 2] - record.delta);
#pragma unroll
        for (int c = 0; c < DK; ++c) pull[n][c] += slope * (record.x[c] - x[n][c]);
      }
    }
    const u32 packed[4] = {pack(weights[0][0], weights[0][1]), pack(weights[1][0], weights[1][1]),
                           pack(weights[0][2], weights[0][3]), pack(weights[1][2], weights[1][3])};
    add_rows(sums, packed, rows);
  });
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int c = 0; c < DK; ++c) pull[n][c] = warp_sum<4>(pull[n][c]);
    if (!exists[n]) continue;
    const i64 key = i64(block.head) * a.k_len + s.start + block.tile() + row + 8 * n;
    float2* sum_v = reinterpret_cast<float2*>(static_cast<float*>(a.sum_v) + key * DIM + column);
#pragma unroll
    for (int c = 0; c < DIM / 8; ++c) {
      const float2 before = a.carried ? sum_v[c * 4] : float2{0, 0};
      sum_v[c * 4] = float2{before.x + sums[c][2 * n], before.y + sums[c][2 * n + 1]};
    }
    float* sum_k = static_cast<float*>(a.sum_k) + key * DK;
#pragma unroll
    for (int c = 0; c < DK; ++c) if (column == 0) sum_k[c] = a.carried ? sum_k[c] + pull[n][c] : pull[n][c];
  }
}
