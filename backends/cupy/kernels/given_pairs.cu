// Which key each place in the indices names, as pairs (key, query) that are then sorted by key: the sort is stable, so
// that the queries that name a key follow one another in ascending order. One thread a place.
#include "given.cuh"

ZETA_KERNEL(given_pairs_kernel, 256) {
  const i64 place = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (place >= i64(a.batch) * a.q_heads * a.q_len * a.width) return;
  const int index = static_cast<const int*>(a.indices)[place];
  const int at = int(place) / a.width, queries = group_size(a) * a.q_len;  // places fit into an int
  const int head_row = at / queries;
  const i64 nothing = i64(a.batch) * a.kv_heads * a.k_len;                 // beyond all keys
  static_cast<u32*>(a.pair_keys)[place] = u32(names_key(a, index) ? i64(head_row) * a.k_len + index : nothing);
  static_cast<int*>(a.pair_queries)[place] = at - head_row * queries;
}

// Where each key's pairs begin, and where the last one's end. One thread a key and one more.
ZETA_KERNEL(given_starts_kernel, 256) {
  const i64 key = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (key > i64(a.batch) * a.kv_heads * a.k_len) return;
  const u32* keys = static_cast<const u32*>(a.sorted_pair_keys);
  int lo = 0, hi = a.batch * a.q_heads * a.q_len * a.width;
  while (lo < hi) {
    const int middle = lo + (hi - lo) / 2;
    if (keys[middle] < u32(key)) lo = middle + 1; else hi = middle;
  }
  static_cast<int*>(a.pair_starts)[key] = lo;
}
