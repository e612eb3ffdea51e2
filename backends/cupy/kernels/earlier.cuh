// Sorted places of the keys of entries on the curves before their own: a key that ranges of several curves share is
// chosen on the first of them.
#pragma once
#include "items.cuh"

template <int CURVE>
__device__ inline void write_earlier(const Args& a, int head_row, int start, i64 entry, int4 four) {
  const int heads = a.batch * a.kv_heads, positions[4] = {four.x, four.y, four.z, four.w};
  int earlier[4 * CURVE];               // by entry, then curve
#pragma unroll
  for (int curve = 0; curve < CURVE; ++curve) {
    const int* places = sorted_places(a, curve * heads + head_row) + start;
#pragma unroll
    for (int n = 0; n < 4; ++n) earlier[n * CURVE + curve] = positions[n] == NO_KEY ? 0 : places[positions[n]];
  }
  int4* to = reinterpret_cast<int4*>(static_cast<int*>(a.earlier[CURVE]) + (head_row * a.entries + entry) * CURVE);
#pragma unroll
  for (int n = 0; n < CURVE; ++n)
    to[n] = int4{earlier[4 * n], earlier[4 * n + 1], earlier[4 * n + 2], earlier[4 * n + 3]};
}

// Write those of four entries of a search from their positions; `start` is that of their sequence.
__device__ inline void write_earlier(const Args& a, const Search& search, int start, i64 entry, int4 positions) {
  if (search.curve == 1) write_earlier<1>(a, search.head_row, start, entry, positions);
  if (search.curve == 2) write_earlier<2>(a, search.head_row, start, entry, positions);
}
