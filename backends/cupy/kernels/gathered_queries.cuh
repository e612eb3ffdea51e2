// Queries with lists of keys: a warp takes a few, one after another, in the order of slots where there is one, so that
// neighbours read the same rows. They are looked up together.
#pragma once
#include "gathered.cuh"

// What is looked up of a query.
struct GivenQuery {
  float x[DK];
  float square;                         // gamma^2
  float inverse;                        // 1 / Z, for the backward pass
  i64 at;
  i64 values;                           // where the values of its key head begin, from `a.v`
  i64 keys;                             // and its keys, from `a.k`
  i64 grad;                             // its row, from `a.grad_out`, likewise
};

__device__ inline int look_up(const Args& a, GivenQuery* queries) {
  const i64 first = uniform_warp_of_grid() * GATHERING_TURNS, all = i64(a.batch) * a.q_heads * a.q_len;
  if (lane() < GATHERING_TURNS && first + lane() < all) {
    const Query query = a.query_order ? query_in_slot(a, first + lane()) : query_with_number(a, first + lane());
    GivenQuery& given = queries[lane()];
    const Coordinate* x = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) given.x[c] = x[c];
    given.square = squared_gamma(a, head_of(a, query));
    given.at = query.at;
    given.values = value_row(a, query.head_row, 0) - static_cast<const Value*>(a.v);
    given.keys = key_point(a, query.head_row, 0) - static_cast<const Coordinate*>(a.k);
    if (a.grad_out) {
      given.inverse = inverse_normalizer(a, query.at);
      given.grad = grad_row(a, query) - static_cast<const Value*>(a.grad_out);
    }
  }
  __syncwarp();
  return int(min(max(all - first, i64(0)), i64(GATHERING_TURNS)));
}

__device__ inline int index_at(const Args& a, const GivenQuery& query, int place) {
  return place < a.width ? static_cast<const int*>(a.indices)[query.at * a.width + place] : -1;
}

__device__ inline void load_key(const Args& a, const GivenQuery& query, int index, float* key) {
  const Coordinate* from = static_cast<const Coordinate*>(a.k) + query.keys + i64(index) * a.k_stride;
#pragma unroll
  for (int c = 0; c < DK; ++c) key[c] = from[c];
}
