// Attention to given keys, backward, at the keys, on tensor cores. A warp takes a group of 16 keys with the queries
// that name them: neighbours in code order are named by many of the same, so that each of these is read once.
#include "naming_queries.cuh"

constexpr int STAGED_QUERIES = DIM <= 64 ? 32 : 16;

// What a warp keeps in shared memory.
struct KeysMemory {
  NamingQueries queries;
  GivenRecord records[STAGED_QUERIES];
  u32 masks[STAGED_QUERIES];            // which keys each query names
  alignas(16) unsigned char rows[STAGED_QUERIES * ROW_BYTES];
};

// A group of keys with its sums; a lane serves keys l / 4 and l / 4 + 8.
struct KeyGroup {
  int head_row;
  int tokens[2];                        // -1 where there is no key
  float x[2][DK], pull[2][DK];
  u32 values[DIM / 16][4];              // rows
  float sums[DIM / 8][4];

  __device__ KeyGroup(const Args& a, KeysMemory& memory, int group) {
    constexpr int CHUNKS = DIM / 8;     // of 16 bytes in a row
    head_row = group / groups_of_head(a);
    const int place = (group - head_row * groups_of_head(a)) * TILE + lane() % TILE;
    int token = place < a.k_len ? place : -1;
    if (a.key_order && token >= 0) token = static_cast<const int*>(a.key_order)[i64(head_row) * a.k_len + place];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      tokens[n] = __shfl_sync(FULL, token, lane() / 4 + 8 * n);
      const Coordinate* from = key_point(a, head_row, max(tokens[n], 0));
#pragma unroll
      for (int c = 0; c < DK; ++c) x[n][c] = from[c], pull[n][c] = 0;
    }
    const Value* base = value_row(a, head_row, 0);
#pragma unroll
    for (int n = 0; n < TILE * CHUNKS; n += 32) {
      const int chunk = n + lane(), row = chunk / CHUNKS, column = chunk % CHUNKS * 8;
      const int of_row = __shfl_sync(FULL, token, row);
      stage_16B(shared_address(memory.rows) + row * ROW_BYTES + column * 2,
                base + i64(max(of_row, 0)) * a.v_stride + column, of_row >= 0);
    }
    wait_for_stage();
    __syncwarp();
    load_rows(values, shared_address(memory.rows));
    __syncwarp();
#pragma unroll
    for (int c = 0; c < DIM / 8; ++c)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[c][j] = 0;
  }

  // Add what the listed queries give.
  __device__ void add(const Args& a, KeysMemory& memory, const Value* base, int listed) {
    constexpr int CHUNKS = DIM / 8;
    const GivenRecord* records =
        static_cast<const GivenRecord*>(a.records) + i64(head_row) * tiles_of_head(a) * TILE;
    const int row = lane() / 4, column = 2 * (lane() % 4);
    for (int first = 0; first < listed; first += STAGED_QUERIES) {
      const int stop = min(listed - first, STAGED_QUERIES);
      if (lane() < STAGED_QUERIES) {    // behind the last one stands the same again, which names nothing
        const u32 entry = memory.queries.listed[first + min(lane(), stop - 1)], query = entry >> 16;
        const u32 tile = memory.queries.tiles[query / TILE];
        memory.masks[lane()] = lane() < stop ? entry & 0xffff : 0;
        memory.records[lane()] = load_here<GivenRecord>(records + i64(tile) * TILE + query % TILE);
      }
      __syncwarp();
#pragma unroll
      for (int tile = 0; tile < STAGED_QUERIES; tile += TILE) {
        if (tile >= stop) break;
#pragma unroll
        for (int n = tile * CHUNKS; n < (tile + TILE) * CHUNKS; n += 32) {
          const int chunk = n + lane(), place = chunk / CHUNKS, part = chunk % CHUNKS;
          stage_16B(shared_address(memory.rows) + place * ROW_BYTES + part * 16,
                    steps_on(base + part * 8, memory.records[place].row), true);
        }
      }
      wait_for_stage();
      __syncwarp();
#pragma unroll 1
      for (int tile = 0; tile < stop; tile += TILE) {
        const SharedAddress rows = shared_address(memory.rows) + tile * ROW_BYTES;
        float products[2][4], weights[2][4];
        multiply_rows(products, values, rows);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int query = tile + column + j % 2 + j / 2 * 8;
          const GivenRecord record = memory.records[query];
          const u32 mask = memory.masks[query] >> row;
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            // What is not named counts as 0 in all that follows, be it finite or not.
            const bool is = mask >> 8 * n & 1;
            float difference[DK];
#pragma unroll
            for (int c = 0; c < DK; ++c) difference[c] = is ? record.x[c] - x[n][c] : 0.0f;
            const float u = reciprocal(squared_length(difference, record.square));
            const float p = is ? u * record.inverse : 0.0f, product = products[j / 2][2 * n + j % 2];
            const float slope = is ? u * p * (product - record.delta) : 0.0f;
            weights[n][j] = p;
#pragma unroll
            for (int c = 0; c < DK; ++c) pull[n][c] += slope * difference[c];
          }
        }
        const u32 packed[4] = {pack(weights[0][0], weights[0][1]), pack(weights[1][0], weights[1][1]),
                               pack(weights[0][2], weights[0][3]), pack(weights[1][2], weights[1][3])};
        add_rows(sums, packed, rows);
      }
      __syncwarp();                     // all lanes have read what was staged
    }
  }

  // Add what a part of the visits gives, of `parts`.
  __device__ void add_part(const Args& a, KeysMemory& memory, const RunList& runs, int part, int parts) {
    const u32 visits = u32(tiles_of_head(a)) * rounds_of(a);
    const u32 begin = u32(u64(visits) * part / parts), stop = u32(u64(visits) * (part + 1) / parts);
    Query query = {};
    query.head_row = head_row;
    const Value* base = grad_row(a, query);
    int copies = 0;
    for (int copy = 0; copy <= copies; ++copy) {
      for (u32 first = begin; first < stop; first += MAP_VISITS) {
        const Visits some = {first, min(stop - first, u32(MAP_VISITS)), copy};
        const int total = runs.mark(memory.queries, some, copies);
        for (int rank = 0; rank < total; rank += RANKS)
          add(a, memory, base, runs.list(a, memory.queries, some, rank));
      }
      copies = -least_of_warp(-copies);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int c = 0; c < DK; ++c) pull[n][c] = 2 * warp_sum<4>(pull[n][c]);
  }

  // Add sums of other parts, or of a heavy group: row `rows[n]` of each array.
  __device__ void add_rows_of(const void* of_values, const void* of_keys, const i64 (&rows)[2]) {
    const int column = 2 * (lane() % 4);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (tokens[n] < 0) continue;
      const float* of_row = static_cast<const float*>(of_values) + rows[n] * DIM + column;
      const float2* others = reinterpret_cast<const float2*>(of_row);
#pragma unroll
      for (int c = 0; c < DIM / 8; ++c) {
        const float2 other = others[c * 4];
        sums[c][2 * n] += other.x;
        sums[c][2 * n + 1] += other.y;
      }
#pragma unroll
      for (int c = 0; c < DK; ++c) pull[n][c] += static_cast<const float*>(of_keys)[rows[n] * DK + c];
    }
  }

  // Leave the sums of a part.
  __device__ void store(const Args& a, i64 part) const {
    const int column = 2 * (lane() % 4);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const i64 row = part * TILE + lane() / 4 + 8 * n;
      float2* to = reinterpret_cast<float2*>(static_cast<float*>(a.stretch_v) + row * DIM + column);
#pragma unroll
      for (int c = 0; c < DIM / 8; ++c) to[c * 4] = float2{sums[c][2 * n], sums[c][2 * n + 1]};
      if (column != 0) continue;
#pragma unroll
      for (int c = 0; c < DK; ++c) static_cast<float*>(a.stretch_k)[row * DK + c] = pull[n][c];
    }
  }

  // Write the gradients.
  __device__ void finish(const Args& a) {
    const int column = 2 * (lane() % 4);
    i64 keys[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) keys[n] = i64(head_row) * a.k_len + max(tokens[n], 0);
    if (a.carried) add_rows_of(a.sum_v, a.sum_k, keys);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (tokens[n] < 0) continue;
      u32* grad_v = reinterpret_cast<u32*>(static_cast<Value*>(a.grad_v) + keys[n] * DIM + column);
#pragma unroll
      for (int c = 0; c < DIM / 8; ++c) grad_v[c * 4] = pack(sums[c][2 * n], sums[c][2 * n + 1]);
      if (column != 0) continue;
#pragma unroll
      for (int c = 0; c < DK; ++c) static_cast<Coordinate*>(a.grad_k)[keys[n] * DK + c] = pull[n][c];
    }
  }
};

ZETA_KERNEL(tile_given_bwd_keys_kernel, 32 * GIVEN_WARPS, DIM <= 64 ? 8 : DIM <= 128 ? 6 : 4) {
  __shared__ KeysMemory memories[GIVEN_WARPS];
  KeysMemory& memory = memories[uniform_warp_of_block()];
  const i64 warp = uniform_warp_of_grid(), groups = count_groups(a);
  const GroupCounts* counts = static_cast<const GroupCounts*>(a.group_counts);
  int group = int(warp), part = 0, parts = 1;
  if (warp >= groups) {
    if (warp - groups >= counts[groups].start) return;
    const HeavyPart heavy = static_cast<const HeavyPart*>(a.heavy_parts)[warp - groups];
    group = heavy.group;
    part = heavy.part;
    parts = parts_of(counts[group].runs);
  } else if (parts_of(counts[group].runs) > 0) {
    return;
  }
  KeyGroup keys(a, memory, group);
  keys.add_part(a, memory, RunList(a, keys.head_row, counts[group]), part, parts);
  if (parts == 1) keys.finish(a); else keys.store(a, warp - groups);
}

// Add up the parts of heavy groups. A warp takes a group.
ZETA_KERNEL(tile_given_bwd_heavy_kernel, 32 * GIVEN_WARPS) {
  __shared__ KeysMemory memories[GIVEN_WARPS];
  const i64 group = uniform_warp_of_grid();
  if (group >= count_groups(a)) return;
  const GroupCounts counts = static_cast<const GroupCounts*>(a.group_counts)[group];
  const int parts = parts_of(counts.runs);
  if (parts == 0) return;
  KeyGroup keys(a, memories[uniform_warp_of_block()], int(group));
  for (int part = 0; part < parts; ++part) {
    const i64 first = (i64(counts.part) + part) * TILE + lane() / 4;
    keys.add_rows_of(a.stretch_v, a.stretch_k, {first, first + 8});
  }
  keys.finish(a);
}
