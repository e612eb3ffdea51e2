// The history token, backward, at the keys: what the queries hand on to all keys of their means. Sums over chunks of
// queries of all heads that read a key head, a scan from the end, and a walk of one warp over 128 keys.
#include "history.cuh"

// What a query hands on to each key of its mean: the factor of its row of grad_out, and a pull at the key.
__device__ inline Sum handed_on(const Args& a, const Query& query, int past, Sum* pull) {
  const Term term = static_cast<const Term*>(a.history_terms)[query.at];
  const Sum p = term.weight * inverse_normalizer(a, query.at);
  const Sum mean = static_cast<const Sum*>(a.delta)[query.at];
  const Sum slope = p == 0 ? Sum(0) : 2 * term.weight * p * (term.product - mean) / past;
  const Coordinate* x = query_point(a, query);
#pragma unroll
  for (int c = 0; c < DK; ++c) pull[c] = p == 0 ? Sum(0) : slope * (Sum(x[c]) - term.mean[c]);
  return p == 0 ? Sum(0) : p / past;
}

// Add what queries [from, to) of all heads hand on, from the last one to the first.
__device__ inline void add_handed_on(const Args& a, int head_row, int sequence, int from, int to, int first,
                                     double* points, Columns& rows) {
  const Sequence& s = sequences_of(a)[sequence];
  for (int head = 0; head < group_size(a); ++head) {
    for (int i = to - 1; i >= from; i -= AHEAD) {
      Columns ahead[AHEAD];
      Sum factors[AHEAD];
#pragma unroll
      for (int n = 0; n < AHEAD; ++n) {
        factors[n] = 0;
        if (i - n < from) continue;
        const Query query = query_of(a, head_row, sequence, head * s.queries + i - n);
        Sum pull[DK];
        factors[n] = handed_on(a, query, past_of(a, s, i - n), pull);
        if (factors[n] != 0) ahead[n].load(grad_row(a, query), first, a.value_dim);
#pragma unroll
        for (int c = 0; c < DK; ++c) points[c] += double(pull[c]);
      }
#pragma unroll
      for (int n = 0; n < AHEAD; ++n) if (factors[n] != 0) rows.add(ahead[n], factors[n]);
    }
  }
}

ZETA_KERNEL(history_handed_sums_kernel, 256) {
  const i64 warp = warp_of_grid(), head_row = warp / a.history_chunks;
  Chunk chunk;
  if (head_row >= i64(a.batch) * a.kv_heads) return;
  if (!find_chunk<&Sequence::queries>(a, int(warp % a.history_chunks), chunk)) return;
  const Sequence& s = sequences_of(a)[chunk.sequence];
  double* sums = chunk_sums(a, head_row, s, chunk.sequence, chunk.first);
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    double points[DK] = {};
    Columns rows;
    rows.clear();
    add_handed_on(a, int(head_row), chunk.sequence, chunk.first, chunk.stop, first, points, rows);
    rows.store_double(sums + DK, first, a.value_dim);
#pragma unroll
    for (int c = 0; c < DK; ++c) if (first == 0 && lane() == 0) sums[c] = points[c];
  }
}

ZETA_KERNEL(history_bwd_keys_kernel, 256) {
  const i64 warp = warp_of_grid(), head_row = warp / a.history_chunks;
  Chunk chunk;
  if (head_row >= i64(a.batch) * a.kv_heads) return;
  if (!find_chunk<&Sequence::keys>(a, int(warp % a.history_chunks), chunk)) return;
  const Sequence& s = sequences_of(a)[chunk.sequence];
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    double points[DK] = {};
    Columns rows;
    rows.clear();
    int reached = first_query_of(a, s, chunk.stop - 1);  // queries from here on are in the sums
    if (reached < s.queries) {
      const double* sums = chunk_sums(a, head_row, s, chunk.sequence, reached);
#pragma unroll
      for (int c = 0; c < DK; ++c) points[c] = sums[c];
      rows.load_double(sums + DK, first, a.value_dim);
      const int stop = min(reached / CHUNK * CHUNK + CHUNK, s.queries);
      add_handed_on(a, int(head_row), chunk.sequence, reached, stop, first, points, rows);
    }
    for (int token = chunk.stop - 1; token >= chunk.first; --token) {
      const int from = first_query_of(a, s, token);
      if (from < reached) add_handed_on(a, int(head_row), chunk.sequence, from, reached, first, points, rows);
      reached = from;
      const i64 key = head_row * a.k_len + s.start + token;
      rows.store(static_cast<Sum*>(a.sum_v) + key * a.value_dim, first, a.value_dim);
      if (first == 0 && lane() < DK) {
#pragma unroll
        for (int c = 0; c < DK; ++c) if (lane() == c) static_cast<Sum*>(a.sum_k)[key * DK + c] = Sum(points[c]);
      }
    }
  }
}
