// Attention to given keys, backward, at the queries: their gradients, D and gamma's part. One warp a query, as forward.
#include "given.cuh"

ZETA_KERNEL(given_bwd_queries_kernel, 256, BLOCKS) {
  const i64 at = warp_of_grid();
  if (at >= i64(a.batch) * a.q_heads * a.q_len) return;
  const Given given(a, at);
  const Sum square = squared_gamma(a, head_of(a, given.query)), inverse = inverse_normalizer(a, at);
  Pull pull;
  pull.clear();
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Columns g;
    g.load(grad_row(a, given.query), first, a.value_dim);
    given.visit(a, [&](int index, const Coordinate* key, Coordinate distance, bool named) {
      named = named && inverse != 0;
      Sum product = 0;
      for (u32 left = __ballot_sync(FULL, named); left; left &= left - 1) {
        const int owner = __ffs(int(left)) - 1;
        Columns values;
        values.load(value_row(a, given.query.head_row, __shfl_sync(FULL, index, owner)), first, a.value_dim);
        const Sum sum = warp_sum(g.dot(values));
        if (lane() == owner) product = sum;
      }
      if (!named) return;
      const Sum u = 1 / (Sum(distance) + square);
      Sum difference[DK];
#pragma unroll
      for (int c = 0; c < DK; ++c) difference[c] = Sum(given.x[c]) - Sum(key[c]);
      pull.add(u, u * inverse, product, difference, first == 0);
    });
  }
  pull.reduce();
  if (lane() == 0) write_query_gradients(a, at, pull);
}
