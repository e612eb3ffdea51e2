// Attention of one query to given keys, forward, by a whole warp: its lanes weigh 32 keys at once, then all of them add
// up the values of each. A first visit finds the least distance, to which weights are relative.
#pragma once
#include "given.cuh"

__device__ __noinline__ void attend_to_given(const Args& a, i64 at) {
  const Given given(a, at);
  Coordinate nearest = infinity();
  given.visit(a, [&](int, const Coordinate*, Coordinate distance, bool named) {
    if (named && distance < nearest) nearest = distance;
  });
  const Weights weights(squared_gamma(a, head_of(a, given.query)), Sum(warp_least(nearest)));
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Columns sums;
    sums.clear();
    Sum total = 0;
    given.visit(a, [&](int index, const Coordinate*, Coordinate distance, bool named) {
      const Sum weight = named ? weights.relative(Sum(distance)) : Sum(0);
      total += weight;
      for (u32 left = __ballot_sync(FULL, named); left; left &= left - 1) {
        const int owner = __ffs(int(left)) - 1;
        Columns values;
        values.load(value_row(a, given.query.head_row, __shfl_sync(FULL, index, owner)), first, a.value_dim);
        sums.add(values, __shfl_sync(FULL, weight, owner));
      }
    });
    total = warp_sum(total);
    if (total == 0) sums.clear(); else sums.scale(1 / total);  // a value that is not finite has no weight either
    write_part(a, at, sums, weights.absolute(total), first);
  }
}
