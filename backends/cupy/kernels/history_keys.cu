// The history token, backward, at the keys: what the queries hand on to all keys of their means. Sums over chunks of
// queries of all heads that read a key head, a scan from the end, and a walk of one warp over 128 keys.
#include "history.cuh"

// What a query hands on to each key of its mean: a share of its row of grad_out, and a pull at the key.
struct Handed {
  Sum share;
  double pull[DK];

  __device__ void clear() { *this = Handed{}; }
  __device__ void load(const Args& a, i64 at) {
    const Term& term = static_cast<const Term*>(a.history_terms)[at];
    share = term.share;
    const Sum slope = term.product - static_cast<const Sum*>(a.delta)[at];
#pragma unroll
    for (int c = 0; c < DK; ++c) pull[c] = share == 0 ? 0.0 : double(term.pull[c] * slope);
  }
};

// Sums of what queries have handed on; points are the same in all lanes.
struct HandedSums {
  const Args& a;
  int head_row;
  const Sequence& s;
  int first_column;
  double points[DK];
  Columns rows;

  __device__ HandedSums(const Args& args, int head_row, int sequence, int first_column)
      : a(args), head_row(head_row), s(sequences_of(args)[sequence]), first_column(first_column) {
#pragma unroll
    for (int c = 0; c < DK; ++c) points[c] = 0;
    rows.clear();
  }
  __device__ i64 at(int head, int i) const {
    return (i64(head_row) * group_size(a) + head) * a.q_len + s.start + i;
  }
  __device__ const Value* grad_rows(int head) const {
    return static_cast<const Value*>(a.grad_out) + head_row / a.kv_heads * a.g_batch_stride +
           (head_row % a.kv_heads * group_size(a) + head) * a.g_head_stride + s.start * a.g_stride;
  }
  // Add what queries [from, to) of all heads hand on, from the last one to the first.
  __device__ void add(int from, int to) {
    for (int head = 0; head < group_size(a); ++head) {
      const Value* grads = grad_rows(head);
      for (int block = to - 1; block >= from; block -= 32) {
        Handed handed;
        handed.clear();
        if (block - lane() >= from) handed.load(a, at(head, block - lane()));
#pragma unroll
        for (int c = 0; c < DK; ++c) points[c] += warp_sum(handed.pull[c]);
        const int count = min(32, block + 1 - from);
        for (int n = 0; n < count; n += ROWS_AHEAD) {
          Columns ahead[ROWS_AHEAD];
          Sum shares[ROWS_AHEAD];
#pragma unroll
          for (int m = 0; m < ROWS_AHEAD; ++m) {
            shares[m] = __shfl_sync(FULL, handed.share, n + m);
            ahead[m].load(grads + max(block - n - m, from) * a.g_stride, first_column, a.value_dim);
          }
#pragma unroll
          for (int m = 0; m < ROWS_AHEAD; ++m) if (shares[m] != 0) rows.add(ahead[m], shares[m]);
        }
      }
    }
  }
};

ZETA_KERNEL(history_handed_sums_kernel, 32 * HISTORY_WARPS) {
  int head_row;
  Chunk chunk;
  if (!history_chunk<&Sequence::queries>(a, a.kv_heads, head_row, chunk)) return;
  const Sequence& s = sequences_of(a)[chunk.sequence];
  double* sums = chunk_sums(a, head_row, s, chunk.sequence, chunk.first);
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    HandedSums handed(a, head_row, chunk.sequence, first);
    handed.add(chunk.first, chunk.stop);
    handed.rows.store_double(sums + DK, first, a.value_dim);
#pragma unroll
    for (int c = 0; c < DK; ++c) if (first == 0 && lane() == 0) sums[c] = handed.points[c];
  }
}

// From the last key of a chunk to the first, each gets the sums so far: a key adds what the queries hand on of which it
// is the latest, at most one of each head. Pairs of a key and a head, one a lane, then their rows one after another.
__device__ inline void walk_over_keys(const Args& a, const Chunk& chunk, HandedSums& handed) {
  const Sequence& s = handed.s;
  const int group = group_size(a), pairs = (chunk.stop - chunk.first) * group;
  const i64 keys = i64(handed.head_row) * a.k_len + s.start;
  Sum* sum_k = static_cast<Sum*>(a.sum_k) + keys * DK;
  Sum* sum_v = static_cast<Sum*>(a.sum_v) + keys * a.value_dim;
  int token = chunk.stop - 1, head = 0; // of the pair whose row comes next
  for (int block = 0; block < pairs; block += 32) {
    const int pair = block + lane(), head_of_mine = pair % group;
    const int mine = max(chunk.stop - 1 - pair / group, chunk.first);
    const bool last_of_key = handed.first_column == 0 && pair < pairs && head_of_mine == group - 1;
    const int query = first_query_of(a, s, mine);
    Handed own;
    own.clear();
    if (pair < pairs && mine < chunk.stop - 1 && query < first_query_of(a, s, mine + 1))
      own.load(a, handed.at(head_of_mine, query));
    const Value* grads = handed.grad_rows(head_of_mine) + min(query, s.queries - 1) * a.g_stride;
    scan_points(own.pull);
#pragma unroll
    for (int c = 0; c < DK; ++c) {
      own.pull[c] += handed.points[c];
      handed.points[c] = __shfl_sync(FULL, own.pull[c], 31);
      if (last_of_key) sum_k[i64(mine) * DK + c] = Sum(own.pull[c]);
    }
    const int count = min(32, pairs - block);
    for (int n = 0; n < count; n += ROWS_AHEAD) {
      Columns ahead[ROWS_AHEAD];
      Sum shares[ROWS_AHEAD];
#pragma unroll
      for (int m = 0; m < ROWS_AHEAD; ++m) {
        shares[m] = __shfl_sync(FULL, own.share, n + m);
        const u64 from = __shfl_sync(FULL, reinterpret_cast<u64>(grads), n + m);
        ahead[m].load(reinterpret_cast<const Value*>(from), handed.first_column, a.value_dim);
      }
#pragma unroll
      for (int m = 0; m < ROWS_AHEAD; ++m) {
        if (n + m >= count) break;
        if (shares[m] != 0) handed.rows.add(ahead[m], shares[m]);
        if (++head < group) continue;
        handed.rows.store(sum_v + i64(token) * a.value_dim, handed.first_column, a.value_dim);
        head = 0;
        --token;
      }
    }
  }
}

ZETA_KERNEL(history_bwd_keys_kernel, 32 * HISTORY_WARPS) {
  int head_row;
  Chunk chunk;
  if (!history_chunk<&Sequence::keys>(a, a.kv_heads, head_row, chunk)) return;
  const Sequence& s = sequences_of(a)[chunk.sequence];
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    HandedSums handed(a, head_row, chunk.sequence, first);
    const int reached = first_query_of(a, s, chunk.stop - 1);  // queries from here on are in the sums
    if (reached < s.queries) {
      handed.add(reached, min(reached / CHUNK * CHUNK + CHUNK, s.queries));
      const double* sums = chunk_sums(a, head_row, s, chunk.sequence, reached);
      Columns later;
      later.load_double(sums + DK, first, a.value_dim);
      handed.rows.add(later, 1);
#pragma unroll
      for (int c = 0; c < DK; ++c) handed.points[c] += sums[c];
    }
    walk_over_keys(a, chunk, handed);
  }
}
