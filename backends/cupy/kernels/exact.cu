// Exact search: every visible key is a candidate. One warp a query; the eight warps of a block are neighbours and read
// the same keys. First the last of the nearest top_k by its digits, then the list of all up to it, in order of
// position.
#include "digits.cuh"

__device__ inline Coordinate distance_to_key(const Args& a, const Coordinate* x, i64 head_row, i64 token) {
  Coordinate key[DK];
  const Coordinate* from = key_point(a, head_row, token);
#pragma unroll
  for (int c = 0; c < DK; ++c) key[c] = from[c];
  return comparable(squared_distance(x, key));
}

ZETA_KERNEL(exact_kernel, 256) {
  __shared__ int counters[8][256];
  const i64 at = warp_of_grid();
  if (at >= i64(a.batch) * a.q_heads * a.q_len) return;
  const Query query = query_numbered(a, at);
  const Sequence& s = sequences_of(a)[query.sequence];
  const i64 head_row = query.head_row;
  Coordinate x[DK];
#pragma unroll
  for (int c = 0; c < DK; ++c) x[c] = query_point(a, query)[c];
  const int visible = int(query.visible);
  const Cut cut = cut_after(a.top_k, counters[threadIdx.x / 32], [&](auto offer) {
    for (int position = lane(); position < visible; position += 32)
      offer(distance_to_key(a, x, head_row, s.start + position), position);
  });
  int* row = static_cast<int*>(a.indices) + at * a.top_k;
  int count = 0;
  for (int first = 0; first < visible; first += 32) {
    const int position = first + lane();
    const bool kept = position < visible && before_cut(distance_to_key(a, x, head_row, s.start + position), position,
                                                       cut.distance, cut.position);
    const u32 vote = __ballot_sync(FULL, kept);
    if (kept) row[count + below_lane(vote)] = s.start + position;
    count += __popc(vote);
  }
  for (int place = count + lane(); place < a.top_k; place += 32) row[place] = -1;
}
