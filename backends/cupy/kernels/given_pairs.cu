// Which key each place in the indices names, as pairs that are then sorted. One thread takes four places.
#include "given_pairs.cuh"

struct alignas(16) Four { int x[4]; };

ZETA_KERNEL(given_pairs_kernel, 256) {
  const i64 places = count_pairs(a);    // they fit into an int
  const i64 first = 4 * (i64(blockIdx.x) * blockDim.x + threadIdx.x);
  if (first >= places) return;
  const int queries = group_size(a) * a.q_len, count = int(min(places - first, i64(4)));
  const int* indices = static_cast<const int*>(a.indices) + first;
  int at = int(first) / a.width, place = int(first) - at * a.width, head_row = at / queries;
  int number = at - head_row * queries; // of the query in its row
  Four index = {}, keys, numbers;
  if (count == 4 && reinterpret_cast<u64>(indices) % 16 == 0) index = *reinterpret_cast<const Four*>(indices);
  else for (int n = 0; n < count; ++n) index.x[n] = indices[n];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const bool named = names_key(a, index.x[n]);
    const int token = named ? index.x[n] : (int(first) + n) % a.k_len;  // as many for one key as for another
    keys.x[n] = int(u32(head_row) << a.token_bits | u32(token));
    numbers.x[n] = named ? number : -1;
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

// A pair's key such that numbers have the order of the sorted pairs: the token above the head row.
__device__ inline u32 token_first(const Args& a, u32 key) { return key >> a.token_bits | key << (32 - a.token_bits); }

// Where each key's pairs begin. One thread a key.
ZETA_KERNEL(given_starts_kernel, 256) {
  const i64 key = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (key >= count_keys(a)) return;
  const u32 head_row = u32(key / a.k_len), token = u32(key - i64(head_row) * a.k_len);
  const u32 own = token_first(a, head_row << a.token_bits | token);
  const u32* keys = static_cast<const u32*>(a.sorted_pair_keys);
  int lo = 0, hi = int(count_pairs(a));
  while (lo < hi) {
    const int middle = lo + (hi - lo) / 2;
    if (token_first(a, keys[middle]) < own) lo = middle + 1; else hi = middle;
  }
  static_cast<int*>(a.pair_starts)[key] = lo;
}
