// Attention to given keys, backward, at the keys: one warp a key, of those that nobody names too. The places that name it are
// a stretch of the sorted pairs; 32 of them at once are weighed, then the gradients of their outputs are added in order, so
// that every sum has a fixed order and no two warps write to one place.
#include "given.cuh"

// The first of `count` ascending keys that is not less than `key`; all lanes together, 32 probes a step.
__device__ inline i64 first_not_below(const u64* keys, i64 count, u64 key) {
  i64 lo = 0, hi = count;               // all before `lo` are less, none from `hi` on
  while (lo < hi) {
    const i64 step = (hi - lo + 31) / 32, probe = lo + (lane() + 1) * step - 1;
    const int below = __popc(__ballot_sync(FULL, probe < hi && keys[probe] < key));
    const i64 next = lo + below * step;
    hi = min(hi, next + step - 1);
    lo = min(hi, next);
  }
  return lo;
}

ZETA_KERNEL(given_bwd_keys_kernel, 256) {
  const i64 key = warp_of_grid();
  if (key >= i64(a.batch) * a.kv_heads * a.k_len) return;
  const int head_row = int(key / a.k_len), index = int(key % a.k_len);
  const u64* keys = static_cast<const u64*>(a.sorted_pair_keys);
  const i64 places = i64(a.batch) * a.q_heads * a.q_len * a.width, start = first_not_below(keys, places, u64(key));
  const Value* grad_out = static_cast<const Value*>(a.grad_out);
  Sum* sum_k = static_cast<Sum*>(a.sum_k) + key * DK;
  Sum* sum_v = static_cast<Sum*>(a.sum_v) + key * a.value_dim;
  Coordinate x[DK];
#pragma unroll
  for (int c = 0; c < DK; ++c) x[c] = key_point(a, head_row, index)[c];
  Sum grad_k[DK] = {};
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Columns values, sums;
    values.load(value_row(a, head_row, index), first, a.value_dim);
    sums.clear();
    if (a.carried) sums.load(sum_v, first, a.value_dim);
    u32 named = FULL;
    for (i64 at = start + lane(); named == FULL; at += 32) {
      const bool names = at < places && keys[at] == u64(key);
      named = __ballot_sync(FULL, names);
      i64 row = 0;                      // of grad_out
      Sum p = 0, slope[DK] = {};        // 2 u p (q - k)
      if (names) {
        const Query query = query_with_number(a, static_cast<const int*>(a.sorted_pair_places)[at] / a.width);
        const Coordinate* other = query_point(a, query);
        const Sum distance = Sum(comparable(squared_distance(other, x)));
        const Sum u = 1 / (distance + squared_gamma(a, head_of(a, query)));
        p = u * inverse_normalizer(a, query.at);
        row = grad_row(a, query) - grad_out;
        const Sum mean = first == 0 ? static_cast<const Sum*>(a.delta)[query.at] : Sum(0);
#pragma unroll
        for (int c = 0; c < DK; ++c) {
          slope[c] = p == 0 ? 0 : 2 * u * p * (Sum(other[c]) - Sum(x[c]));
          grad_k[c] -= slope[c] * mean;
        }
      }
      for (u32 left = __ballot_sync(FULL, p != 0); left; left &= left - 1) {
        const int owner = __ffs(int(left)) - 1;
        Columns g;
        g.load(grad_out + __shfl_sync(FULL, row, owner), first, a.value_dim);
        sums.add(g, __shfl_sync(FULL, p, owner));
        const Sum product = g.dot(values);  // this lane's part: lanes are summed once, at the end
#pragma unroll
        for (int c = 0; c < DK; ++c) grad_k[c] += __shfl_sync(FULL, slope[c], owner) * product;
      }
    }
    sums.store(static_cast<Value*>(a.grad_v) + key * a.value_dim, first, a.value_dim);
  }
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    const Sum sum = warp_sum(grad_k[c]);
    if (lane() == 0) static_cast<Coordinate*>(a.grad_k)[key * DK + c] = Coordinate(a.carried ? sum_k[c] + sum : sum);
  }
}
