// Attention to the selection, forward, on tensor cores: values of 16 bits, a multiple of 16 columns, float coordinates.
// One warp takes 16 queries that are neighbours in code order and multiplies their weights for 16 entries with the rows
// of these. Weights are relative to each query's nearest key, so that they are between 0 and 1 in either 16-bit type. A
// product multiplies every row with every weight, those that are 0 too: where that gives NaN or infinity, because of a
// value that may be none of the query's, the tile is done again, query by query.
#include "attend.cuh"
#include "tile_queries.cuh"

ZETA_KERNEL(tile_fwd_kernel, 32 * WARPS, RESIDENT) {
  __shared__ EntryStage stages[WARPS][STAGES];
  SlotTile tile;
  if (!find_slot_tile<TILE>(a, warp_of_grid(), tile)) return;
  const EntryStage* staged = stages[threadIdx.x / 32];
  const SharedAddress stage = shared_address(staged);
  const int row = lane() / 4, column = 2 * (lane() % 4), first_entry = int(sequences_of(a)[tile.sequence].entry);
  TileQuery queries[2];
  float inverse[2], total[2] = {0, 0}, sums[DIM / 8][4] = {};
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    queries[n].load(a, tile, row + 8 * n);
    const i64 slot = tile.row_slot + tile.first + row + 8 * n;
    const float nearest = queries[n].exists() ? nearest_in_slot(a, slot, queries[n].at) : 0;
    inverse[n] = Weights(queries[n].square, nearest).inverse;
  }
  for (int curve = 0; curve < CURVES; ++curve) {
    Blocks blocks(a, tile.head_row, curve, queries);
    EntryLoader loader(a, tile, curve, blocks.visible);
    pipeline([&] { return blocks.next(); }, [&](int block) { loader.look_up(block); },
             [&](int buffer, int block) { loader.stage(stage + buffer * int(sizeof(EntryStage)), block); },
             [&](int buffer, int block) {
      float weights[2][4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int place = column + j % 2 + j / 2 * 8;
        const Point point = staged[buffer].points[place];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float distance = weighing_distance(queries[n].x, point.x);
          const bool selected = selects(a, queries[n], curve, block + place, point, first_entry, distance);
          weights[n][j] = selected ? reciprocal((distance + queries[n].square) * inverse[n]) : 0.0f;
          total[n] += weights[n][j];
        }
      }
      const u32 packed[4] = {pack(weights[0][0], weights[0][1]), pack(weights[1][0], weights[1][1]),
                             pack(weights[0][2], weights[0][3]), pack(weights[1][2], weights[1][3])};
      add_rows(sums, packed, stage + buffer * int(sizeof(EntryStage)));
    });
  }
  bool finite = true;
#pragma unroll
  for (int c = 0; c < DIM / 8; ++c)
#pragma unroll
    for (int j = 0; j < 4; ++j) finite = finite && fabsf(sums[c][j]) < infinity();
  if (__ballot_sync(FULL, !finite)) {
    for (int place = tile.first; place < tile.stop; ++place) attend_in_slot(a, tile.row_slot + place);
    return;
  }
  float before[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    total[n] = warp_sum<4>(total[n]);
    const bool merges = a.prior && queries[n].exists();
    before[n] = merges ? static_cast<const float*>(a.normalizer)[queries[n].at] : 0.0f;
  }
  __syncwarp();                         // all lanes have read the normalizers
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    if (!queries[n].exists()) continue;
    const i64 at = queries[n].at;
    const float weight = total[n] == 0 ? 0.0f : total[n] * inverse[n], together = before[n] + weight;
    const float own = weight == 0 ? 0.0f : weight / together / total[n];
    const float others = before[n] == 0 ? 0.0f : before[n] / together;
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
}
