// Attention to given keys, forward. One warp a query.
#include "attend_given.cuh"

ZETA_KERNEL(given_fwd_kernel, 256, BLOCKS) {
  const i64 at = warp_of_grid();
  if (at < i64(a.batch) * a.q_heads * a.q_len) attend_to_given(a, at);
}
