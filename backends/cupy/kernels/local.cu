// The local window, forward: one warp a query, in order of position, so that neighbours read the same rows.
#include "local.cuh"

ZETA_KERNEL(local_fwd_kernel, 256) {
  const i64 at = warp_of_grid();
  if (at < i64(a.batch) * a.q_heads * a.q_len) attend_locally(a, at);
}
