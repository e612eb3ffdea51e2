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
  const Coordinate* keys;               // of the sequence
  const Value* values;

  __device__ LocalQuery(const Args& a, i64 at) : query(query_numbered(a, at)) {
    const Sequence& s = sequences_of(a)[query.sequence];
    keys = key_point(a, query.head_row, s.start);
    values = value_row(a, query.head_row, s.start);
    window = Window(a, s, query.token - s.start);
    const Coordinate* point = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = point[c];
  }
  // Visit the keys, a block of 32 at a time: all lanes call `f(block, key, distance, exists)` together.
  template <class F> __device__ void visit(const Args& a, F f) const {
    for (int block = window.first; block < window.stop; block += 32) {
      const int position = block + lane();
      const bool exists = position < window.stop;
      const Coordinate* key = keys + i64(exists ? position : window.first) * a.k_stride;
      f(block, key, comparable(squared_distance(x, key)), exists);
    }
  }
  // Visit a panel of the values of the keys of a block: `f(n, values)` with the number in the block.
  template <class F> __device__ void visit_values(const Args& a, int block, int first_column, F f) const {
    const int count = min(32, window.stop - block);
    for (int n = 0; n < count; n += ROWS_AHEAD) {
      Columns ahead[ROWS_AHEAD];
#pragma unroll
      for (int m = 0; m < ROWS_AHEAD; ++m)
        ahead[m].load(values + i64(block + min(n + m, count - 1)) * a.v_stride, first_column, a.value_dim);
#pragma unroll
      for (int m = 0; m < ROWS_AHEAD; ++m) if (n + m < count) f(n + m, ahead[m]);
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
    local.visit(a, [&](int block, const Coordinate*, Coordinate distance, bool exists) {
      const Sum weight = exists ? weights.relative(Sum(distance)) : Sum(0);
      total += weight;
      local.visit_values(a, block, first, [&](int n, const Columns& values) {
        sums.add(values, __shfl_sync(FULL, weight, n));
      });
    });
    total = warp_sum(total);
    if (total == 0) sums.clear(); else sums.scale(1 / total);
    write_part(a, at, sums, weights.absolute(total), first);
  }
}
