// Lists of selected positions, ascending. One warp a query: it takes the next larger selected position again and again,
// which needs no memory and no sort.
#include "selected.cuh"

ZETA_KERNEL(list_kernel, 256) {
  const i64 slot = warp_of_grid();
  if (slot >= i64(a.batch) * a.q_heads * a.q_len) return;
  const Selector s = selector_of(a, slot);
  const int start = sequences_of(a)[s.query.sequence].start;
  int* row = static_cast<int*>(a.indices) + s.query.at * a.top_k;
  int last = -1;
  for (int place = 0; place < a.top_k; ++place) {
    int least = NO_KEY;
    if (last != NO_KEY) {
      s.visit(a, [&](int, i64, int position, Coordinate, bool selected) {
        if (selected && position > last && position < least) least = position;
      });
    }
    last = least = warp_min(least);
    if (lane() == 0) row[place] = least == NO_KEY ? -1 : start + least;
  }
}
