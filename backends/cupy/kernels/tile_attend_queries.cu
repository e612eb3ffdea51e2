// Attention to the selection, backward, at the queries, on tensor cores: as forward, but products of grad_out with the
// staged rows of values instead of sums of these.
#include "tile_queries.cuh"
#include "tile_tails.cuh"

constexpr i64 NO_ROW = i64(1) << 62;    // strides may be negative, and a row before the first

ZETA_KERNEL(tile_bwd_queries_kernel, THREADS, RESIDENT) {
  __shared__ EntryStage shared;
  QueryBlock block;
  if (!block.find(a)) return;
  const TileQuery* queries = block.queries;
  const int column = 2 * (lane() % 4);
  float inverse[2];
  const int first_row = int(threadIdx.x) / 32 * TILE;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const QueryPlace place(a, block.tile, queries[n].number);
    const float normalizer = queries[n].exists() ? static_cast<const float*>(a.normalizer)[place.at] : 0;
    inverse[n] = normalizer == 0 ? 0 : reciprocal(normalizer);
    if (inverse[n] == 0) block.queries[n].visible = 0;
    const i64 grad = place.grad_row(a, block.tile) - static_cast<const Value*>(a.grad_out);
    if (column == 0) shared.queries[first_row + lane() / 4 + 8 * n] = inverse[n] != 0 ? grad : NO_ROW;
  }
  __syncthreads();
  stage_rows(shared.rows, GROUP, [&](int row, bool& exists) {
    const i64 at = shared.queries[row];
    exists = at != NO_ROW;
    return reinterpret_cast<const char*>(static_cast<const Value*>(a.grad_out) + (exists ? at : 0));
  });
  wait_for_stage();
  __syncthreads();
  u32 grad[DIM / 16][4];
  load_rows(grad, shared_address(shared.rows) + first_row * ROW_BYTES);
  Pull pulls[2];
  pulls[0].clear();
  pulls[1].clear();
  block.visit(a, shared, [&](SharedAddress rows, const Point* staged, const TileWindow* windows) {
    Point points[4];
    bool selected[2][4], any = false;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int offset = column + j % 2 + j / 2 * 8;
      points[j] = staged[offset];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        selected[n][j] = windows[n].has(offset) && points[j].position < queries[n].visible;
        any = any || selected[n][j];
      }
    }
    if (!__ballot_sync(FULL, any)) return;
    float products[2][4];
    multiply_rows(products, grad, rows);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        // What is not selected counts as 0 in all that follows, be it finite or not.
        const bool is = selected[n][j];
        float difference[DK];
#pragma unroll
        for (int c = 0; c < DK; ++c) difference[c] = is ? queries[n].x[c] - points[j].x[c] : 0.0f;
        const float u = is ? reciprocal(squared_length(difference, queries[n].square)) : 0.0f;
        const float product = is ? products[j / 2][2 * n + j % 2] : 0.0f;
        pulls[n].add(u, u * inverse[n], product, difference, true);
      }
    }
  });
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    pulls[n].reduce<4>();
    if (column != 0 || !queries[n].exists()) continue;
    const i64 at = QueryPlace(a, block.tile, queries[n].number).at;
    write_query_gradients(a, at, pulls[n]);
    static_cast<QueryTail*>(a.tails)[block.tile.row_slot + block.slot_of_lane(n)] =
        QueryTail{inverse[n], static_cast<const Sum*>(a.delta)[at], queries[n].square, 0};
  }
}
