// Attention to given keys, forward, on tensor cores: values of 16 bits, a multiple of 16 columns, float coordinates. One
// warp a query: its lanes weigh 32 keys at once, then multiply their rows of values.
#include "gathered_mean.cuh"

ZETA_KERNEL(tile_given_fwd_kernel, 32 * GATHERING_WARPS, DIM <= 64 ? 7 : 3) {
  __shared__ WeightedRows stages[GATHERING_WARPS];
  const i64 at = warp_of_grid();
  if (at < i64(a.batch) * a.q_heads * a.q_len) attend_to_given(a, at, stages[threadIdx.x / 32]);
}
