// Attention to given keys, forward, on tensor cores: values of 16 bits, a multiple of 16 columns, float coordinates. The
// warp's lanes weigh 32 keys at once, then multiply their rows of values. A first look finds the least distance.
#include "gathered_mean.cuh"
#include "gathered_queries.cuh"

// The distance of the key that the lane names by `index`; infinite where it names none.
__device__ inline float distance_to(const Args& a, const GivenQuery& query, int index) {
  if (!names_key(a, index)) return infinity();
  float key[DK];
  load_key(a, query, index, key);
  return comparable(squared_distance(query.x, key));
}

ZETA_KERNEL(tile_given_fwd_kernel, 32 * GATHERING_WARPS, DIM <= 64 ? 7 : 3) {
  __shared__ WeightedRows stages[GATHERING_WARPS];
  __shared__ GivenQuery looked_up[GATHERING_WARPS][GATHERING_TURNS];
  const GivenQuery* queries = looked_up[warp_of_block()];
  const int turns = look_up(a, looked_up[warp_of_block()]);
  int next = turns > 0 ? index_at(a, queries[0], lane()) : -1;
  for (int turn = 0; turn < turns; ++turn) {
    const GivenQuery& query = queries[turn];
    int index = next;
    if (turn + 1 < turns) next = index_at(a, queries[turn + 1], lane());  // on its way meanwhile
    float distance = distance_to(a, query, index), nearest = distance;
    for (int first = 32; first < a.width; first += 32)
      nearest = min(nearest, distance_to(a, query, index_at(a, query, first + lane())));
    MeanOfRows mean(a, static_cast<const Value*>(a.v) + query.values, query.square, warp_least(nearest));
    for (int first = 0;;) {
      mean.add(index, distance, names_key(a, index), stages[warp_of_block()]);
      first += 32;
      if (first >= a.width) break;
      index = index_at(a, query, first + lane());
      distance = distance_to(a, query, index);
    }
    mean.write(a, query.at);
  }
}
