// Which key each place in the indices names, as pairs (key, query) that are then sorted by key: the sort is stable, so
// that the queries that name a key follow one another in ascending order. One thread takes four places.
#include "given.cuh"

struct alignas(16) Four { int x[4]; };

ZETA_KERNEL(given_pairs_kernel, 256) {
  const i64 places = i64(a.batch) * a.q_heads * a.q_len * a.width;  // they fit into an int
  const i64 first = 4 * (i64(blockIdx.x) * blockDim.x + threadIdx.x);
  if (first >= places) return;
  const int queries = group_size(a) * a.q_len, count = int(min(places - first, i64(4)));
  const u32 nothing = u32(i64(a.batch) * a.kv_heads * a.k_len);     // beyond all keys
  const int* indices = static_cast<const int*>(a.indices) + first;
  int at = int(first) / a.width, place = int(first) - at * a.width, head_row = at / queries;
  int number = at - head_row * queries; // of the query in its row
  Four index = {}, keys, numbers;
  if (count == 4 && reinterpret_cast<u64>(indices) % 16 == 0) index = *reinterpret_cast<const Four*>(indices);
  else for (int n = 0; n < count; ++n) index.x[n] = indices[n];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    keys.x[n] = int(names_key(a, index.x[n]) ? u32(i64(head_row) * a.k_len + index.x[n]) : nothing);
    numbers.x[n] = number;
    if (++place == a.width) place = 0, ++number;
    if (number == queries) number = 0, ++head_row;
  }
  int* to_keys = static_cast<int*>(a.pair_keys) + first;
  int* to_numbers = static_cast<int*>(a.pair_queries) + first;
  if (count == 4) {
    *reinterpret_cast<Four*>(to_keys) = keys;
    *reinterpret_cast<Four*>(to_numbers) = numbers;
  } else {
    for (int n = 0; n < count; ++n) to_keys[n] = keys.x[n], to_numbers[n] = numbers.x[n];
  }
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
