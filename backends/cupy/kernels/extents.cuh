// What the slots of a stretch may select, for those who stand at the keys and look for queries: for each 32 slots of a
// row, and for each 1024.
#pragma once
#include "tiles.cuh"

constexpr int SLOT_TILE = 32;
constexpr int SLOT_BLOCK = SLOT_TILE * 32;

struct alignas(16) Extent {
  int left;                             // least L
  int right;                            // greatest R
  int visible;                          // greatest t
  int padding;
};

// The extents of 1024 slots come first, then those of 32.
__device__ inline Extent* fine_extents(const Args& a) {
  return static_cast<Extent*>(a.extents) + i64(a.batch) * a.kv_heads * slot_tiles_of_head<SLOT_BLOCK>(a);
}

// Tiles of 32 slots of a row in which a query may select some of the entries [first, stop), ascending. All lanes of a
// warp together.
struct SlotTiles {
  const Extent* coarse;                 // of the row
  const Extent* fine;
  int first, stop, least;               // the entries, and their least position
  int group, count;                     // next 32 coarse extents to look at, and all of them
  int at;                               // the coarse extents looked at, the fine ones after these
  u32 coarse_left, fine_left;
  int fine_at;

  __device__ SlotTiles(const Args& a, int head_row, int sequence, int first_entry, int stop_entry, int least_position) {
    const int before = slot_tiles_before<SLOT_BLOCK>(a, head_row, sequence);
    coarse = static_cast<const Extent*>(a.extents) + before;
    fine = fine_extents(a) + i64(before) * 32;
    first = first_entry;
    stop = stop_entry;
    least = least_position;
    group = at = fine_at = 0;
    count = (sequences_of(a)[sequence].queries * group_size(a) + SLOT_BLOCK - 1) / SLOT_BLOCK;
    coarse_left = fine_left = 0;
  }
  __device__ bool meets(const Extent& extent) const {
    return extent.left < stop && extent.right > first && extent.visible > least;
  }
  // Whether there may be more.
  __device__ bool goes_on() const { return fine_left || coarse_left || group < count; }
  // The next tile, or -1.
  __device__ int next() {
    while (!fine_left) {
      if (coarse_left) {
        fine_at = at + __ffs(int(coarse_left)) - 1;
        coarse_left &= coarse_left - 1;
        fine_left = __ballot_sync(FULL, meets(fine[fine_at * 32 + lane()]));
        continue;
      }
      if (group >= count) return -1;
      at = group;
      coarse_left = __ballot_sync(FULL, at + lane() < count && meets(coarse[at + lane()]));
      group += 32;
    }
    const int tile = fine_at * 32 + __ffs(int(fine_left)) - 1;
    fine_left &= fine_left - 1;
    return tile;
  }
};
