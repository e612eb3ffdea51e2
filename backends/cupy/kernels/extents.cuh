// What a tile of 16 slots may select, for those who stand at the keys and look for queries.
#pragma once
#include "tiles.cuh"

constexpr int SLOT_TILE = 16;

struct Extent {
  int left;                             // least L
  int right;                            // greatest R
  int left_from_here;                   // least L of this tile and all later ones of the row
  int right_up_to_here;                 // greatest R of this tile and all earlier ones of the row
  int visible;                          // greatest t
  int padding;
};

// The first tile of which `is_beyond` holds; it holds of all later ones too. A warp asks about 32 tiles at once.
template <class F> __device__ inline int first_tile(const Extent* extents, int count, F is_beyond) {
  int lo = 0, hi = count;               // the answer is in [lo, hi]
  while (lo < hi) {
    const int step = (hi - lo + 31) / 32, tile = lo + lane() * step;
    const u32 beyond = __ballot_sync(FULL, tile >= hi || is_beyond(extents[tile]));
    const int before = beyond ? __ffs(int(beyond)) - 1 : 32;  // lanes whose tiles are not beyond
    if (before < 32) hi = min(hi, lo + before * step);
    if (before > 0) lo = lo + (before - 1) * step + 1;
  }
  return lo;
}

// Tiles of a row in which a query may select entries [first, stop): a subset of tiles [from, to) of the row.
__device__ inline void tiles_that_meet(const Extent* extents, int count, i64 first, i64 stop, int& from, int& to) {
  from = first_tile(extents, count, [&](const Extent& extent) { return extent.right_up_to_here > first; });
  to = first_tile(extents, count, [&](const Extent& extent) { return extent.left_from_here >= stop; });
}
