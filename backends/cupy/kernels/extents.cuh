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

// Tiles of a row in which a query may select entries [first, stop): a subset of tiles [from, to) of the row.
__device__ inline void tiles_that_meet(const Extent* extents, int count, i64 first, i64 stop, int& from, int& to) {
  int lo = 0, hi = count;
  while (lo < hi) {
    const int middle = (lo + hi) / 2;
    if (extents[middle].right_up_to_here > first) hi = middle; else lo = middle + 1;
  }
  from = lo;
  hi = count;
  while (lo < hi) {
    const int middle = (lo + hi) / 2;
    if (extents[middle].left_from_here < stop) lo = middle + 1; else hi = middle;
  }
  to = lo;
}
