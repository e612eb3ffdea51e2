// Attention of one query to its selection, forward, by a whole warp: its lanes weigh 32 entries at once, then all of
// them add up the values of each that is selected.
#pragma once
#include "attention.cuh"

__device__ __noinline__ void attend_in_slot(const Args& a, i64 slot) {
  const Selector s = selector_of(a, slot);
  const int start = sequences_of(a)[s.query.sequence].start;
  const Sum nearest = Sum(slots_of(a)[slot].nearest);
  const Weights weights(squared_gamma(a, head_of(a, s.query)), nearest);
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Columns sums;
    sums.clear();
    Sum total = 0;
    s.visit([&](i64, int position, Coordinate distance, bool selected) {
      const Sum weight = selected ? weights.relative(Sum(distance)) : Sum(0);
      total += weight;
      for (u32 left = __ballot_sync(FULL, selected); left; left &= left - 1) {
        const int owner = __ffs(int(left)) - 1;
        Columns values;
        values.load(value_row(a, s.query.head_row, start + __shfl_sync(FULL, position, owner)), first, a.value_dim);
        sums.add(values, __shfl_sync(FULL, weight, owner));
      }
    });
    total = warp_sum(total);
    if (total == 0) sums.clear(); else sums.scale(1 / total);  // a value that is not finite has no weight either
    write_part(a, s.query.at, sums, weights.absolute(total), first);
  }
}
