// The local window, backward, at the queries: one warp a query, as forward.
#include "local.cuh"

ZETA_KERNEL(local_bwd_queries_kernel, 256) {
  const i64 at = warp_of_grid();
  if (at >= i64(a.batch) * a.q_heads * a.q_len) return;
  const LocalQuery local(a, at);
  const Sum square = squared_gamma(a, head_of(a, local.query)), inverse = inverse_normalizer(a, at);
  Pull pull;
  pull.clear();
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Columns g;
    g.load(grad_row(a, local.query), first, a.value_dim);
    local.visit(a, [&](int block, const Coordinate* key, Coordinate distance, bool exists) {
      Sum product = 0;
      local.visit_values(a, block, first, [&](int n, const Columns& values) {
        const Sum sum = warp_sum(g.dot(values));
        if (lane() == n) product = sum;
      });
      if (!exists || inverse == 0) return;
      const Sum u = 1 / (Sum(distance) + square);
      Sum difference[DK];
#pragma unroll
      for (int c = 0; c < DK; ++c) difference[c] = Sum(local.x[c]) - Sum(key[c]);
      pull.add(u, u * inverse, product, difference, first == 0);
    });
  }
  pull.reduce();
  if (lane() == 0) write_pull(a, at, pull);
}
