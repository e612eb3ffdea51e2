// Attention to given keys, backward, at the queries, on tensor cores. One warp a query, in the order of slots where
// there is one: neighbours read the same rows.
#include "gathered.cuh"

ZETA_KERNEL(tile_given_bwd_queries_kernel, 32 * GATHERING_WARPS, 2) {
  const i64 slot = warp_of_grid();
  if (slot >= i64(a.batch) * a.q_heads * a.q_len) return;
  const i64 at = a.slots[0] ? query_in_slot(a, 0, slot).at : slot;
  const Given given(a, at);
  const float square = squared_gamma(a, head_of(a, given.query)), inverse = inverse_normalizer(a, at);
  const Value* base = value_row(a, given.query.head_row, 0);
  const int stride = int(a.v_stride / 8);
  OneRow g;
  g.load(grad_row(a, given.query));
  Pull pull;
  pull.clear();
  given.visit(a, OneRow::place(), [&](int index, const Coordinate* key, Coordinate distance, bool named) {
    const u32 vote = __ballot_sync(FULL, named);
    if (!vote) return;
    const float product = g.product(base, row_of_some(index * stride, vote), 32);
    if (!named || inverse == 0) return;
    const float u = 1 / (distance + square);
    float difference[DK];
#pragma unroll
    for (int c = 0; c < DK; ++c) difference[c] = given.x[c] - key[c];
    pull.add(u, u * inverse, product, difference, true);
  });
  pull.reduce();
  if (lane() != 0) return;
  write_query_gradients(a, at, pull);
  GivenRecord record = {};
#pragma unroll
  for (int c = 0; c < DK; ++c) record.x[c] = given.x[c];
  record.inverse = inverse;
  record.delta = static_cast<const float*>(a.delta)[at];
  static_cast<GivenRecord*>(a.records)[at] = record;
}
