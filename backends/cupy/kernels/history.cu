// The history token, forward: a warp walks over 128 queries of a head. It is the first part of every query's attention,
// with nothing to merge with. At 65 536 tokens, 16 heads and 64 columns of 16 bits the values are read and the means
// written once: 0.27 GB, a floor of 0.06 ms.
#include "history.cuh"

ZETA_KERNEL(history_fwd_kernel, 32 * HISTORY_WARPS) {
  __shared__ Sum factors_of_warps[HISTORY_WARPS][CHUNK];
  int all_heads;
  Chunk chunk;
  if (!history_chunk<&Sequence::queries>(a, a.q_heads, all_heads, chunk)) return;
  Sum* factors = factors_of_warps[threadIdx.x / 32];
  const int head_row = all_heads / group_size(a), head = all_heads % group_size(a);
  const Sequence& s = sequences_of(a)[chunk.sequence];
  HistoryPoints keys(a, head_row, chunk);
  for (int block = chunk.first; block < chunk.stop; block += 32) {
    const int i = min(block + lane(), chunk.stop - 1), past = past_of(a, s, i);
    double centre[DK];
    keys.next(a, head_row, s.start, past, centre);
    if (block + lane() >= chunk.stop) continue;
    const Query query = query_of(a, head_row, chunk.sequence, head * s.queries + i);
    const Sum weight = token_weight(a, query, past, centre);
    static_cast<Sum*>(a.normalizer)[query.at] = weight;
    factors[i - chunk.first] = weight == 0 ? Sum(0) : Sum(1) / past;
  }
  __syncwarp();
  Value* out = static_cast<Value*>(a.out) + (i64(all_heads) * a.q_len + s.start) * a.value_dim;
  for (int first = 0; first < a.value_dim; first += PANEL) {
    HistoryRows walk(a, head_row, chunk, first);
    walk.visit(chunk, [](int, int) {}, [&](int, int i) {
      if (i >= chunk.stop) return;
      const Sum factor = factors[i - chunk.first];
      Columns mean = walk.sums;
      if (factor == 0) mean.clear(); else mean.scale(factor);
      mean.store(out + i64(i) * a.value_dim, first, a.value_dim);
    });
  }
}
