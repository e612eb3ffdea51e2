// Attention to the selection, backward, at the queries: their gradients, D and gamma's part. One warp a query, as
// forward.
#include "attention.cuh"

ZETA_KERNEL(attend_bwd_queries_kernel, 256) {
  const i64 slot = warp_of_grid();
  if (slot >= i64(a.batch) * a.q_heads * a.q_len) return;
  const Selector s = selector_of(a, slot);
  const int start = sequences_of(a)[s.query.sequence].start;
  const Sum square = squared_gamma(a, head_of(a, s.query)), inverse = inverse_normalizer(a, s.query.at);
  Pull pull;
  pull.clear();
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Columns g;
    g.load(grad_row(a, s.query), first, a.value_dim);
    s.visit([&](i64 e, int position, Coordinate distance, bool selected) {
      selected = selected && inverse != 0;
      Sum product = 0;
      for (u32 left = __ballot_sync(FULL, selected); left; left &= left - 1) {
        const int owner = __ffs(int(left)) - 1;
        Columns values;
        values.load(value_row(a, s.query.head_row, start + __shfl_sync(FULL, position, owner)), first, a.value_dim);
        const Sum sum = warp_sum(g.dot(values));
        if (lane() == owner) product = sum;
      }
      if (!selected) return;
      const Sum u = 1 / (Sum(distance) + square);
      Sum difference[DK];
#pragma unroll
      for (int c = 0; c < DK; ++c) difference[c] = Sum(s.x[c]) - Sum(s.points[e].x[c]);
      pull.add(u, u * inverse, product, difference, first == 0);
    });
  }
  pull.reduce();
  if (lane() == 0) write_query_gradients(a, s.query.at, pull);
}
