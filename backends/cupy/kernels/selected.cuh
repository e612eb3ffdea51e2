// Which entries of its ranges a query selects: visible ones, each key on the first curve that has it, and of these,
// where the union is cut, those that are not beyond the last one kept. A warp visits the entries 32 at a time.
#pragma once
#include "rows.cuh"

constexpr bool CUTS = ZETA_CUTS;        // whether unions of windows are cut to the nearest top_k

// NaN counts as infinitely far.
__device__ inline Coordinate comparable(Coordinate distance) {
  return distance == distance ? distance : infinity();
}

// Distances as integers, in the same order: they are not negative. Comparing floats might take subnormal ones for 0.
template <int BYTES> struct BitsOf { using type = u32; };
template <> struct BitsOf<8> { using type = u64; };
using Bits = BitsOf<sizeof(Coordinate)>::type;

__device__ inline u64 distance_bits(Coordinate distance) {
  if constexpr (sizeof(Coordinate) == 8) return u64(__double_as_longlong(distance));
  else return u64(u32(__float_as_int(distance)));
}

// Among the nearest: a smaller distance, or the same and at least as recent.
__device__ inline bool before_cut(Coordinate distance, int position, Coordinate cut_distance, int cut_position) {
  const Bits bits = Bits(distance_bits(distance)), cut_bits = Bits(distance_bits(cut_distance));
  return bits < cut_bits || (bits == cut_bits && position >= cut_position);
}

// A query with its ranges on all curves; the same in all lanes of a warp.
struct Selector {
  Query query;
  Coordinate x[DK];
  int2 ranges[CURVES];
  const Point* points[CURVES];          // of the query's row, as are the skip indices
  const int* fine[CURVES];
  const int* coarse[CURVES];
  i64 first_entry;                      // of the row, from the first of the batch item and head

  // Lanes ask about entry `e` of a curve, inside the range or not; fills `distance` where it is a candidate.
  __device__ bool candidate(int curve, i64 e, int& position, Coordinate& distance) const {
    if (e >= ranges[curve].y) return false;
    const Point point = points[curve][e];
    position = point.position;
    if (position >= query.visible) return false;
    for (int earlier = 0; earlier < curve; ++earlier) {
      const int rank = point.rank(earlier);
      if (rank >= ranges[earlier].x && rank < ranges[earlier].y) return false;
    }
    distance = comparable(squared_distance(x, point.x));
    return true;
  }

  // Visit the candidates, 32 entries at a time: all lanes call `f(curve, entry, position, distance, candidate)`
  // together. Blocks that the query sees nothing of are skipped.
  template <class F> __device__ void visit_candidates(F f) const {
    for (int curve = 0; curve < CURVES; ++curve) {
      for (i64 block = ranges[curve].x / BLOCK * BLOCK; block < ranges[curve].y; block += BLOCK) {
        const i64 at = first_entry + block;
        if (at % COARSE == 0 && coarse[curve][at / COARSE] >= query.visible) { block += COARSE - BLOCK; continue; }
        if (fine[curve][at / BLOCK] >= query.visible) continue;
        int position = NO_KEY;
        Coordinate distance = 0;
        const bool is_candidate = block + lane() >= ranges[curve].x &&
                                  candidate(curve, block + lane(), position, distance);
        f(curve, block + lane(), position, distance, is_candidate);
      }
    }
  }

  // Visit the selection in the same way.
  template <class F> __device__ void visit(const Args& a, F f) const {
    const Coordinate cut_distance = CUTS ? static_cast<const Coordinate*>(a.cut_distance)[query.at] : Coordinate(0);
    const int cut_position = CUTS ? static_cast<const int*>(a.cut_position)[query.at] : 0;
    visit_candidates([&](int curve, i64 e, int position, Coordinate distance, bool is_candidate) {
      f(curve, e, position, distance,
        is_candidate && (!CUTS || before_cut(distance, position, cut_distance, cut_position)));
    });
  }
};

// The entries in which a query's window lies, from the row's first one; `slot` is the query's on the first curve.
__device__ inline int2 range_in_slot(const Args& a, const Query& query, int curve, i64 slot) {
  if constexpr (CURVES > 1) return static_cast<const int2*>(a.ranges[curve])[query.at];
  const int entry = int(sequences_of(a)[query.sequence].entry);
  return int2{slots_of(a)[slot].left - entry, slots_of(a)[slot].right - entry};
}

// Set up the query of a slot of the first curve.
__device__ inline Selector selector_of(const Args& a, i64 slot) {
  Selector s;
  s.query = query_in_slot(a, 0, slot);
  const Coordinate* x = query_point(a, s.query);
#pragma unroll
  for (int c = 0; c < DK; ++c) s.x[c] = x[c];
  s.first_entry = sequences_of(a)[s.query.sequence].entry;
  const i64 entry = s.query.head_row * a.entries, blocks = (a.entries + COARSE - 1) / COARSE;
#pragma unroll
  for (int curve = 0; curve < CURVES; ++curve) {
    s.ranges[curve] = range_in_slot(a, s.query, curve, slot);
    s.points[curve] = static_cast<const Point*>(a.points[curve]) + entry + s.first_entry;
    s.fine[curve] = static_cast<const int*>(a.fine[curve]) + entry / BLOCK;
    s.coarse[curve] = static_cast<const int*>(a.coarse[curve]) + s.query.head_row * blocks;
  }
  return s;
}
