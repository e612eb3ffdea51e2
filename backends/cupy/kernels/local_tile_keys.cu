// The local window, backward, at the keys, on tensor cores: a warp takes 16 consecutive keys and visits the queries of
// all heads whose windows hold some of them, 16 at a time: p grad_out for the values, and the pulls at the keys.
#include "local_tiles.cuh"

// What the pass over keys reads of a query, and its row of grad_out.
struct LocalRecord {
  Coordinate x[DK];
  float inverse;                        // 1 / Z; 0 where there is no query, or nothing has weight
  float delta;                          // D
  float square;                         // gamma^2
};

struct QueryStage {
  alignas(16) unsigned char rows[STAGED_ROWS];
  LocalRecord records[TILE];
};

// The queries of all heads that attend to some key of a tile, in blocks of 16 of one head.
struct QueryBlocks {
  const LocalTile& tile;
  Attending queries;
  int head, following;                  // the next block
  LocalRecord record;                   // of query `lane` of the block looked up last
  const Value* grad;                    // and its row; null where there is none

  __device__ QueryBlocks(const Args& a, const LocalTile& tile)
      : tile(tile), queries(a, sequences_of(a)[tile.sequence], tile.first, tile.stop), head(0),
        following(queries.first), record{}, grad(nullptr) {}
  // The first query of the next block, and look that block up.
  __device__ int next(const Args& a) {
    if (following >= queries.stop) {
      if (++head >= group_size(a) || queries.first >= queries.stop) return -1;
      following = queries.first;
    }
    const int block = following;
    following += TILE;
    look_up(a, block + lane() % TILE);
    return block;
  }
  __device__ void look_up(const Args& a, int i) {
    const Sequence& s = sequences_of(a)[tile.sequence];
    const Query query = query_of(a, tile.head, tile.sequence, head * s.queries + min(i, queries.stop - 1));
    const Coordinate* x = query_point(a, query);
    record.delta = static_cast<const float*>(a.delta)[query.at];
    record.square = squared_gamma(a, head_of(a, query));
#pragma unroll
    for (int c = 0; c < DK; ++c) record.x[c] = x[c];
    record.inverse = i < queries.stop ? inverse_normalizer(a, query.at) : 0.0f;
    grad = record.inverse != 0 ? grad_row(a, query) : nullptr;
  }
  __device__ void stage(QueryStage& into, SharedAddress to) const {
    stage_rows(to, [&](int row, const Value*& from) {
      from = reinterpret_cast<const Value*>(__shfl_sync(FULL, reinterpret_cast<u64>(grad), row));
      return from != nullptr;
    });
    if (lane() < TILE) into.records[lane()] = record;
  }
};

ZETA_KERNEL(local_tile_bwd_keys_kernel, 32 * WARPS, RESIDENT) {
  __shared__ QueryStage stages[WARPS][STAGES];
  LocalTile tile;
  if (!tile.find<&Sequence::keys>(a, a.kv_heads, a.k_len)) return;
  QueryStage* staged = stages[threadIdx.x / 32];
  const SharedAddress stage = shared_address(staged);
  const Sequence& s = sequences_of(a)[tile.sequence];
  const int row = lane() / 4, column = 2 * (lane() % 4);
  // The two keys of this lane.
  Coordinate x[2][DK];
  const Value* value_rows[2];
  int latest[2];                        // the query at the key's position: it is attended to from there on
  bool exists[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int position = tile.first + row + 8 * n;
    exists[n] = position < tile.stop;
    latest[n] = int(position - a.q_offset);
    value_rows[n] = exists[n] ? value_row(a, tile.head, s.start + position) : nullptr;
    const Coordinate* key = key_point(a, tile.head, s.start + (exists[n] ? position : tile.first));
#pragma unroll
    for (int c = 0; c < DK; ++c) x[n][c] = key[c];
  }
  u32 values[DIM / 16][4];
  load_rows(values, value_rows[0], value_rows[1]);
  float sums[DIM / 8][4] = {}, pull[2][DK] = {};
  QueryBlocks blocks(a, tile);
  pipeline([&] { return blocks.next(a); }, [](int) {},
           [&](int buffer, int) { blocks.stage(staged[buffer], stage + buffer * int(sizeof(QueryStage))); },
           [&](int buffer, int block) {
    float products[2][4], weights[2][4];
    multiply_rows(products, values, stage + buffer * int(sizeof(QueryStage)));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int place = column + j % 2 + j / 2 * 8;
      const LocalRecord& record = staged[buffer].records[place];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const bool attends = exists[n] && u32(block + place - latest[n]) < u32(a.local_window) && record.inverse != 0;
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
    add_rows(sums, packed, stage + buffer * int(sizeof(QueryStage)));
  });
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int c = 0; c < DK; ++c) pull[n][c] = warp_sum<4>(pull[n][c]);
    if (!exists[n]) continue;
    const i64 key = i64(tile.head) * a.k_len + s.start + tile.first + row + 8 * n;
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
