// Attention to given keys, backward, at the keys, for values and widths of any kind. A warp weighs 32 pairs at once,
// then adds the gradients of their outputs in order.
#include "given_pairs.cuh"

// A lane's parts of the key's gradient become one at the end.
struct KeySums {
  static constexpr int PANEL_COLUMNS = PANEL;
  int head_row, token;
  i64 key;                              // its number among all (batch, kv_heads, k_len)
  Coordinate x[DK];
  Columns values, grad_v;
  Sum grad_k[DK];

  __device__ KeySums(const Args& a, int head_row, int token)
      : head_row(head_row), token(token), key(i64(head_row) * a.k_len + token) {
    const Coordinate* from = key_point(a, head_row, token);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = from[c], grad_k[c] = 0;
  }

  __device__ void begin_panel(const Args& a, int first) {
    values.load(value_row(a, head_row, token), first, a.value_dim);
    grad_v.clear();
  }

  __device__ static int place() { return lane(); }

  // Add `count` pairs; the lane has the number of a query.
  __device__ void add(const Args& a, int number, int count, int first) {
    const Value* grad_out = static_cast<const Value*>(a.grad_out);
    i64 row = 0;                        // of grad_out
    Sum p = 0, slope[DK] = {}, mean = 0;
    if (lane() < count && number >= 0) {
      const Query query = query_of_pair(a, head_row, number);
      const Coordinate* other = query_point(a, query);
      const Sum u = 1 / (Sum(comparable(squared_distance(other, x))) + squared_gamma(a, head_of(a, query)));
      p = u * inverse_normalizer(a, query.at);
      row = grad_row(a, query) - grad_out;
      if (first == 0) mean = static_cast<const Sum*>(a.delta)[query.at];
#pragma unroll
      for (int c = 0; c < DK; ++c) slope[c] = 2 * u * p * (Sum(other[c]) - Sum(x[c]));
    }
    Sum product = 0;
    const bool has_weight = p != 0;
    for (u32 left = __ballot_sync(FULL, has_weight); left; left &= left - 1) {
      const int owner = __ffs(int(left)) - 1;
      Columns g;
      g.load(grad_out + __shfl_sync(FULL, row, owner), first, a.value_dim);
      grad_v.add(g, __shfl_sync(FULL, p, owner));
      const Sum sum = warp_sum(g.dot(values));
      if (lane() == owner) product = sum;
    }
    if (!has_weight) return;
#pragma unroll
    for (int c = 0; c < DK; ++c) grad_k[c] += slope[c] * (product - mean);
  }

  __device__ void add_stretch(const Args& a, i64 stretch, int first) {
    Columns others;
    others.load(static_cast<const Sum*>(a.stretch_v) + stretch * a.value_dim, first, a.value_dim);
    grad_v.add(others, 1);
    if (first == 0) add_stretch_of_key(a, stretch, grad_k);
  }
  __device__ void store_stretch(const Args& a, i64 stretch, int first) const {
    grad_v.store(static_cast<Sum*>(a.stretch_v) + stretch * a.value_dim, first, a.value_dim);
  }
  __device__ void finish_stretch(const Args& a, i64 stretch) const { store_stretch_of_key(a, stretch, grad_k); }

  __device__ void finish_panel(const Args& a, int first) {
    if (a.carried) {
      Columns before;
      before.load(static_cast<const Sum*>(a.sum_v) + key * a.value_dim, first, a.value_dim);
      grad_v.add(before, 1);
    }
    grad_v.store(static_cast<Value*>(a.grad_v) + key * a.value_dim, first, a.value_dim);
  }
  __device__ void finish(const Args& a) const { write_key_gradient(a, key, grad_k); }
};

ZETA_KERNEL(given_bwd_stretches_kernel, 256, BLOCKS) { sum_stretch<KeySums>(a); }

ZETA_KERNEL(given_bwd_keys_kernel, 256, BLOCKS) { sum_keys<KeySums>(a); }
