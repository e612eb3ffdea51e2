// Re-ranking: where the union of a query's windows holds more than top_k keys, the last one that is kept, as two numbers
// a query. One warp a query.
#include "digits.cuh"

ZETA_KERNEL(cut_kernel, 256) {
  __shared__ int counters[8][256];
  const i64 slot = warp_of_grid();
  if (slot >= i64(a.batch) * a.q_heads * a.q_len) return;
  const Selector s = selector_of(a, slot);
  const Cut cut = cut_after(a.top_k, counters[threadIdx.x / 32], [&](auto offer) {
    s.visit_candidates([&](int, i64, int position, Coordinate distance, bool candidate) {
      if (candidate) offer(distance, position);
    });
  });
  if (lane() == 0) {
    static_cast<Coordinate*>(a.cut_distance)[s.query.at] = cut.distance;
    static_cast<int*>(a.cut_position)[s.query.at] = cut.position;
  }
}
