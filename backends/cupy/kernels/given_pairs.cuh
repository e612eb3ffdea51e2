// Pairs of a key and a query whose indices name it, sorted by key: those of one key follow one another, in the order of
// the queries. A warp sums up those of a few keys, 32 pairs at once. A key may be named by every query: where whole
// stretches of the pairs name one key, a warp each has summed them before. So every sum has a fixed order, no two warps
// write to one place, and no warp has more than a few stretches to do.
#pragma once
#include "given.cuh"

constexpr int STRETCH = 1024;           // pairs
constexpr int KEYS_OF_WARP = 8;

__device__ inline const u32* keys_of_pairs(const Args& a) { return static_cast<const u32*>(a.sorted_pair_keys); }
__device__ inline i64 count_keys(const Args& a) { return i64(a.batch) * a.kv_heads * a.k_len; }
__device__ inline i64 count_pairs(const Args& a) { return i64(a.batch) * a.q_heads * a.q_len * a.width; }

// The query of a pair that names a key of `head_row`.
__device__ inline Query query_of_pair(const Args& a, int head_row, i64 pair) {
  const int number = static_cast<const int*>(a.sorted_pair_queries)[pair];
  Query query = {};
  query.head_row = head_row;
  query.head = number < a.q_len ? 0 : number / a.q_len;
  query.token = number - query.head * a.q_len;
  query.at = i64(head_row) * group_size(a) * a.q_len + number;
  return query;
}

// The first of all pairs whose key is not less than `key`; all lanes together, 32 probes a step.
__device__ inline i64 first_not_below(const Args& a, u32 key) {
  const u32* keys = keys_of_pairs(a);
  i64 lo = 0, hi = count_pairs(a);      // all before `lo` are less, none from `hi` on
  while (lo < hi) {
    const i64 step = (hi - lo + 31) / 32, probe = lo + (lane() + 1) * step - 1;
    const int below = __popc(__ballot_sync(FULL, probe < hi && keys[probe] < key));
    const i64 next = lo + below * step;
    hi = min(hi, next + step - 1);
    lo = min(hi, next);
  }
  return lo;
}

// Whether a whole stretch begins at a pair and names `key` alone.
__device__ inline bool is_whole(const Args& a, i64 pair, u32 key) {
  const u32* keys = keys_of_pairs(a);
  return pair % STRETCH == 0 && pair + STRETCH <= count_pairs(a) && keys[pair] == key &&
         keys[pair + STRETCH - 1] == key;
}

// The gradient of a key: what lanes have summed, and what stretches hold.
__device__ inline void add_stretch_of_key(const Args& a, i64 stretch, Sum* grad_k) {
  if (lane() >= DK) return;
  const Sum part = static_cast<const Sum*>(a.stretch_k)[stretch * DK + lane()];
#pragma unroll
  for (int c = 0; c < DK; ++c) grad_k[c] += c == lane() ? part : Sum(0);
}

__device__ inline void store_stretch_of_key(const Args& a, i64 stretch, const Sum* grad_k) {
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    const Sum sum = warp_sum(grad_k[c]);
    if (lane() == 0) static_cast<Sum*>(a.stretch_k)[stretch * DK + c] = sum;
  }
}

__device__ inline void write_key_gradient(const Args& a, i64 key, const Sum* grad_k) {
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    Sum sum = warp_sum(grad_k[c]);
    if (lane() != 0) continue;
    if (a.carried) sum += static_cast<const Sum*>(a.sum_k)[key * DK + c];
    static_cast<Coordinate*>(a.grad_k)[key * DK + c] = Coordinate(sum);
  }
}

// `Sums` are those of one key, a panel of its values after the other: `Sums::PANEL_COLUMNS` from column `first` on.

// Sum up the warp's stretch, if it names one key alone.
template <class Sums> __device__ inline void sum_stretch(const Args& a) {
  const i64 stretch = warp_of_grid(), from = stretch * STRETCH;
  if (from + STRETCH > count_pairs(a)) return;
  const u32 key = keys_of_pairs(a)[from];
  if (key == count_keys(a) || !is_whole(a, from, key)) return;
  Sums sums(a, key);
  for (int first = 0; first < max(a.value_dim, 1); first += Sums::PANEL_COLUMNS) {
    sums.begin_panel(a, first);
    for (int pairs = 0; pairs < STRETCH; pairs += 32) sums.add(a, from + pairs, 32, first);
    sums.store_stretch(a, stretch, first);
  }
  sums.finish_stretch(a, stretch);
}

// Sum up the warp's keys, those that nobody names too.
template <class Sums> __device__ inline void sum_keys(const Args& a) {
  const i64 keys = count_keys(a), begin = warp_of_grid() * KEYS_OF_WARP, end = min(begin + KEYS_OF_WARP, keys);
  if (begin >= keys) return;
  i64 start = first_not_below(a, u32(begin));
  for (i64 key = begin; key < end; ++key) {
    Sums sums(a, u32(key));
    i64 pair = start;
    for (int first = 0; first < max(a.value_dim, 1); first += Sums::PANEL_COLUMNS) {
      sums.begin_panel(a, first);
      pair = start;
      for (int most = 0, named = 0; named == most; pair += named) {
        if (is_whole(a, pair, u32(key))) {
          sums.add_stretch(a, pair / STRETCH, first);
          named = most = STRETCH;
          continue;
        }
        // Up to the next stretch: it may be whole.
        most = int(min(min(count_pairs(a), (pair / STRETCH + 1) * STRETCH) - pair, i64(32)));
        if (most == 0) break;
        named = sums.add(a, pair, most, first);
      }
      sums.finish_panel(a, first);
    }
    sums.finish(a);
    start = pair;
  }
}
