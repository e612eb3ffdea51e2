// Extents of tiles of slots, for the curve of the launch: first each tile's own, one warp a tile; then along each row, one
// warp a row, which takes 32 tiles at once.
#include "extents.cuh"

ZETA_KERNEL(extents_kernel, 256) {
  SlotTile tile;
  const i64 n = warp_of_grid();
  if (n >= i64(a.batch) * a.q_heads * a.q_len / SLOT_TILE + i64(a.batch) * a.kv_heads * a.num_sequences) return;
  if (!find_slot_tile<SLOT_TILE>(a, n, tile)) return;
  int left = NO_KEY, right = 0, visible = 0;
  if (lane() < SLOT_TILE && tile.first + lane() < tile.stop) {
    const Query query = query_of(a, tile.head_row, tile.sequence,
                                 static_cast<const int*>(a.slots[a.curve])[tile.row_slot + tile.first + lane()]);
    const int2 range = static_cast<const int2*>(a.ranges[a.curve])[query.at];
    if (range.x < range.y) left = range.x, right = range.y, visible = int(query.visible);
  }
  Extent extent;
  extent.left = warp_min(left);
  extent.right = -warp_min(-right);
  extent.visible = -warp_min(-visible);
  extent.left_from_here = extent.right_up_to_here = extent.padding = 0;
  if (lane() == 0) static_cast<Extent*>(a.extents)[n] = extent;
}

ZETA_KERNEL(extents_scan_kernel, 256) {
  const i64 row = warp_of_grid();
  if (row >= i64(a.batch) * a.kv_heads * a.num_sequences) return;
  const i64 head_row = row / a.num_sequences;
  const int sequence = int(row % a.num_sequences);
  Extent* extents = static_cast<Extent*>(a.extents) + slot_tiles_before<SLOT_TILE>(a, head_row, sequence);
  const i64 slots = i64(sequences_of(a)[sequence].queries) * group_size(a);
  const int count = int((slots + SLOT_TILE - 1) / SLOT_TILE);
  int greatest = 0;
  for (int first = 0; first < count; first += 32) {
    const bool exists = first + lane() < count;
    int right = exists ? extents[first + lane()].right : 0;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(FULL, right, offset);
      if (lane() >= offset) right = max(right, other);
    }
    right = max(right, greatest);
    if (exists) extents[first + lane()].right_up_to_here = right;
    greatest = __shfl_sync(FULL, right, 31);
  }
  int least = NO_KEY;
  for (int last = count - 1; last >= 0; last -= 32) {
    const bool exists = last - lane() >= 0;
    int left = exists ? extents[last - lane()].left : NO_KEY;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(FULL, left, offset);
      if (lane() >= offset) left = min(left, other);
    }
    left = min(left, least);
    if (exists) extents[last - lane()].left_from_here = left;
    least = __shfl_sync(FULL, left, 31);
  }
}
