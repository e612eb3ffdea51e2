// Attention to the selection, forward, for values and widths of any kind. One warp a query.
#include "attend.cuh"

ZETA_KERNEL(attend_fwd_kernel, 256) {
  const i64 slot = warp_of_grid();
  if (slot < i64(a.batch) * a.q_heads * a.q_len) attend_in_slot(a, slot);
}
