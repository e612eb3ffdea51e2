// Extents of stretches of slots: a warp takes 32 slots, a block 1024.
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
