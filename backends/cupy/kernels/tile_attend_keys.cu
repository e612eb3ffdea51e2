// Attention to the selection, backward, at the keys, on tensor cores. A block takes 64 neighbouring entries of the
// launch's level, a warp 16 of them. The block lists the queries that may select some of the 64, 192 at most at a time,
// and each warp adds up p grad_out for the values and the pulls at its keys. Launched twice, for the levels above 0 and
// for level 0, as attend_keys.cu says.
#include "extents.cuh"
#include "tensor.cuh"
#include "tile_tails.cuh"

constexpr int QUERIES = DIM <= 64 ? 192 : DIM <= 128 ? 128 : 64;  // listed at a time
constexpr int ROUND = DIM <= 64 ? 4 : DIM <= 128 ? 2 : 1;  // warps that look for them, each among 32

struct ListedQuery {
  Coordinate x[DK];
  float square;                         // gamma^2
  float inverse;                        // 1 / Z
  float delta;                          // D
  int visible;
  u32 window;                           // which of the block's entries: the first, and 65536 times how many
};

struct QueryList {
  alignas(16) unsigned char rows[QUERIES * ROW_BYTES];
  alignas(16) ListedQuery queries[QUERIES];
  const Value* grads[QUERIES];           // their rows of grad_out
  int counts[2][WARPS];                 // of even and odd rounds
  int positions[GROUP];                 // of the block's entries; -1 where there is none
  int least_of_warps[WARPS];            // of these
  SlotCursor cursor;                    // kept here while no warp looks for queries: registers are scarce
};

// What a block looks for: queries that select some of its entries.
struct KeyBlock {
  EntryTile tile;
  int slots;                            // of the row
  int queries;                          // of its sequence and one head
  const Value* grads;                   // grad_out of the first of these, of the group's first head
  i64 row_slot;

  // List queries, the first time or from where the last call ended; says how many. All threads together.
  __device__ int list(const Args& a, QueryList& list, bool first, bool& goes_on) const {
    int count = 0, round = 0, least = list.least_of_warps[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) least = min(least, list.least_of_warps[warp]);
    SlotTiles tiles(a, tile, least);
    if (!first) static_cast<SlotCursor&>(tiles) = list.cursor;
    while (tiles.goes_on() && count + 32 * ROUND <= QUERIES) {
      int own = -1;
#pragma unroll 1
      for (int warp = 0; warp < ROUND; ++warp) {
        const int found = tiles.next();
        if (warp == int(threadIdx.x) / 32) own = found;
      }
      const int slot = own * SLOT_TILE + lane();
      bool meets = false;
      Slot whole;
      QueryTail tail;
      if (own >= 0 && slot < slots) {
        whole = slots_of(a)[row_slot + slot];
        tail = static_cast<const QueryTail*>(a.tails)[row_slot + slot];
        meets = whole.left < tile.stop && whole.right > tile.first && whole.visible > tiles.least && tail.inverse != 0;
      }
      const u32 vote = __ballot_sync(FULL, meets);
      round ^= 1;
      if (lane() == 0) list.counts[round][threadIdx.x / 32] = __popc(vote);
      __syncthreads();
      int place = count + below_lane(vote);
#pragma unroll
      for (int warp = 0; warp < WARPS; ++warp) {
        if (warp < int(threadIdx.x) / 32) place += list.counts[round][warp];
        count += list.counts[round][warp];
      }
      if (meets) {
        ListedQuery& listed = list.queries[place];
#pragma unroll
        for (int c = 0; c < DK; ++c) listed.x[c] = whole.x[c];
        listed.square = tail.square;
        listed.inverse = tail.inverse;
        listed.delta = tail.delta;
        listed.visible = whole.visible;
        const int first = max(whole.left - tile.first, 0), stop = min(whole.right - tile.first, GROUP);
        listed.window = u32(first) | u32(stop - first) << 16;
        const int in_group = head_in_group(a, whole.number, queries);
        list.grads[place] = grads + in_group * a.g_head_stride + (whole.number - in_group * queries) * a.g_stride;
      }
    }
    const int padding = count + int(threadIdx.x);
    if (padding < (count + TILE - 1) / TILE * TILE) list.queries[padding].window = 0;
    __syncthreads();
    goes_on = tiles.goes_on();
    if (threadIdx.x == 0) list.cursor = tiles;
    return count;
  }
};

ZETA_KERNEL(tile_bwd_keys_kernel, THREADS, RESIDENT) {
  __shared__ QueryList list;
  KeyBlock block;
  EntryTile& tile = block.tile;
  if (!find_entry_tile<GROUP>(a, blockIdx.x, tile)) return;
  const Sequence& s = sequences_of(a)[tile.sequence];
  const int row = int(threadIdx.x) / 32 * TILE + lane() / 4, column = 2 * (lane() % 4);
  const i64 head_row = tile.head_row;
  const Value* values_at = static_cast<const Value*>(a.v) + tile.batch * a.v_batch_stride +
                           tile.head * a.v_head_stride + s.start * a.v_stride;
  block.row_slot = first_slot(a, head_row, s);
  block.queries = s.queries;
  block.grads = static_cast<const Value*>(a.grad_out) + tile.batch * a.g_batch_stride +
                tile.head * a.group * a.g_head_stride + s.start * a.g_stride;
  block.slots = s.queries * group_size(a);
  // The two entries of this lane.
  Point points[2];
  bool exists[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int e = tile.first + row + 8 * n;
    exists[n] = e < tile.stop;
    points[n] = static_cast<const Point*>(a.points[0])[head_row * a.entries + (exists[n] ? e : tile.first)];
    if (column == 0) list.positions[row + 8 * n] = exists[n] ? points[n].position : -1;
    if (!exists[n]) points[n].position = NO_KEY;
  }
  const int least = least_of_warp(min(points[0].position, points[1].position));
  list.least_of_warps[threadIdx.x / 32] = least;
  __syncthreads();
  stage_rows(list.rows, GROUP, [&](int entry, bool& there) {
    const int position = list.positions[entry];
    there = position >= 0;
    return strided(reinterpret_cast<const char*>(values_at), max(position, 0), int(a.v_stride) * int(sizeof(Value)));
  });
  if (tile.level == 0) {                // what is added in the end, from memory: lanes of a row share its levels
#pragma unroll 1
    for (int level = 1 + lane() % 4; level < s.levels; level += 4) {
      const int length = int(level_length(s.keys, level));
      if (points[0].position >= length && points[1].position >= length) break;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (points[n].position >= length) continue;
        const i64 from = level_row(a, head_row, s, level, points[n].position) * DIM;
#pragma unroll
        for (int line = 0; line < DIM; line += 32) fetch_ahead(static_cast<const float*>(a.level_v) + from + line);
      }
    }
  }
  bool goes_on;
  int count = block.list(a, list, true, goes_on);
  wait_for_stage();
  __syncthreads();
  u32 values[DIM / 16][4];
  load_rows(values, shared_address(list.rows) + int(threadIdx.x) / 32 * TILE * ROW_BYTES);
  float sums[DIM / 8][4] = {}, pull[2][DK] = {};
  for (;;) {
    __syncthreads();                    // what was staged has been used
    stage_rows(list.rows, (count + TILE - 1) / TILE * TILE, [&](int query, bool& there) {
      there = query < count;
      return reinterpret_cast<const char*>(list.grads[there ? query : 0]);
    });
    wait_for_stage();
    __syncthreads();
#pragma unroll 1
    for (int place = 0; place < count; place += TILE) {
      ListedQuery queries[4];
      bool selected[2][4], any = false;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        queries[j] = list.queries[place + column + j % 2 + j / 2 * 8];
        const u32 first = queries[j].window & 0xffff, length = queries[j].window >> 16;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          selected[n][j] = u32(row + 8 * n) - first < length && points[n].position < queries[j].visible;
          any = any || selected[n][j];
        }
      }
      if (!__ballot_sync(FULL, any)) continue;
      const SharedAddress rows = shared_address(list.rows) + place * ROW_BYTES;
      float products[2][4], weights[2][4];
      multiply_rows(products, values, rows);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          // What is not selected counts as 0 in all that follows, be it finite or not.
          const bool is = selected[n][j];
          float difference[DK];
#pragma unroll
          for (int c = 0; c < DK; ++c) difference[c] = is ? queries[j].x[c] - points[n].x[c] : 0.0f;
          const float u = is ? reciprocal(squared_length(difference, queries[j].square)) : 0.0f;
          const float p = is ? u * queries[j].inverse : 0.0f, product = products[j / 2][2 * n + j % 2];
          const float slope = is ? u * p * (product - queries[j].delta) : 0.0f;
          weights[n][j] = p;
#pragma unroll
          for (int c = 0; c < DK; ++c) pull[n][c] += slope * difference[c];
        }
      }
      const u32 packed[4] = {pack(weights[0][0], weights[0][1]), pack(weights[1][0], weights[1][1]),
                             pack(weights[0][2], weights[0][3]), pack(weights[1][2], weights[1][3])};
      add_rows(sums, packed, rows);
    }
    if (!goes_on) break;
    __syncthreads();                    // all warps have used the list
    count = block.list(a, list, false, goes_on);
  }
  // Add what other parts and, at level 0, the levels above it left.
  const auto add = [&](int n, const void* rows, const void* pulls, i64 row) {
    const float2* others = reinterpret_cast<const float2*>(static_cast<const float*>(rows) + row * DIM + column);
#pragma unroll
    for (int c = 0; c < DIM / 8; ++c) {
      const float2 other = others[c * 4];
      sums[c][2 * n] += other.x;
      sums[c][2 * n + 1] += other.y;
    }
#pragma unroll
    for (int c = 0; c < DK; ++c) pull[n][c] += static_cast<const float*>(pulls)[row * DK + c];
  };
  i64 keys[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int c = 0; c < DK; ++c) pull[n][c] = 2 * warp_sum<4>(pull[n][c]);
    keys[n] = head_row * a.k_len + s.start + points[n].position;
    if (tile.level == 0 && a.carried && exists[n]) add(n, a.sum_v, a.sum_k, keys[n]);
  }
  for (int level = 1; tile.level == 0 && level < s.levels; ++level) {
    const int length = int(level_length(s.keys, level));
    if (points[0].position >= length && points[1].position >= length) break;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (points[n].position >= length) continue;
      add(n, a.level_v, a.level_k, level_row(a, head_row, s, level, points[n].position));
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    if (!exists[n]) continue;
    i64 to = keys[n];
    if (tile.level == 0 && a.last) {
      u32* grad_v = reinterpret_cast<u32*>(static_cast<Value*>(a.grad_v) + to * DIM + column);
#pragma unroll
      for (int c = 0; c < DIM / 8; ++c) grad_v[c * 4] = pack(sums[c][2 * n], sums[c][2 * n + 1]);
    } else {
      if (tile.level > 0) to = level_row(a, head_row, s, tile.level, points[n].position);
      float* row_to = static_cast<float*>(tile.level > 0 ? a.level_v : a.sum_v) + to * DIM + column;
      float2* rows = reinterpret_cast<float2*>(row_to);
#pragma unroll
      for (int c = 0; c < DIM / 8; ++c) rows[c * 4] = float2{sums[c][2 * n], sums[c][2 * n + 1]};
    }
    if (column != 0) continue;
    float* pulls = static_cast<float*>(tile.level > 0 ? a.level_k : a.last ? a.grad_k : a.sum_k) + to * DK;
#pragma unroll
    for (int c = 0; c < DK; ++c) pulls[c] = pull[n][c];
  }
}
