// The history token, backward, at the queries: the walk of the forward pass with a product of each query's grad_out and
// its sum, then gradients of 32 queries at once. The first part of every query's gradients.
#include "history.cuh"

// Sums over a warp of ROWS_AHEAD numbers of each lane: lane l gets that of number l / 4.
__device__ inline Sum sums_of_ahead(Sum* numbers) {
#pragma unroll
  for (int count = ROWS_AHEAD / 2, offset = 16; count > 0; count /= 2, offset /= 2) {
    const bool upper = lane() & offset;
#pragma unroll
    for (int n = 0; n < count; ++n) {
      const Sum given = upper ? numbers[n] : numbers[n + count], kept = upper ? numbers[n + count] : numbers[n];
      numbers[n] = kept + __shfl_xor_sync(FULL, given, offset);
    }
  }
  return warp_sum<32 / ROWS_AHEAD>(numbers[0]);
}

// Write what each of `count` lanes holds to consecutive places: through shared memory, so that the warp writes whole
// lines. All lanes together.
template <class T> __device__ inline void write_together(T* to, const T& mine, int count, T* shared) {
  constexpr int SUMS = sizeof(T) / sizeof(Sum);
  shared[lane()] = mine;
  __syncwarp();
  for (int n = lane(); n < count * SUMS; n += 32)
    reinterpret_cast<Sum*>(to)[n] = reinterpret_cast<const Sum*>(shared)[n];
  __syncwarp();
}

ZETA_KERNEL(history_bwd_queries_kernel, 32 * HISTORY_WARPS) {
  __shared__ Sum products_of_warps[HISTORY_WARPS][CHUNK];
  __shared__ Pull pulls_of_warps[HISTORY_WARPS][32];
  __shared__ Term terms_of_warps[HISTORY_WARPS][32];
  int all_heads;
  Chunk chunk;
  if (!history_chunk<&Sequence::queries>(a, a.q_heads, all_heads, chunk)) return;
  const int warp = threadIdx.x / 32;
  Sum* products = products_of_warps[warp];
  const int head_row = all_heads / group_size(a), head = all_heads % group_size(a);
  const Sequence& s = sequences_of(a)[chunk.sequence];
  const Value* grad_rows = grad_row(a, query_of(a, head_row, chunk.sequence, head * s.queries));
  for (int n = lane(); n < CHUNK; n += 32) products[n] = 0;
  __syncwarp();
  for (int first = 0; first < a.value_dim; first += PANEL) {
    HistoryRows walk(a, head_row, chunk, first);
    Columns grads[ROWS_AHEAD];
    Sum parts[ROWS_AHEAD];
    walk.visit(
        chunk, [&](int n, int i) { grads[n].load(grad_rows + i * a.g_stride, first, a.value_dim); },
        [&](int n, int i) {
          parts[n] = grads[n].dot(walk.sums);
          if (n < ROWS_AHEAD - 1) return;
          const Sum sum = sums_of_ahead(parts);
          const int number = lane() / (32 / ROWS_AHEAD);
          if (lane() % (32 / ROWS_AHEAD) == 0) products[i - n - chunk.first + number] += sum;
        });
  }
  __syncwarp();
  HistoryPoints keys(a, head_row, chunk);
  for (int block = chunk.first; block < chunk.stop; block += 32) {
    const int i = min(block + lane(), chunk.stop - 1), past = past_of(a, s, i);
    double centre[DK];
    keys.next(a, head_row, s.start, past, centre);
    const Query query = query_of(a, head_row, chunk.sequence, head * s.queries + i);
    const Coordinate* x = query_point(a, query);
    const Sum u = token_weight(a, query, past, centre), p = u * inverse_normalizer(a, query.at);
    Term term = {};
    Pull pull = {};
    if (p != 0) {
      Sum difference[DK];
#pragma unroll
      for (int c = 0; c < DK; ++c) difference[c] = Sum(x[c]) - Sum(centre[c]);
      term.share = p / past;
      term.product = products[i - chunk.first] / past;
#pragma unroll
      for (int c = 0; c < DK; ++c) term.pull[c] = 2 * u * term.share * difference[c];
      pull.add(u, p, term.product, difference, true);
    }
    const i64 at = (i64(all_heads) * a.q_len + s.start) + block;
    const int count = min(32, chunk.stop - block);
    write_together(static_cast<Pull*>(a.pulls) + at, pull, count, pulls_of_warps[warp]);
    write_together(static_cast<Term*>(a.history_terms) + at, term, count, terms_of_warps[warp]);
  }
}
