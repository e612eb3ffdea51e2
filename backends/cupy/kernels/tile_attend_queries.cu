// Attention to the selection, backward, at the queries, on tensor cores: as forward, but products of grad_out with the
// staged rows of values instead of sums of these.
#include "tile_queries.cuh"
#include "tile_records.cuh"

ZETA_KERNEL(tile_bwd_queries_kernel, 32 * WARPS, RESIDENT) {
  __shared__ EntryStage stages[WARPS][STAGES];
  SlotTile tile;
  if (!find_slot_tile<TILE>(a, warp_of_grid(), tile)) return;
  const EntryStage* staged = stages[threadIdx.x / 32];
  const SharedAddress stage = shared_address(staged);
  const int row = lane() / 4, column = 2 * (lane() % 4), first_entry = int(sequences_of(a)[tile.sequence].entry);
  TileQuery queries[2];
  float inverse[2];
  const Value* grad_rows[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const Value* grad_row = nullptr;
    queries[n].load(a, tile, row + 8 * n, &grad_row);
    inverse[n] = queries[n].exists() ? inverse_normalizer(a, queries[n].at) : 0;
    grad_rows[n] = inverse[n] != 0 ? grad_row : nullptr;
  }
  u32 grad[DIM / 16][4];
  load_rows(grad, grad_rows[0], grad_rows[1]);
  Pull pulls[2];
  pulls[0].clear();
  pulls[1].clear();
  for (int curve = 0; curve < CURVES; ++curve) {
    Blocks blocks(a, tile.head_row, curve, queries);
    EntryLoader loader(a, tile, curve, blocks.visible);
    pipeline([&] { return blocks.next(); }, [&](int block) { loader.look_up(block); },
             [&](int buffer, int block) { loader.stage(stage + buffer * int(sizeof(EntryStage)), block); },
             [&](int buffer, int block) {
      float products[2][4];
      multiply_rows(products, grad, stage + buffer * int(sizeof(EntryStage)));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int place = column + j % 2 + j / 2 * 8;
        const Point point = staged[buffer].points[place];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float distance = weighing_distance(queries[n].x, point.x);
          if (inverse[n] == 0 || !selects(a, queries[n], curve, block + place, point, first_entry, distance)) continue;
          const float u = reciprocal(distance + queries[n].square);
          float difference[DK];
#pragma unroll
          for (int c = 0; c < DK; ++c) difference[c] = queries[n].x[c] - point.x[c];
          pulls[n].add(u, u * inverse[n], products[j / 2][2 * n + j % 2], difference, true);
        }
      }
    });
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    pulls[n].reduce<4>();
    if (column != 0 || !queries[n].exists()) continue;
    write_query_gradients(a, queries[n].at, pulls[n]);
    QueryRecord record = {};
#pragma unroll
    for (int c = 0; c < DK; ++c) record.x[c] = queries[n].x[c];
#pragma unroll
    for (int curve = 0; curve < CURVES; ++curve) record.ranges[curve] = queries[n].ranges[curve];
    record.visible = queries[n].visible;
    record.inverse = inverse[n];
    record.delta = static_cast<const Sum*>(a.delta)[queries[n].at];
    record.square = queries[n].square;
    record.cut_distance = queries[n].cut_distance;
    record.cut_position = queries[n].cut_position;
    static_cast<QueryRecord*>(a.records)[queries[n].at] = record;
  }
}
