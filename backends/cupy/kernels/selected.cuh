// Which entries of its ranges a query selects: visible ones, each key on the first curve that has it, and of these, where
// the union is cut, those that are not beyond the last one kept. A warp visits the entries 32 at a time.
#pragma once
#include "rows.cuh"

// NaN counts as infinitely far.
__device__ inline Coordinate comparable(Coordinate distance) {
  return distance == distance ? distance : infinity();
}

// Among the nearest: a smaller distance, or the same and at least as recent.
__device__ inline bool before_cut(Coordinate distance, int position, Coordinate cut_distance, int cut_position) {
  return distance < cut_distance || (distance == cut_distance && position >= cut_position);
}

// A query with its ranges on all curves; the same in all lanes of a warp.
struct Selector {
  Query query;
  Coordinate x[DK];
  int2 ranges[CURVES];
  const Point* points[CURVES];          // of the query's row

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
};

// Set up the query of a slot of the first curve.
__device__ inline Selector selector_of(const Args& a, i64 slot) {
  const i64 slots = i64(a.batch) * a.q_heads * a.q_len, rows = i64(a.batch) * a.kv_heads;
  Selector s;
  s.query = query_in_slot(a, 0, slot);
  const Coordinate* x = query_point(a, s.query);
#pragma unroll
  for (int c = 0; c < DK; ++c) s.x[c] = x[c];
#pragma unroll
  for (int curve = 0; curve < CURVES; ++curve) {
    s.ranges[curve] = static_cast<const int2*>(a.ranges)[curve * slots + s.query.at];
    s.points[curve] = static_cast<const Point*>(a.points) + (curve * rows + s.query.head_row) * a.entries +
                      sequences_of(a)[s.query.sequence].entry;
  }
  return s;
}
