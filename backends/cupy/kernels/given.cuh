// A query with the keys that its row of indices names. Indices count along N; one outside of [0, k_len) names nothing,
// one that stands there twice counts twice. Neither sequences nor what a query sees play a part here: the list has
// seen to them.
#pragma once
#include "attention.cuh"

// A query by its number among all (batch, q_heads, q_len).
__device__ inline Query query_with_number(const Args& a, i64 at) {
  const i64 head = at / a.q_len;        // over all batch items
  Query query = {};
  query.head_row = int(head / group_size(a));
  query.head = int(head % group_size(a));
  query.token = int(at % a.q_len);
  query.at = at;
  return query;
}

__device__ inline bool names_key(const Args& a, int index) { return index >= 0 && index < a.k_len; }

// The same in all lanes of a warp.
struct Given {
  Query query;
  Coordinate x[DK];
  const int* indices;                   // of the query

  __device__ Given(const Args& a, i64 at) : query(query_with_number(a, at)) {
    const Coordinate* from = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = from[c];
    indices = static_cast<const int*>(a.indices) + at * a.width;
  }

  // Visit the keys, 32 places at a time: all lanes call `f(index, key, distance, named)` together.
  template <class F> __device__ void visit(const Args& a, F f) const {
    for (i64 first = 0; first < a.width; first += 32) {
      const i64 place = first + lane();
      const int index = place < a.width ? indices[place] : -1;
      const bool named = names_key(a, index);
      Coordinate key[DK] = {}, distance = 0;
      if (named) {
        const Coordinate* from = key_point(a, query.head_row, index);
#pragma unroll
        for (int c = 0; c < DK; ++c) key[c] = from[c];
        distance = comparable(squared_distance(x, key));
      }
      f(index, key, distance, named);
    }
  }
};
