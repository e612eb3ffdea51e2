// Exact search: every visible key is a candidate. One warp a query; the eight warps of a block are neighbours and read
// the same keys. First the last of the nearest top_k by its digits, then the list of all up to it, in order of position.
#include "digits.cuh"

__device__ inline Coordinate distance_to_key(const Args& a, const Coordinate* x, i64 head_row, i64 token) {
  Coordinate key[DK];
  const Coordinate* from = key_point(a, head_row, token);
#pragma unroll
  for (int c = 0; c < DK; ++c) key[c] = from[c];
  return comparable(squared_distance(x, key));
}

ZETA_KERNEL(exact_kernel, 256) {
  __shared__ int all_counters[8][256];
  const i64 at = warp_of_grid();
  if (at >= i64(a.batch) * a.q_heads * a.q_len) return;
  int* counters = all_counters[threadIdx.x / 32];
  const int token = int(at % a.q_len), sequence = a.cu_seqlens ? sequence_of_token(a, token) : 0;
  const i64 head = at / a.q_len, head_row = head / group_size(a);
  const Sequence& s = sequences_of(a)[sequence];
  const Query query = query_of(a, head_row, sequence, int(head % group_size(a)) * s.queries + token - s.start);
  Coordinate x[DK];
#pragma unroll
  for (int c = 0; c < DK; ++c) x[c] = query_point(a, query)[c];
  const int visible = int(query.visible);
  Coordinate cut_distance = infinity();
  int cut_position = -1;
  if (visible > a.top_k) {
    Nearest nearest;
    nearest.wanted = a.top_k;
    for (int digit = 0; digit < DIGITS; ++digit) {
      for (int n = 0; n < 8; ++n) counters[lane() * 8 + n] = 0;
      __syncwarp();
      for (int position = lane(); position < visible; position += 32) {
        int next = 0;
        const u64 bits = distance_bits(distance_to_key(a, x, head_row, s.start + position));
        if (nearest.matches(digit, bits, age_of(position), next)) atomicAdd(&counters[next], 1);
      }
      __syncwarp();
      nearest.choose(digit, counters);
      __syncwarp();
    }
    cut_distance = distance_of(nearest.distance);
    cut_position = NO_KEY - int(nearest.recency);
  }
  int* row = static_cast<int*>(a.indices) + at * a.top_k;
  int count = 0;
  for (int first = 0; first < visible; first += 32) {
    const int position = first + lane();
    const bool kept = position < visible && before_cut(distance_to_key(a, x, head_row, s.start + position), position,
                                                       cut_distance, cut_position);
    const u32 vote = __ballot_sync(FULL, kept);
    if (kept) row[count + __popc(vote & ((1u << lane()) - 1))] = s.start + position;
    count += __popc(vote);
  }
  for (int place = count + lane(); place < a.top_k; place += 32) row[place] = -1;
}
