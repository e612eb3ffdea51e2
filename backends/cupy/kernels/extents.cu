// Extents of tiles of slots, for the curve of the launch: first each tile's own, one warp a tile; then along each row,
// one block a row.
#include "extents.cuh"

constexpr int SCAN_THREADS = 1024;

ZETA_KERNEL(extents_kernel, 256) {
  SlotTile tile;
  const i64 n = warp_of_grid();
  if (n >= i64(a.batch) * a.q_heads * a.q_len / SLOT_TILE + i64(a.batch) * a.kv_heads * a.num_sequences) return;
  if (!find_slot_tile<SLOT_TILE>(a, n, tile)) return;
  int left = NO_KEY, right = 0, visible = 0;
  if (lane() < SLOT_TILE && tile.first + lane() < tile.stop) {
    const i64 slot = tile.row_slot + tile.first + lane();
    const Query query = query_of(a, tile.head_row, tile.sequence, number_in_slot(a, a.curve, slot));
    const int2 range = range_in_slot(a, a.curve, slot, query.at);
    if (range.x < range.y) left = range.x, right = range.y, visible = int(query.visible);
  }
  Extent extent;
  extent.left = warp_min(left);
  extent.right = -warp_min(-right);
  extent.visible = -warp_min(-visible);
  extent.left_from_here = extent.right_up_to_here = extent.padding = 0;
  if (lane() == 0) static_cast<Extent*>(a.extents)[n] = extent;
}

// Greatest of the values of this and all earlier threads of the block, and of all threads.
__device__ inline int scan_max(int value, int* of_warps, int& all) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(FULL, value, offset);
    if (lane() >= offset) value = max(value, other);
  }
  __syncthreads();                      // the last scan's values have been read
  if (lane() == 31) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  all = of_warps[0];
  for (int warp = 1; warp < SCAN_THREADS / 32; ++warp) {
    if (warp <= int(threadIdx.x) / 32) value = max(value, of_warps[warp - 1]);
    all = max(all, of_warps[warp]);
  }
  return value;
}

ZETA_KERNEL(extents_scan_kernel, SCAN_THREADS) {
  __shared__ int of_warps[SCAN_THREADS / 32];
  const i64 head_row = blockIdx.x / a.num_sequences;
  const int sequence = int(blockIdx.x % a.num_sequences);
  Extent* extents = static_cast<Extent*>(a.extents) + slot_tiles_before<SLOT_TILE>(a, head_row, sequence);
  const i64 slots = i64(sequences_of(a)[sequence].queries) * group_size(a);
  const int count = int((slots + SLOT_TILE - 1) / SLOT_TILE);
  int greatest = 0, least = -NO_KEY, all;
  for (int first = 0; first < count; first += SCAN_THREADS) {
    const int n = first + int(threadIdx.x), mirrored = count - 1 - n;
    const int right = max(greatest, scan_max(n < count ? extents[n].right : 0, of_warps, all));
    if (n < count) extents[n].right_up_to_here = right;
    greatest = max(greatest, all);
    const int left = max(least, scan_max(n < count ? -extents[mirrored].left : -NO_KEY, of_warps, all));
    if (n < count) extents[mirrored].left_from_here = -left;
    least = max(least, all);
  }
}
