// Which key each place in the indices names, as pairs (key, place) that are then sorted by key: the sort is stable, so that
// the places that name a key follow one another in ascending order. One thread a place.
#include "given.cuh"

ZETA_KERNEL(given_pairs_kernel, 256) {
  const i64 place = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (place >= i64(a.batch) * a.q_heads * a.q_len * a.width) return;
  const int index = static_cast<const int*>(a.indices)[place];
  const i64 head_row = query_with_number(a, int(place) / a.width).head_row;  // places fit into an int
  const i64 nothing = i64(a.batch) * a.kv_heads * a.k_len;                   // beyond all keys
  static_cast<u64*>(a.pair_keys)[place] = names_key(a, index) ? head_row * a.k_len + index : nothing;
  static_cast<int*>(a.pair_places)[place] = int(place);
}
