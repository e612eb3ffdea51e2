// Lists of selected positions, ascending. One warp a query: it takes the next larger selected position again and again,
// which needs no memory and no sort.
#include "selected.cuh"

ZETA_KERNEL(list_kernel, 256) {
  const i64 slot = warp_of_grid();
  if (slot >= i64(a.batch) * a.q_heads * a.q_len) return;
  const Selector s = selector_of(a, slot);
  const bool cut = a.cut_position != nullptr;
  const Coordinate cut_distance = cut ? static_cast<const Coordinate*>(a.cut_distance)[s.query.at] : Coordinate(0);
  const int cut_position = cut ? static_cast<const int*>(a.cut_position)[s.query.at] : 0;
  const int start = sequences_of(a)[s.query.sequence].start;
  int* row = static_cast<int*>(a.indices) + s.query.at * a.top_k;
  int last = -1;
  for (int place = 0; place < a.top_k; ++place) {
    int least = NO_KEY;
    for (int curve = 0; last != NO_KEY && curve < CURVES; ++curve) {
      for (i64 e = s.ranges[curve].x + lane(); e < s.ranges[curve].y; e += 32) {
        int position = NO_KEY;
        Coordinate distance = 0;
        if (s.candidate(curve, e, position, distance) && position > last && position < least &&
            (!cut || before_cut(distance, position, cut_distance, cut_position)))
          least = position;
      }
    }
    last = least = warp_min(least);
    if (lane() == 0) row[place] = least == NO_KEY ? -1 : start + least;
  }
}
