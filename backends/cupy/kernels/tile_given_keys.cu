// Attention to given keys, backward, at the keys, on tensor cores.
#include "gathered.cuh"
#include "given_pairs.cuh"

struct TileKeySums {
  static constexpr int PANEL_COLUMNS = DIM;
  WeightedRows& weighted;
  u32 key;                              // its number among all (batch, kv_heads, k_len)
  int head_row, token;
  float x[DK], grad_k[DK];
  OneRow values;
  RowSums grad_v;

  __device__ TileKeySums(const Args& a, u32 key)
      : weighted(stage_of_warp()), key(key), head_row(int(key / a.k_len)), token(int(key % a.k_len)) {
    const Coordinate* from = key_point(a, head_row, token);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = from[c], grad_k[c] = 0;
  }
  __device__ static WeightedRows& stage_of_warp() {
    __shared__ WeightedRows stages[GATHERING_WARPS];
    return stages[threadIdx.x / 32];
  }

  __device__ void begin_panel(const Args& a, int) {
    values.load(value_row(a, head_row, token));
    grad_v.clear();
  }

  // Add those of `count` pairs.
  __device__ void add(const Args& a, i64 pair, int count, int) {
    const int place = OneRow::place();
    Query first = {};                   // of the key's queries
    first.head_row = head_row;
    int row = 0;
    float p = 0, slope = 0, delta = 0, difference[DK] = {};
    if (place < count) {
      const Query query = query_of_pair(a, head_row, pair + place);
      const GivenRecord record = static_cast<const GivenRecord*>(a.records)[query.at];
      const float u = 1 / (comparable(squared_distance(record.x, x)) + squared_gamma(a, head_of(a, query)));
      p = u * record.inverse;
      slope = 2 * u * p;
      delta = record.delta;
#pragma unroll
      for (int c = 0; c < DK; ++c) difference[c] = record.x[c] - x[c];
      row = int((query.head * a.g_head_stride + query.token * a.g_stride) / 8);
    }
    const u32 vote = __ballot_sync(FULL, p != 0);
    if (!vote) return;
    const Value* base = grad_row(a, first);
    row = row_of_some(row, vote);
    weighted.set(place, row, p);
    const float product = values.product(base, row, count);
    __syncwarp();
    grad_v.add(base, weighted, count);
    __syncwarp();
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

  __device__ void finish_panel(const Args& a, int) {
    if (a.carried) grad_v.add(static_cast<const float*>(a.sum_v) + i64(key) * DIM);
    RowSums::store(static_cast<Value*>(a.grad_v) + i64(key) * DIM,
                   [&](int chunk, int n) { return grad_v.get(chunk, n); });
  }
  __device__ void finish(const Args& a) const { write_key_gradient(a, key, grad_k); }
};

ZETA_KERNEL(tile_given_bwd_stretches_kernel, 32 * GATHERING_WARPS, DIM <= 64 ? 5 : 2) { sum_stretch<TileKeySums>(a); }

ZETA_KERNEL(tile_given_bwd_keys_kernel, 32 * GATHERING_WARPS, DIM <= 64 ? 5 : 2) { sum_keys<TileKeySums>(a); }
