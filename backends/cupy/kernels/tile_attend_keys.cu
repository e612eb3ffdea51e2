// Attention to the selection, backward, at the keys, on tensor cores. A warp takes 16 entries of the launch's curve and
// level, looks for the tiles of 16 slots whose queries may select some of them, and adds up p grad_out for the values
// and the pulls at the keys. Launched twice, for the levels above 0 and for level 0, as attend_keys.cu says.
#include "extents.cuh"
#include "tile_queries.cuh"
#include "tile_records.cuh"

struct SlotStage {
  alignas(16) unsigned char rows[STAGED_ROWS];
  QueryRecord records[TILE];
};

// Tiles of slots that may select some of the entries [first, stop), ascending.
struct SlotTiles {
  const Extent* extents;                // of the row
  int first, stop, least;               // least position of the entries
  int group, to;                        // next 32 tiles to look at, and the end of tiles
  int looked_at;
  u32 left;

  __device__ int next() {
    for (;;) {
      if (left) {
        const int tile = looked_at + __ffs(int(left)) - 1;
        left &= left - 1;
        return tile;
      }
      if (group >= to) return -1;
      looked_at = group;
      bool meets = false;
      if (group + lane() < to) {
        const Extent extent = extents[group + lane()];
        meets = extent.left < stop && extent.right > first && extent.visible > least;
      }
      left = __ballot_sync(FULL, meets);
      group += 32;
    }
  }
};

ZETA_KERNEL(tile_bwd_keys_kernel, 32 * WARPS, RESIDENT) {
  __shared__ SlotStage stages[WARPS][STAGES];
  EntryTile tile;
  if (!find_entry_tile<TILE>(a, warp_of_grid(), tile)) return;
  const SlotStage* staged = stages[threadIdx.x / 32];
  const SharedAddress stage = shared_address(staged);
  const Sequence& s = sequences_of(a)[tile.sequence];
  const int row = lane() / 4, column = 2 * (lane() % 4), first_entry = int(s.entry);
  const i64 head_row = tile.head_row, row_slot = first_slot(a, head_row, s);
  const int slots = s.queries * group_size(a), curve = a.curve;
  // The two entries of this lane.
  Point points[2];
  bool exists[2];
  i64 tokens[2];
  const Value* value_rows[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const i64 e = tile.first + row + 8 * n;
    exists[n] = e < tile.stop;
    const i64 entry = head_row * a.entries + s.entry + (exists[n] ? e : tile.first);
    points[n] = static_cast<const Point*>(a.points[curve])[entry];
    const int position = points[n].position;
    if (!exists[n]) points[n].position = NO_KEY;
    tokens[n] = s.start + position;
    value_rows[n] = exists[n] ? value_row(a, tile.head_row, tokens[n]) : nullptr;
  }
  SlotTiles tiles;
  tiles.extents = static_cast<const Extent*>(a.extents) + slot_tiles_before<SLOT_TILE>(a, head_row, tile.sequence);
  tiles.first = int(tile.first);
  tiles.stop = int(tile.stop);
  tiles.least = warp_min(min(points[0].position, points[1].position));
  tiles_that_meet(tiles.extents, (slots + SLOT_TILE - 1) / SLOT_TILE, tile.first, tile.stop, tiles.group, tiles.to);
  tiles.left = 0;
  tiles.looked_at = 0;
  u32 values[DIM / 16][4];
  load_rows(values, value_rows[0], value_rows[1]);
  float sums[DIM / 8][4] = {}, pull[2][DK] = {};
  const int slot_of_lane = lane() % TILE;
  const Value* grad = nullptr;          // of this lane's slot in the tile looked up last; null if there is none
  i64 at = 0;
  pipeline(
      [&] { return tiles.next(); },
      [&](int n) {
        const int slot = n * SLOT_TILE + slot_of_lane;
        grad = nullptr;
        if (slot >= slots) return;
        const int number = number_in_slot(a, curve, row_slot + slot);
        const Query query = query_of(a, head_row, tile.sequence, number);
        grad = grad_row(a, query);
        at = query.at;
      },
      [&](int buffer, int) {
        const SharedAddress to = stage + buffer * int(sizeof(SlotStage));
        stage_rows(to, [&](int place, const Value*& from) {
          from = reinterpret_cast<const Value*>(__shfl_sync(FULL, reinterpret_cast<u64>(grad), place));
          return from != nullptr;
        });
        constexpr int CHUNKS = sizeof(QueryRecord) / 16;
        const SharedAddress into = to + STAGED_ROWS;
#pragma unroll
        for (int n = 0; n < (TILE * CHUNKS + 31) / 32; ++n) {
          const int chunk = n * 32 + lane(), place = min(chunk / CHUNKS, TILE - 1);
          const char* record =
              static_cast<const char*>(a.records) + __shfl_sync(FULL, at, place) * i64(sizeof(QueryRecord));
          const bool exists_there = __shfl_sync(FULL, grad != nullptr, place);
          if (chunk < TILE * CHUNKS)
            stage_16B(into + chunk * 16, record + chunk % CHUNKS * 16, exists_there);
        }
      },
      [&](int buffer, int) {
        float products[2][4], weights[2][4];
        multiply_rows(products, values, stage + buffer * int(sizeof(SlotStage)));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const QueryRecord& record = staged[buffer].records[column + j % 2 + j / 2 * 8];
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            const float distance = weighing_distance(record.x, points[n].x);
            const int e = int(tile.first) + first_entry + row + 8 * n;
            const bool selected = selects(a, record, curve, e, points[n], first_entry, distance);
            const float u = selected ? reciprocal(distance + record.square) : 0.0f, p = u * record.inverse;
            weights[n][j] = p;
            if (p == 0) continue;
            const float slope = 2 * u * p * (products[j / 2][2 * n + j % 2] - record.delta);
#pragma unroll
            for (int c = 0; c < DK; ++c) pull[n][c] += slope * (record.x[c] - points[n].x[c]);
          }
        }
        const u32 packed[4] = {pack(weights[0][0], weights[0][1]), pack(weights[1][0], weights[1][1]),
                               pack(weights[0][2], weights[0][3]), pack(weights[1][2], weights[1][3])};
        add_rows(sums, packed, stage + buffer * int(sizeof(SlotStage)));
      });
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int c = 0; c < DK; ++c) pull[n][c] = warp_sum<4>(pull[n][c]);
    if (!exists[n]) continue;
    float2 grads[DIM / 8];
#pragma unroll
    for (int c = 0; c < DIM / 8; ++c) grads[c] = float2{sums[c][2 * n], sums[c][2 * n + 1]};
    const auto add = [&](const void* from, i64 row) {
      const float2* others = reinterpret_cast<const float2*>(static_cast<const float*>(from) + row * DIM + column);
#pragma unroll
      for (int c = 0; c < DIM / 8; ++c) grads[c].x += others[c * 4].x, grads[c].y += others[c * 4].y;
    };
    const auto add_point = [&](const void* from, i64 row) {
#pragma unroll
      for (int c = 0; c < DK; ++c) pull[n][c] += static_cast<const float*>(from)[row * DK + c];
    };
    const int position = points[n].position;
    const i64 key = head_row * a.k_len + tokens[n];
    i64 to = key;
    void* rows_to = a.sum_v;
    void* points_to = a.last ? a.grad_k : a.sum_k;
    if (tile.level > 0) {
      to = level_row(a, head_row, s, tile.level, position);
      rows_to = a.level_v;
      points_to = a.level_k;
    } else {
      if (a.carried) add(a.sum_v, key), add_point(a.sum_k, key);
      for (int level = 1; level < s.levels && position < level_length(s.keys, level); ++level) {
        const i64 row = level_row(a, head_row, s, level, position);
        add(a.level_v, row);
        add_point(a.level_k, row);
      }
    }
    if (tile.level == 0 && a.last) {
      u32* grad_v = reinterpret_cast<u32*>(static_cast<Value*>(a.grad_v) + key * DIM + column);
#pragma unroll
      for (int c = 0; c < DIM / 8; ++c) grad_v[c * 4] = pack(grads[c].x, grads[c].y);
    } else {
      float2* row = reinterpret_cast<float2*>(static_cast<float*>(rows_to) + to * DIM + column);
#pragma unroll
      for (int c = 0; c < DIM / 8; ++c) row[c * 4] = grads[c];
    }
    if (column != 0) continue;
#pragma unroll
    for (int c = 0; c < DK; ++c) static_cast<float*>(points_to)[to * DK + c] = pull[n][c];
  }
}
