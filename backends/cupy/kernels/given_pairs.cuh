// Pairs of a key and a query whose indices name it: those of one key follow one another, in the order of the queries. A
// key is head row << token_bits | token. A stable sort by the token alone is enough, because pairs come head by head:
// sorted they are in the order of (token, head row, query). A place that names nothing makes a pair too, of some key
// with no query.
//
// A warp sums up the pairs of a few keys, 32 at once. A key may be named by every query: where whole stretches of the
// pairs name one key, a warp each has summed them before. So every sum has a fixed order, no two warps write to one
// place, and no warp has more than a few stretches to do.
#pragma once
#include "given.cuh"

constexpr u32 STRETCH = 1024;           // pairs
constexpr int KEYS_OF_WARP = 8;         // neighbours in code order, where there is one

__device__ inline i64 count_keys(const Args& a) { return i64(a.batch) * a.kv_heads * a.k_len; }
__device__ inline i64 count_pairs(const Args& a) { return i64(a.batch) * a.q_heads * a.q_len * a.width; }

// The query that a pair holds by its `number` in the row, beside a key of `head_row`.
__device__ inline Query query_of_pair(const Args& a, int head_row, int number) {
  Query query = {};
  query.head_row = head_row;
  query.head = number < a.q_len ? 0 : number / a.q_len;
  query.token = number - query.head * a.q_len;
  query.at = i64(head_row) * group_size(a) * a.q_len + number;
  return query;
}

// The queries of 32 pairs by their numbers, for the lanes that add them.
struct PairReader {
  const int* numbers;
  u32 pairs;                            // of all keys
  u32 place;                            // the lane's among 32
  u32 ahead = ~0u;                      // the pairs that were fetched last
  int number = 0;

  __device__ PairReader(const Args& a, int place)
      : numbers(static_cast<const int*>(a.sorted_pair_queries)), pairs(u32(count_pairs(a))), place(place) {}
  __device__ void fetch(u32 pair) {
    ahead = pair;
    if (pair + place < pairs) number = numbers[pair + place];
  }
  // Those of the pairs from `pair` on, while those from `next` on are fetched.
  __device__ int read(u32 pair, u32 next) {
    if (ahead != pair) fetch(pair);
    const int found = number;
    fetch(next);
    return found;
  }
};

// Whether a whole stretch begins at a pair and ends before `end`, where its key's pairs do.
__device__ inline bool is_whole(u32 pair, u32 end) { return pair % STRETCH == 0 && pair + STRETCH <= end; }

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
  const i64 stretch = uniform_warp_of_grid(), from = stretch * STRETCH;
  if (from + STRETCH > count_pairs(a)) return;
  const u32* keys = static_cast<const u32*>(a.sorted_pair_keys);
  const u32 key = keys[from];
  if (keys[from + STRETCH - 1] != key) return;
  Sums sums(a, int(key >> a.token_bits), int(key & ((1u << a.token_bits) - 1)));
  PairReader reader(a, Sums::place());
  for (int first = 0; first < max(a.value_dim, 1); first += Sums::PANEL_COLUMNS) {
    sums.begin_panel(a, first);
    for (u32 pair = u32(from); pair < from + STRETCH; pair += 32) sums.add(a, reader.read(pair, pair + 32), 32, first);
    sums.store_stretch(a, stretch, first);
  }
  sums.finish_stretch(a, stretch);
}

// Sum up the warp's keys, those that nobody names too.
template <class Sums> __device__ inline void sum_keys(const Args& a) {
  const i64 begin = uniform_warp_of_grid() * KEYS_OF_WARP;
  const int keys = int(min(count_keys(a) - begin, i64(KEYS_OF_WARP)));
  int head_row = 0, token = 0, start = 0, stop = 0;  // of the lane's key
  if (lane() < keys) {
    const i64 key = begin + lane();
    head_row = int(key / a.k_len);
    token = a.key_order ? static_cast<const int*>(a.key_order)[key] : int(key - i64(head_row) * a.k_len);
    const int* starts = static_cast<const int*>(a.pair_starts) + token;
    start = starts[i64(head_row) * a.k_len];
    // Up to those of the same token on the next head, or of the next token on the first.
    if (head_row + 1 < a.batch * a.kv_heads) stop = starts[i64(head_row + 1) * a.k_len];
    else stop = token + 1 < a.k_len ? starts[1] : int(count_pairs(a));
  }
  PairReader reader(a, Sums::place());
  for (int n = 0; n < keys; ++n) {
    Sums sums(a, __shfl_sync(FULL, head_row, n), __shfl_sync(FULL, token, n));
    const u32 first_pair = __shfl_sync(FULL, start, n), last = __shfl_sync(FULL, stop, n);
    const u32 first_of_next = __shfl_sync(FULL, start, n + 1);
    for (int first = 0; first < max(a.value_dim, 1); first += Sums::PANEL_COLUMNS) {
      sums.begin_panel(a, first);
      for (u32 pair = first_pair; pair < last;) {
        if (is_whole(pair, last)) {
          sums.add_stretch(a, pair / STRETCH, first);
          pair += STRETCH;
          continue;
        }
        const u32 border = (pair / STRETCH + 1) * STRETCH;  // where a whole stretch may begin
        const u32 end = min(min(last, border), pair + 32);
        sums.add(a, reader.read(pair, end < last ? end : first_of_next), int(end - pair), first);
        pair = end;
      }
      sums.finish_panel(a, first);
    }
    sums.finish(a);
  }
}
