// Attention to the selection, forward, on tensor cores: values of 16 bits, a multiple of 16 columns, float coordinates.
// A warp takes 16 queries that are neighbours in code order and multiplies their weights for 16 entries with the rows
// of these. Weights are relative to a near key's (see ranges.cu), so that either 16-bit type holds them. A product
// multiplies every row with every weight, those that are 0 too: where that gives NaN or infinity, because of a
// value that may be none of the query's, the tile is done again, query by query.
#include "attend.cuh"
#include "tile_queries.cuh"

ZETA_KERNEL(tile_fwd_kernel, THREADS, RESIDENT) {
  __shared__ EntryStage shared;
  QueryBlock block;
  if (!block.find(a)) return;
  const TileQuery* queries = block.queries;
  const int column = 2 * (lane() % 4);
  float inverse[2], total[2] = {0, 0}, sums[DIM / 8][4] = {};
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float largest = queries[n].nearest + queries[n].square;
    inverse[n] = largest < infinity() ? reciprocal(largest) : infinity();
  }
  block.visit(a, shared, [&](SharedAddress rows, const Point* points, const TileWindow* windows) {
    float weights[2][4];
    bool any = false;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int offset = column + j % 2 + j / 2 * 8;
      const Point point = points[offset];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const bool selected = windows[n].has(offset) && point.position < queries[n].visible;
        any = any || selected;
        float difference[DK];
#pragma unroll
        for (int c = 0; c < DK; ++c) difference[c] = queries[n].x[c] - point.x[c];
        const float denominator = squared_length(difference, queries[n].square);
        weights[n][j] = selected ? reciprocal(denominator * inverse[n]) : 0.0f;
        total[n] += weights[n][j];
      }
    }
    if (!__ballot_sync(FULL, any)) return;
    const u32 packed[4] = {pack(weights[0][0], weights[0][1]), pack(weights[1][0], weights[1][1]),
                           pack(weights[0][2], weights[0][3]), pack(weights[1][2], weights[1][3])};
    add_rows(sums, packed, rows);
  });
  __syncthreads();                      // staged rows are no longer used
  bool finite = true;
#pragma unroll
  for (int c = 0; c < DIM / 8; ++c)
#pragma unroll
    for (int j = 0; j < 4; ++j) finite = finite && fabsf(sums[c][j]) < infinity();
  if (__ballot_sync(FULL, !finite)) {
    const SlotTile& tile = block.tile;
    const int first = tile.first + int(threadIdx.x) / 32 * TILE;
    for (int slot = first; slot < min(first + TILE, tile.stop); ++slot) attend_in_slot(a, tile.row_slot + slot);
    return;
  }
  float before[2];
  i64 at[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    total[n] = warp_sum<4>(total[n]);
    at[n] = QueryPlace(a, block.tile, queries[n].number).at;
    const bool merges = a.prior && queries[n].exists();
    before[n] = merges ? static_cast<const float*>(a.normalizer)[at[n]] : 0.0f;
  }
  __syncwarp();                         // all lanes have read the normalizers
  const int first_row = int(threadIdx.x) / 32 * TILE;
  Value* out = static_cast<Value*>(a.out);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float weight = total[n] == 0 ? 0.0f : total[n] * inverse[n], together = before[n] + weight;
    float own = weight == 0 ? 0.0f : reciprocal(total[n]), others = 0;
    if (before[n] != 0) own *= weight / together, others = before[n] / together;
    const int row = first_row + lane() / 4 + 8 * n;
    u32* staged = reinterpret_cast<u32*>(shared.rows + row * ROW_BYTES + 2 * column);
    const u32* earlier = reinterpret_cast<const u32*>(out + at[n] * DIM + column);
#pragma unroll
    for (int c = 0; c < DIM / 8; ++c) {
      float x = sums[c][2 * n] * own, y = sums[c][2 * n + 1] * own;
      if (others != 0) x += others * low(earlier[c * 4]), y += others * high(earlier[c * 4]);
      staged[c * 4] = pack(x, y);
    }
    if (column != 0) continue;
    shared.queries[row] = queries[n].exists() ? at[n] : -1;
    if (queries[n].exists()) static_cast<float*>(a.normalizer)[at[n]] = together;
  }
  __syncwarp();
  constexpr int CHUNKS = DIM / 8;       // of a row
#pragma unroll
  for (int n = 0; n < TILE * CHUNKS / 32; ++n) {
    const int chunk = n * 32 + lane(), row = first_row + chunk / CHUNKS, place = chunk % CHUNKS;
    const i64 query = shared.queries[row];
    if (query < 0) continue;
    const Packed mean = *reinterpret_cast<const Packed*>(shared.rows + row * ROW_BYTES + place * 16);
    *reinterpret_cast<Packed*>(out + query * DIM + place * 8) = mean;
  }
}
