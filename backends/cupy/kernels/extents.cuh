// What the slots of a stretch may select, for those who stand at the keys and look for queries: for each 32 slots of a
// row, for each 1024, and in long rows for each 32768.
#pragma once
#include "tiles.cuh"

constexpr int SLOT_TILE = 32;
constexpr int SLOT_BLOCK = SLOT_TILE * 32;
constexpr int SLOT_REGION = SLOT_BLOCK * 32;
constexpr int FEW_REGIONS = 2;          // of a head: so many need no extents

struct alignas(16) Extent {
  int left;                             // least L
  int right;                            // greatest R
  int visible;                          // greatest t
  int padding;
};

// The extents of 1024 slots come first, then those of 32, then those of 32768.
__device__ inline Extent* fine_extents(const Args& a) {
  return static_cast<Extent*>(a.extents) + i64(a.batch) * a.kv_heads * slot_tiles_of_head<SLOT_BLOCK>(a);
}
__device__ inline Extent* wide_extents(const Args& a) {
  return fine_extents(a) + i64(a.batch) * a.kv_heads * slot_tiles_of_head<SLOT_BLOCK>(a) * 32;
}

// Tiles of 32 slots of a row in which a query may select some of the entries [first, stop) of a level, ascending. All
// lanes of a warp together.
struct SlotTiles {
  const Extent* wide;                   // of the row
  const Extent* coarse;
  const Extent* fine;
  int first, stop, least;               // the entries, and their least position
  int region, last_region;              // the next 32 wide extents to look at, and the last of all
  int first_block, last_block;          // coarse extents of the level's own slots
  int region_at, block_at, fine_at;     // where the bits below begin
  u32 regions_left, blocks_left, tiles_left;

  __device__ SlotTiles(const Args& a, const EntryTile& tile, int least_position) {
    const Sequence& s = sequences_of(a)[tile.sequence];
    const int before = slot_tiles_before<SLOT_BLOCK>(a, tile.head_row, tile.sequence);
    wide = wide_extents(a) + slot_tiles_before<SLOT_REGION>(a, tile.head_row, tile.sequence);
    coarse = static_cast<const Extent*>(a.extents) + before;
    fine = fine_extents(a) + i64(before) * 32;
    first = tile.first;
    stop = tile.stop;
    least = least_position;
    const int first_slot = (s.queries - s.level_query[tile.level]) * group_size(a);
    const int stop_slot = (s.queries - s.level_query[tile.level + 1]) * group_size(a);
    first_block = first_slot / SLOT_BLOCK;
    last_block = (stop_slot - 1) / SLOT_BLOCK;
    region = first_slot / SLOT_REGION;
    last_region = first_slot < stop_slot ? (stop_slot - 1) / SLOT_REGION : -1;
    if (a.q_len * group_size(a) <= FEW_REGIONS * SLOT_REGION) wide = nullptr;
    region_at = block_at = fine_at = 0;
    regions_left = blocks_left = tiles_left = 0;
  }
  __device__ bool meets(const Extent& extent) const {
    return extent.left < stop && extent.right > first && extent.visible > least;
  }
  // Whether there may be more.
  __device__ bool goes_on() const { return tiles_left || blocks_left || regions_left || region <= last_region; }
  // The next tile, or -1.
  __device__ int next() {
    while (!tiles_left) {
      if (blocks_left) {
        fine_at = (block_at + take(blocks_left)) * 32;
        tiles_left = __ballot_sync(FULL, meets(fine[fine_at + lane()]));
      } else if (regions_left) {
        block_at = (region_at + take(regions_left)) * 32;
        const int own = block_at + lane();
        blocks_left = __ballot_sync(FULL, own >= first_block && own <= last_block && meets(coarse[own]));
      } else if (region <= last_region) {
        region_at = region;
        const int own = region + lane();
        regions_left = __ballot_sync(FULL, own <= last_region && (!wide || meets(wide[own])));
        region += 32;
      } else {
        return -1;
      }
    }
    return fine_at + take(tiles_left);
  }
  // Take the lowest bit.
  __device__ static int take(u32& bits) {
    const int bit = __ffs(int(bits)) - 1;
    bits &= bits - 1;
    return bit;
  }
};
