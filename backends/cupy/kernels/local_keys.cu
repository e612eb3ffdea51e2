// The local window, backward, at the keys: one warp a key, which visits the queries of all heads whose windows hold it.
#include "local.cuh"

ZETA_KERNEL(local_bwd_keys_kernel, 256) {
  const i64 key = warp_of_grid();
  if (key >= i64(a.batch) * a.kv_heads * a.k_len) return;
  const int head_row = int(key / a.k_len), token = int(key % a.k_len);
  const int sequence = a.cu_seqlens ? sequence_of_token(a, token) : 0;
  const Sequence& s = sequences_of(a)[sequence];
  const Attending queries(a, s, token - s.start, token - s.start + 1);
  const int count = queries.stop - queries.first;
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
    for (int block = 0; block < count * group_size(a); block += 32) {
      const int n = block + lane();
      bool attends = n < count * group_size(a);
      Query query = {};
      if (attends) query = query_of(a, head_row, sequence, n / count * s.queries + queries.first + n % count);
      const Sum inverse = attends ? inverse_normalizer(a, query.at) : Sum(0);
      attends = inverse != 0;
      const Coordinate distance = attends ? comparable(squared_distance(query_point(a, query), x)) : Coordinate(0);
      const Sum u = attends ? 1 / (Sum(distance) + squared_gamma(a, head_of(a, query))) : Sum(0), p = u * inverse;
      Sum product = 0;
      for (u32 left = __ballot_sync(FULL, attends); left; left &= left - 1) {
        const int owner = __ffs(int(left)) - 1;
        Query other = query;            // the fields that say where its row of grad_out is
        other.head = __shfl_sync(FULL, query.head, owner);
        other.token = __shfl_sync(FULL, query.token, owner);
        other.head_row = head_row;
        Columns g;
        g.load(grad_row(a, other), first, a.value_dim);
        const Sum sum = warp_sum(g.dot(values));
        if (lane() == owner) product = sum;
        sums.add(g, __shfl_sync(FULL, p, owner));
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
