// The local window, backward, at the keys: one warp a key, which visits the queries of all heads whose windows hold it.
#include "local.cuh"

ZETA_KERNEL(local_bwd_keys_kernel, 256) {
  const i64 key = warp_of_grid();
  if (key >= i64(a.batch) * a.kv_heads * a.k_len) return;
  const int head_row = int(key / a.k_len), token = int(key % a.k_len);
  const int sequence = a.cu_seqlens ? sequence_of_token(a, token) : 0;
  const Sequence& s = sequences_of(a)[sequence];
  const Attending queries(a, s, token - s.start, token - s.start + 1);
  const int count = queries.stop - queries.first, all = count * group_size(a);
  Coordinate x[DK];
#pragma unroll
  for (int c = 0; c < DK; ++c) x[c] = key_point(a, head_row, token)[c];
  Sum* sum_k = static_cast<Sum*>(a.sum_k) + key * DK;
  Sum* sum_v = static_cast<Sum*>(a.sum_v) + key * a.value_dim;
  Sum grad_k[DK] = {};
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Columns values, sums;
    values.load(value_row(a, head_row, token), first, a.value_dim);
    sums.clear();
    if (a.carried) sums.load(sum_v, first, a.value_dim);
    for (int block = 0; block < all; block += 32) {
      const int mine = min(block + lane(), all - 1);
      const Query query = query_of(a, head_row, sequence, mine / count * s.queries + queries.first + mine % count);
      const u64 grad = reinterpret_cast<u64>(grad_row(a, query));
      const Sum inverse = block + lane() < all ? inverse_normalizer(a, query.at) : Sum(0);
      const bool attends = inverse != 0;
      const Coordinate distance = attends ? comparable(squared_distance(query_point(a, query), x)) : Coordinate(0);
      const Sum u = attends ? 1 / (Sum(distance) + squared_gamma(a, head_of(a, query))) : Sum(0), p = u * inverse;
      Sum product = 0;
      const u32 attending = __ballot_sync(FULL, attends);
      for (int n = 0; n < min(32, all - block); n += ROWS_AHEAD) {
        Columns ahead[ROWS_AHEAD];
#pragma unroll
        for (int m = 0; m < ROWS_AHEAD; ++m)
          ahead[m].load(reinterpret_cast<const Value*>(__shfl_sync(FULL, grad, n + m)), first, a.value_dim);
#pragma unroll
        for (int m = 0; m < ROWS_AHEAD; ++m) {
          if (!(attending >> (n + m) & 1)) continue;
          const Sum sum = warp_sum(ahead[m].dot(values));
          if (lane() == n + m) product = sum;
          sums.add(ahead[m], __shfl_sync(FULL, p, n + m));
        }
      }
      if (!attends) continue;
      const Sum mean = first == 0 ? static_cast<const Sum*>(a.delta)[query.at] : Sum(0);
      const Sum slope = 2 * u * p * (product - mean);
      const Coordinate* point = query_point(a, query);
#pragma unroll
      for (int c = 0; c < DK; ++c) grad_k[c] += slope * (Sum(point[c]) - Sum(x[c]));
    }
    sums.store(sum_v, first, a.value_dim);
  }
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    const Sum sum = warp_sum(grad_k[c]);
    if (lane() == 0) sum_k[c] = a.carried ? sum_k[c] + sum : sum;
  }
}
