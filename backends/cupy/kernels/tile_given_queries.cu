// Attention to given keys, backward, at the queries, on tensor cores. A warp takes a few queries, one after another, in
// the order of slots where there is one: neighbours read the same rows. D comes first: what follows needs no products
// that cancel.
#include "gathered_queries.cuh"

// A key's part of its query's gradients.
struct PartOfKey {
  float p, slope;                       // u / Z and u p; 0 where there is no key
  float product;
  float difference[DK];
};

// The part of the key that the lane names by `index`; all lanes together.
__device__ inline PartOfKey part_of_key(const Args& a, const GivenQuery& query, const OneRow& g, int index) {
  PartOfKey part = {};
  const bool named = names_key(a, index) && query.inverse != 0;
  const u32 vote = __ballot_sync(FULL, named);
  if (!vote) return part;
  float key[DK] = {};
  if (named) load_key(a, query, index, key);
  const int row = row_of_some(index * int(a.v_stride / 8), vote);
  const float product = g.product(static_cast<const Value*>(a.v) + query.values, row, 32);
  if (!named) return part;
  const float u = 1 / (comparable(squared_distance(query.x, key)) + query.square);
  part.p = u * query.inverse;
  part.slope = u * part.p;
  part.product = product;
#pragma unroll
  for (int c = 0; c < DK; ++c) part.difference[c] = query.x[c] - key[c];
  return part;
}

ZETA_KERNEL(tile_given_bwd_queries_kernel, 32 * GATHERING_WARPS, DIM <= 64 ? 5 : 3) {
  __shared__ GivenQuery looked_up[GATHERING_WARPS][GATHERING_TURNS];
  const GivenQuery* queries = looked_up[uniform_warp_of_block()];
  const int turns = look_up(a, looked_up[uniform_warp_of_block()]), own = OneRow::place();
  int next = turns > 0 ? index_at(a, queries[0], own) : -1;
  for (int turn = 0; turn < turns; ++turn) {
    const GivenQuery& query = queries[turn];
    const int index = next;
    if (turn + 1 < turns) next = index_at(a, queries[turn + 1], own);  // on its way meanwhile
    OneRow g;
    g.load(static_cast<const Value*>(a.grad_out) + query.grad);
    PartOfKey part = part_of_key(a, query, g, index);
    float mean = part.p * part.product;
    for (int first = 32; first < a.width; first += 32) {
      const PartOfKey other = part_of_key(a, query, g, index_at(a, query, first + own));
      mean += other.p * other.product;
    }
    mean = warp_sum(mean);
    Pull before;
    before.clear();
    if (a.prior) before = static_cast<const Pull*>(a.pulls)[query.at];
    mean += before.mean;
    float square = 0, point[DK] = {};
    for (int first = 0;;) {
      const float slope = part.slope * (mean - part.product);
      square += slope;
#pragma unroll
      for (int c = 0; c < DK; ++c) point[c] += slope * part.difference[c];
      first += 32;
      if (first >= a.width) break;
      part = part_of_key(a, query, g, index_at(a, query, first + own));
    }
    square = warp_sum(square);
#pragma unroll
    for (int c = 0; c < DK; ++c) point[c] = warp_sum(point[c]);
    if (lane() == 0) {
      static_cast<float*>(a.delta)[query.at] = mean;
      static_cast<float*>(a.squares)[query.at] = square + mean * before.square[1] - before.square[0];
      GivenRecord record = {};
#pragma unroll
      for (int c = 0; c < DK; ++c) {
        static_cast<Coordinate*>(a.grad_q)[query.at * DK + c] =
            2 * (point[c] + mean * before.point[1][c] - before.point[0][c]);
        record.x[c] = query.x[c];
      }
      record.inverse = query.inverse;
      record.delta = mean;
      static_cast<GivenRecord*>(a.records)[query.at] = record;
    }
  }
}
