// Attention to given keys, backward, at the keys, on tensor cores.
#include "gathered.cuh"
#include "given_pairs.cuh"

struct TileKeySums {
  static constexpr int PANEL_COLUMNS = DIM;
  WeightedRows& weighted;
  int head_row, token;
  const Value* base;                    // row of grad_out of the first query that reads the key's head
  float x[DK], grad_k[DK];
  OneRow values;
  RowSums grad_v;

  __device__ TileKeySums(const Args& a, int head_row, int token)
      : weighted(stage_of_warp()), head_row(head_row), token(token) {
    const Coordinate* from = key_point(a, head_row, token);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = from[c], grad_k[c] = 0;
    Query first = {};
    first.head_row = head_row;
    base = grad_row(a, first);
  }
  __device__ static WeightedRows& stage_of_warp() {
    __shared__ WeightedRows stages[GATHERING_WARPS];
    return stages[uniform_warp_of_block()];
  }
  __device__ static int place() { return OneRow::place(); }

  __device__ void begin_panel(const Args& a, int) {
    values.load(value_row(a, head_row, token));
    grad_v.clear();
  }

  // Add `count` pairs; the lane has the number of a query.
  __device__ void add(const Args& a, int number, int count, int) {
    int row = 0;
    float p = 0, slope = 0, delta = 0, difference[DK] = {};
    if (place() < count && number >= 0) {
      const Query query = query_of_pair(a, head_row, number);
      const GivenRecord record = load_here<GivenRecord>(static_cast<const GivenRecord*>(a.records) + query.at);
      const float u = 1 / (comparable(squared_distance(record.x, x)) + squared_gamma(a, head_of(a, query)));
      p = u * record.inverse;
      slope = 2 * u * p;
      delta = record.delta;
#pragma unroll
      for (int c = 0; c < DK; ++c) difference[c] = record.x[c] - x[c];
      row = int((query.head * a.g_head_stride + query.token * a.g_stride) / 8);
    }
    const int first_row = __shfl_sync(FULL, row, 0);
    if (place() >= count) row = first_row;
    const float product = values.product(base, row, count);
    const u32 vote = __ballot_sync(FULL, p != 0);
    if (!vote) return;
    __syncwarp();                       // all lanes have read what is written over
    weighted.set(place(), row_of_some(row, vote), p);
    __syncwarp();
    grad_v.add(base, weighted, count);
    if (p == 0) return;
#pragma unroll
    for (int c = 0; c < DK; ++c) grad_k[c] += slope * (product - delta) * difference[c];
  }

  __device__ void add_stretch(const Args& a, i64 stretch, int) {
    grad_v.add(static_cast<const float*>(a.stretch_v) + stretch * DIM);
    add_stretch_of_key(a, stretch, grad_k);
  }
  __device__ void store_stretch(const Args& a, i64 stretch, int) const {
    grad_v.store(static_cast<float*>(a.stretch_v) + stretch * DIM);
  }
  __device__ void finish_stretch(const Args& a, i64 stretch) const { store_stretch_of_key(a, stretch, grad_k); }

  // The key's number among all (batch, kv_heads, k_len).
  __device__ i64 key(const Args& a) const { return i64(head_row) * a.k_len + token; }

  __device__ void finish_panel(const Args& a, int) {
    if (a.carried) grad_v.add(static_cast<const float*>(a.sum_v) + key(a) * DIM);
    RowSums::store(static_cast<Value*>(a.grad_v) + key(a) * DIM,
                   [&](int chunk, int n) { return grad_v.get(chunk, n); });
  }
  __device__ void finish(const Args& a) const { write_key_gradient(a, key(a), grad_k); }
};

ZETA_KERNEL(tile_given_bwd_stretches_kernel, 32 * GATHERING_WARPS, DIM <= 64 ? 5 : 2) { sum_stretch<TileKeySums>(a); }

ZETA_KERNEL(tile_given_bwd_keys_kernel, 32 * GATHERING_WARPS, DIM <= 64 ? 5 : 2) { sum_keys<TileKeySums>(a); }
