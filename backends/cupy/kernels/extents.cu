// Extents of stretches of slots: a warp takes 32 slots, a block 1024; then a warp takes 32 of these.
#include "extents.cuh"

ZETA_KERNEL(extents_kernel, SLOT_BLOCK) {
  __shared__ Extent of_warps[32];
  SlotTile tile;
  if (!find_slot_tile<SLOT_BLOCK>(a, blockIdx.x, tile)) return;
  int left = NO_KEY, right = 0, visible = 0;
  if (tile.first + int(threadIdx.x) < tile.stop) {
    const Slot& slot = slots_of(a)[tile.row_slot + tile.first + threadIdx.x];
    if (slot.left < slot.right) left = slot.left, right = slot.right, visible = slot.visible;
  }
  const auto join = [&] { return Extent{warp_min(left), -warp_min(-right), -warp_min(-visible), 0}; };
  Extent extent = join();
  if (lane() == 0) {
    of_warps[threadIdx.x / 32] = extent;
    fine_extents(a)[i64(blockIdx.x) * 32 + threadIdx.x / 32] = extent;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  left = of_warps[lane()].left;
  right = of_warps[lane()].right;
  visible = of_warps[lane()].visible;
  extent = join();
  if (lane() == 0) static_cast<Extent*>(a.extents)[blockIdx.x] = extent;
}

ZETA_KERNEL(wide_extents_kernel, 256) {
  SlotTile tile;
  const u32 number = u32(warp_of_grid());
  if (!find_slot_tile<SLOT_REGION>(a, number, tile)) return;
  const Extent* coarse = static_cast<const Extent*>(a.extents) +
                         slot_tiles_before<SLOT_BLOCK>(a, tile.head_row, tile.sequence) + tile.first / SLOT_BLOCK;
  Extent extent{NO_KEY, 0, 0, 0};
  if (lane() * SLOT_BLOCK < tile.stop - tile.first) extent = coarse[lane()];
  extent = Extent{warp_min(extent.left), -warp_min(-extent.right), -warp_min(-extent.visible), 0};
  if (lane() == 0) wide_extents(a)[number] = extent;
}
