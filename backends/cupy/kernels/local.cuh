// The local window as a part of attention: query i at position p attends to the positions p - local_window + 1 .. p
// that exist. Here: one query by a whole warp, whatever the values are; its lanes weigh 32 keys at once, then all of
// them add up the values of each.
#pragma once
#include "attention.cuh"

// The positions [first, stop) of its sequence that query i attends to.
struct Window {
  int first, stop;

  __device__ Window() : first(0), stop(0) {}
  __device__ Window(const Args& a, const Sequence& s, i64 i) {
    const i64 position = a.q_offset + i;
    first = int(min(max(position + 1 - a.local_window, i64(0)), i64(s.keys)));
    stop = int(min(max(position + 1, i64(first)), i64(s.keys)));
  }
  __device__ bool holds(int position) const { return u32(position - first) < u32(stop - first); }
};

// The queries [first, stop) of a head that attend to some of the positions [first_key, stop_key).
struct Attending {
  int first, stop;

  __device__ Attending(const Args& a, const Sequence& s, i64 first_key, i64 stop_key) {
    first = int(min(max(first_key - a.q_offset, i64(0)), i64(s.queries)));
    stop = int(min(max(stop_key - 1 - a.q_offset + a.local_window, i64(first)), i64(s.queries)));
  }
};

// A query and its window; the same in all lanes of a warp.
struct LocalQuery {
  Query query;
  Coordinate x[DK];
  Window window;
  int start;                            // of the sequence along N

  __device__ LocalQuery(const Args& a, i64 at) : query(query_numbered(a, at)) {
    const Sequence& s = sequences_of(a)[query.sequence];
    start = s.start;
    window = Window(a, s, query.token - start);
    const Coordinate* point = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = point[c];
  }
  // Visit the keys, 32 at a time: all lanes call `f(position, key, distance, exists)` together.
  template <class F> __device__ void visit(const Args& a, F f) const {
    for (int block = window.first; block < window.stop; block += 32) {
      const int position = block + lane();
      const bool exists = position < window.stop;
      const Coordinate* key = key_point(a, query.head_row, start + (exists ? position : window.first));
      f(position, key, comparable(squared_distance(x, key)), exists);
    }
  }
};

__device__ __noinline__ void attend_locally(const Args& a, i64 at) {
  const LocalQuery local(a, at);
  Coordinate nearest = infinity();
  local.visit(a, [&](int, const Coordinate*, Coordinate distance, bool exists) {
    if (exists && distance < nearest) nearest = distance;
  });
  const Weights weights(squared_gamma(a, head_of(a, local.query)), Sum(warp_least(nearest)));
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Columns sums;
    sums.clear();
    Sum total = 0;
    local.visit(a, [&](int position, const Coordinate*, Coordinate distance, bool exists) {
      const Sum weight = exists ? weights.relative(Sum(distance)) : Sum(0);
      total += weight;
      for (u32 left = __ballot_sync(FULL, exists); left; left &= left - 1) {
        const int owner = __ffs(int(left)) - 1;
        Columns values;
        values.load(value_row(a, local.query.head_row, local.start + __shfl_sync(FULL, position, owner)), first,
                    a.value_dim);
        sums.add(values, __shfl_sync(FULL, weight, owner));
      }
    });
    total = warp_sum(total);
    if (total == 0) sums.clear(); else sums.scale(1 / total);
    write_part(a, at, sums, weights.absolute(total), first);
  }
}
