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

// How far a search for tiles of slots has come.
struct SlotCursor {
  int region;                           // the next 32 stretches of 32768 to look at
  int tile_at;                          // what `tiles_left` begins with; `blocks_left` begins 1024 tiles around it
  u32 regions_left, blocks_left, tiles_left;
};

// Tiles of 32 slots of a row in which a query may select some of the entries [first, stop) of a level, ascending. All
// lanes of a warp together.
struct SlotTiles : SlotCursor {
  const Args& a;
  int coarse, wide;                     // the row's first extents; wide is -1 in a row that has none
  int first, stop, least;               // the entries, and their least position
  int last_block;                       // the last 1024 slots with some of the level

  __device__ SlotTiles(const Args& args, const EntryTile& tile, int least_position) : a(args) {
    const Sequence& s = sequences_of(a)[tile.sequence];
    coarse = slot_tiles_before<SLOT_BLOCK>(a, tile.head_row, tile.sequence);
    wide = -1;
    if (a.q_len * group_size(a) > FEW_REGIONS * SLOT_REGION)
      wide = slot_tiles_before<SLOT_REGION>(a, tile.head_row, tile.sequence);
    first = tile.first;
    stop = tile.stop;
    least = least_position;
    const int first_slot = (s.queries - s.level_query[tile.level]) * group_size(a);
    const int slots = (s.level_query[tile.level] - s.level_query[tile.level + 1]) * group_size(a);
    last_block = slots > 0 ? (first_slot + slots - 1) / SLOT_BLOCK : -1;
    region = first_slot / SLOT_REGION;
    tile_at = 0;
    regions_left = blocks_left = tiles_left = 0;
  }
  __device__ bool meets(const Extent* extents, int n) const {
    const Extent extent = extents[n];
    return extent.left < stop && extent.right > first && extent.visible > least;
  }
  // Whether there may be more.
  __device__ bool goes_on() const { return tiles_left || blocks_left || regions_left || region <= last_block / 32; }
  // The next tile, or -1.
  __device__ int next() {
    while (!tiles_left) {
      if (blocks_left) {
        tile_at = tile_at / 1024 * 1024 + take(blocks_left) * 32;
        tiles_left = __ballot_sync(FULL, meets(fine_extents(a) + i64(coarse) * 32, tile_at + lane()));
      } else if (regions_left) {
        const int at = (region - 32 + take(regions_left)) * 32, own = at + lane();
        tile_at = at * 32;
        const Extent* extents = static_cast<const Extent*>(a.extents) + coarse;
        blocks_left = __ballot_sync(FULL, own <= last_block && meets(extents, own));
      } else if (region <= last_block / 32) {
        const int own = region + lane();
        const bool of_level = own <= last_block / 32;
        regions_left = __ballot_sync(FULL, of_level && (wide < 0 || meets(wide_extents(a) + wide, own)));
        region += 32;
      } else {
        return -1;
      }
    }
    return tile_at + take(tiles_left);
  }
  // Take the lowest bit.
  __device__ static int take(u32& bits) {
    const int bit = __ffs(int(bits)) - 1;
    bits &= bits - 1;
    return bit;
  }
};
