// What all parts of attention share: weights, and how parts of one query's attention become one.
//
// A query's attention is a sum over disjoint parts: the history token, the local window, the selection (or given keys).
// Forward, each part leaves its own mean of values in `out` and the sum of its weights in `normalizer`, merged with
// those of the parts before it (`prior`). Backward, each part adds to the query's `Pull`, which needs no D; the last
// part makes gradients of it. At the keys, each part adds to `sum_k` and `sum_v` (`carried`), and the last one writes
// gradients.
#pragma once
#include "selected.cuh"
#include "values.cuh"

// Rows that a warp loads together. They are loaded without a condition, an existing one instead of none: after a branch
// each would be waited for before the next one is asked for.
constexpr int ROWS_AHEAD = LANE_COLUMNS * sizeof(Sum) > 32 ? 4 : 8;

// Blocks of a multiprocessor, at least, for kernels that hold rows in registers. Left to itself, the compiler spills
// registers to make room for more.
constexpr int BLOCKS = sizeof(Sum) == 8 ? 1 : 2;

// Sum over each LANES neighbouring lanes, for all of them.
template <int LANES = 32, class T> __device__ inline T warp_sum(T value) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(FULL, value, offset);
  return value;
}

__device__ inline Coordinate warp_least(Coordinate value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const Coordinate other = __shfl_xor_sync(FULL, value, offset);
    value = other < value ? other : value;
  }
  return value;
}

// The query's head among all of its batch item.
__device__ inline int head_of(const Args& a, const Query& query) {
  return head_in_batch(a, query.head_row) * group_size(a) + query.head;
}

__device__ inline Sum squared_gamma(const Args& a, int head) {
  const Sum gamma = Sum(static_cast<const Coordinate*>(a.gamma)[head]);
  return gamma * gamma;
}

__device__ inline const Value* value_row(const Args& a, int head_row, i64 token) {
  return static_cast<const Value*>(a.v) + batch_of(a, head_row) * a.v_batch_stride +
         head_in_batch(a, head_row) * a.v_head_stride + token * a.v_stride;
}

__device__ inline const Value* grad_row(const Args& a, const Query& query) {
  return static_cast<const Value*>(a.grad_out) + batch_of(a, query.head_row) * a.g_batch_stride +
         head_of(a, query) * a.g_head_stride + query.token * a.g_stride;
}

// Weights of one query's keys, relative to that of the nearest of them, so that they are between 0 and 1 whatever the
// distances are; or to that of a near one, where `Slot` says so.
struct Weights {
  Sum square;                           // gamma^2
  Sum inverse;                          // 1 / (nearest + gamma^2)

  __device__ Weights(Sum squared_gamma, Sum nearest) : square(squared_gamma) {
    const Sum denominator = nearest + square;
    inverse = denominator < infinity() ? 1 / denominator : infinity();
  }
  __device__ Sum relative(Sum distance) const { return 1 / ((distance + square) * inverse); }
  // The sum of weights, of the sum of relative ones.
  __device__ Sum absolute(Sum total) const { return total == 0 ? 0 : total * inverse; }
};

// Write one part of a query's forward pass: `mean` is a panel of its mean value, `weight` the sum of its weights.
// Merges with the parts before. `first` is the panel's first column; the normalizer is written with the last panel.
__device__ inline void write_part(const Args& a, i64 at, Columns mean, Sum weight, int first) {
  Value* out = static_cast<Value*>(a.out) + at * a.value_dim;
  Sum* normalizer = static_cast<Sum*>(a.normalizer) + at;
  if (a.prior) {
    const Sum before = *normalizer, all = before + weight;
    Columns mean_before;
    mean_before.load(out, first, a.value_dim);
    mean.scale(all == 0 ? 0 : weight / all);
    mean.add(mean_before, all == 0 ? 0 : before / all);
    weight = all;
  }
  mean.store(out, first, a.value_dim);
  __syncwarp();                         // all lanes have read the normalizer
  if (lane() == 0 && first + PANEL >= a.value_dim) *normalizer = weight;
}

// What a query's keys pull at it, with p = u / Z. The gradients follow when D, the sum of p (g . v) over all parts, is
// known: e = -u p (g . v - D), grad_q = 2 sum e (q - k), and that of gamma^2 is sum e.
struct Pull {
  Sum mean;                             // sum of p (g . v): D in the end
  Sum square[2];                        // sums of u p (g . v) and of u p
  Sum point[2][DK];                     // sums of u p (g . v) (q - k) and of u p (q - k)

  __device__ void clear() { *this = Pull{}; }

  // Add a key, or a panel of its product with g; only the first panel counts what has no product in it.
  __device__ void add(Sum u, Sum p, Sum product, const Sum* difference, bool first_panel) {
    const Sum strong = u * p * product, plain = first_panel ? u * p : 0;
    mean += p * product;
    square[0] += strong;
    square[1] += plain;
#pragma unroll
    for (int c = 0; c < DK; ++c) {
      point[0][c] += strong * difference[c];
      point[1][c] += plain * difference[c];
    }
  }
  // Sum over lanes, for all of them: LANES neighbours.
  template <int LANES = 32> __device__ void reduce() {
    mean = warp_sum<LANES>(mean);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      square[n] = warp_sum<LANES>(square[n]);
#pragma unroll
      for (int c = 0; c < DK; ++c) point[n][c] = warp_sum<LANES>(point[n][c]);
    }
  }
  __device__ void add(const Pull& other) {
    mean += other.mean;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      square[n] += other.square[n];
#pragma unroll
      for (int c = 0; c < DK; ++c) point[n][c] += other.point[n][c];
    }
  }
};

// One lane writes a part of a query's gradients: parts before the last are left in `pulls`.
__device__ inline void write_pull(const Args& a, i64 at, const Pull& part) {
  Pull* pull = static_cast<Pull*>(a.pulls) + at;
  if (a.prior) pull->add(part); else *pull = part;
}

// One lane completes a query's gradients with the last part.
__device__ inline void write_query_gradients(const Args& a, i64 at, Pull part) {
  if (a.prior) part.add(static_cast<const Pull*>(a.pulls)[at]);
  static_cast<Sum*>(a.delta)[at] = part.mean;
  static_cast<Sum*>(a.squares)[at] = part.mean * part.square[1] - part.square[0];
  Coordinate* grad_q = static_cast<Coordinate*>(a.grad_q) + at * DK;
#pragma unroll
  for (int c = 0; c < DK; ++c) grad_q[c] = Coordinate(2 * (part.mean * part.point[1][c] - part.point[0][c]));
}

// 1 / Z of a query; 0 where nothing has weight, so that nothing gets a gradient.
__device__ inline Sum inverse_normalizer(const Args& a, i64 at) {
  const Sum normalizer = static_cast<const Sum*>(a.normalizer)[at];
  return normalizer == 0 ? 0 : 1 / normalizer;
}

// Where an entry above level 0 leaves what it adds to its key: each has a row of its own, so that levels do not wait
// for one another; level 0 adds them up in order.
__device__ inline i64 level_row(const Args& a, i64 head_row, const Sequence& s, int level, int position) {
  return head_row * a.upper_entries + s.upper + s.level_entry[level] - s.level_entry[1] + position;
}
