// The local window as a part of attention: query i at position p attends to the positions p - local_window + 1 .. p
// that exist. Forward and at the queries one warp a query, in order of position, so that neighbours read the same rows;
// at the keys one warp a key, which visits the queries whose windows hold it.
#include "attention.cuh"

// The window of a query; the same in all lanes of a warp.
struct LocalWindow {
  Query query;
  Coordinate x[DK];
  int first, stop;                      // positions [first, stop) of the sequence
  int start;                            // of the sequence along N

  __device__ LocalWindow(const Args& a, i64 at) : query(query_numbered(a, at)) {
    const Sequence& s = sequences_of(a)[query.sequence];
    start = s.start;
    const i64 position = a.q_offset + query.token - start;
    first = int(min(max(position + 1 - a.local_window, i64(0)), i64(s.keys)));
    stop = int(min(max(position + 1, i64(first)), i64(s.keys)));
    const Coordinate* point = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = point[c];
  }
  // Visit the keys, 32 at a time: all lanes call `f(position, key, distance, exists)` together.
  template <class F> __device__ void visit(const Args& a, F f) const {
    for (int block = first; block < stop; block += 32) {
      const int position = block + lane();
      const bool exists = position < stop;
      const Coordinate* key = key_point(a, query.head_row, start + (exists ? position : first));
      f(position, key, comparable(squared_distance(x, key)), exists);
    }
  }
};

ZETA_KERNEL(local_fwd_kernel, 256) {
  const i64 at = warp_of_grid();
  if (at >= i64(a.batch) * a.q_heads * a.q_len) return;
  const LocalWindow window(a, at);
  Coordinate nearest = infinity();
  window.visit(a, [&](int, const Coordinate*, Coordinate distance, bool exists) {
    if (exists && distance < nearest) nearest = distance;
  });
  const Weights weights(squared_gamma(a, head_of(a, window.query)), Sum(warp_least(nearest)));
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Columns sums;
    sums.clear();
    Sum total = 0;
    window.visit(a, [&](int position, const Coordinate*, Coordinate distance, bool exists) {
      const Sum weight = exists ? weights.relative(Sum(distance)) : Sum(0);
      total += weight;
      for (u32 left = __ballot_sync(FULL, exists); left; left &= left - 1) {
        const int owner = __ffs(int(left)) - 1;
        Columns values;
        values.load(value_row(a, window.query.head_row, window.start + __shfl_sync(FULL, position, owner)), first,
                    a.value_dim);
        sums.add(values, __shfl_sync(FULL, weight, owner));
      }
    });
    total = warp_sum(total);
    if (total == 0) sums.clear(); else sums.scale(1 / total);
    write_part(a, at, sums, weights.absolute(total), first);
  }
}

ZETA_KERNEL(local_bwd_queries_kernel, 256) {
  const i64 at = warp_of_grid();
  if (at >= i64(a.batch) * a.q_heads * a.q_len) return;
  const LocalWindow window(a, at);
  const Sum square = squared_gamma(a, head_of(a, window.query)), inverse = inverse_normalizer(a, at);
  Pull pull;
  pull.clear();
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Columns g;
    g.load(grad_row(a, window.query), first, a.value_dim);
    window.visit(a, [&](int position, const Coordinate* key, Coordinate distance, bool exists) {
      exists = exists && inverse != 0;
      Sum product = 0;
      for (u32 left = __ballot_sync(FULL, exists); left; left &= left - 1) {
        const int owner = __ffs(int(left)) - 1;
        Columns values;
        values.load(value_row(a, window.query.head_row, window.start + __shfl_sync(FULL, position, owner)), first,
                    a.value_dim);
        const Sum sum = warp_sum(g.dot(values));
        if (lane() == owner) product = sum;
      }
      if (!exists) return;
      const Sum u = 1 / (Sum(distance) + square);
      Sum difference[DK];
#pragma unroll
      for (int c = 0; c < DK; ++c) difference[c] = Sum(window.x[c]) - Sum(key[c]);
      pull.add(u, u * inverse, product, difference, first == 0);
    });
  }
  pull.reduce();
  if (lane() == 0) write_pull(a, at, pull);
}

ZETA_KERNEL(local_bwd_keys_kernel, 256) {
  const i64 key = warp_of_grid();
  if (key >= i64(a.batch) * a.kv_heads * a.k_len) return;
  const int head_row = int(key / a.k_len), token = int(key % a.k_len);
  const int sequence = a.cu_seqlens ? sequence_of_token(a, token) : 0;
  const Sequence& s = sequences_of(a)[sequence];
  // Queries [from, to) of each head: those at the key's position and up to local_window - 1 after it.
  const i64 i = token - s.start - a.q_offset;
  const int from = int(min(max(i, i64(0)), i64(s.queries)));
  const int to = int(min(max(i + a.local_window, i64(0)), i64(s.queries))), count = max(to - from, 0);
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
      if (attends) query = query_of(a, head_row, sequence, n / count * s.queries + from + n % count);
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
