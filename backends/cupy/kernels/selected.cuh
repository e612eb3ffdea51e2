// Which entries of its range a query selects, where there is one curve and nothing is cut: the visible ones. A warp
// visits the entries 32 at a time.
#pragma once
#include "rows.cuh"

// NaN counts as infinitely far.
__device__ inline Coordinate comparable(Coordinate distance) {
  return distance == distance ? distance : infinity();
}

// Distances as integers, in the same order: they are not negative. Comparing floats might take subnormal ones for 0.
template <int BYTES> struct BitsOf { using type = u32; };
template <> struct BitsOf<8> { using type = u64; };
using Bits = BitsOf<sizeof(Coordinate)>::type;

__device__ inline u64 distance_bits(Coordinate distance) {
#ifdef ZETA_HOST                       // arithmetic on a GPU gives NaN without a sign
  constexpr u64 SIGNLESS = ~u64(0) >> (sizeof(Coordinate) == 8 ? 1 : 33);
#else
  constexpr u64 SIGNLESS = ~u64(0);
#endif
  if constexpr (sizeof(Coordinate) == 8) return u64(__double_as_longlong(distance)) & SIGNLESS;
  else return u64(u32(__float_as_int(distance))) & SIGNLESS;
}

// Among the nearest: a smaller distance, or the same and at least as recent.
__device__ inline bool before_cut(Coordinate distance, int position, Coordinate cut_distance, int cut_position) {
  const Bits bits = Bits(distance_bits(distance)), cut_bits = Bits(distance_bits(cut_distance));
  return bits < cut_bits || (bits == cut_bits && position >= cut_position);
}

// A query with its range on the one curve; the same in all lanes of a warp.
struct Selector {
  Query query;
  Coordinate x[DK];
  int2 range;
  const Point* points;                  // of the query's row, as are the skip indices
  const int* fine;
  const int* coarse;
  i64 first_entry;                      // of the row, from the first of the batch item and head

  // Visit the selection, 32 entries at a time: all lanes call `f(entry, position, distance, selected)` together. Blocks
  // that the query sees nothing of are skipped.
  template <class F> __device__ void visit(F f) const {
    for (i64 block = range.x / BLOCK * BLOCK; block < range.y; block += BLOCK) {
      const i64 at = first_entry + block;
      if (at % COARSE == 0 && coarse[at / COARSE] >= query.visible) { block += COARSE - BLOCK; continue; }
      if (fine[at / BLOCK] >= query.visible) continue;
      const i64 e = block + lane();
      int position = NO_KEY;
      Coordinate distance = 0;
      bool selected = false;
      if (e >= range.x && e < range.y) {
        const Point point = points[e];
        position = point.position;
        selected = position < query.visible;
        distance = comparable(squared_distance(x, point.x));
      }
      f(e, position, distance, selected);
    }
  }
};

// Set up the query of a slot.
__device__ inline Selector selector_of(const Args& a, i64 slot) {
  Selector s;
  s.query = query_in_slot(a, slot);
  const Coordinate* x = query_point(a, s.query);
#pragma unroll
  for (int c = 0; c < DK; ++c) s.x[c] = x[c];
  s.first_entry = sequences_of(a)[s.query.sequence].entry;
  const i64 entry = s.query.head_row * a.entries, blocks = (a.entries + COARSE - 1) / COARSE;
  const int first = int(s.first_entry);
  s.range = int2{slots_of(a)[slot].left - first, slots_of(a)[slot].right - first};
  s.points = static_cast<const Point*>(a.points[0]) + entry + s.first_entry;
  s.fine = static_cast<const int*>(a.fine[0]) + entry / BLOCK;
  s.coarse = static_cast<const int*>(a.coarse[0]) + s.query.head_row * blocks;
  return s;
}
