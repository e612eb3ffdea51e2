// The history token, forward and at the queries: sums over chunks, a scan, and a walk of one warp over 128 queries of a
// head. At 65 536 tokens, 16 heads and 64 columns of 16 bits the values are read twice and the means written once: 0.4
// GB, a floor of 0.1 ms.
#include "history.cuh"

// One warp a chunk of keys: sums of a panel of values, and of keys with the first panel.
ZETA_KERNEL(history_sums_kernel, 256) {
  const i64 warp = warp_of_grid(), head_row = warp / a.history_chunks;
  Chunk chunk;
  if (head_row >= i64(a.batch) * a.kv_heads) return;
  if (!find_chunk<&Sequence::keys>(a, int(warp % a.history_chunks), chunk)) return;
  const Sequence& s = sequences_of(a)[chunk.sequence];
  double* sums = chunk_sums(a, head_row, s, chunk.sequence, chunk.first);
  double points[DK] = {};
  for (int token = chunk.first + lane(); token < chunk.stop; token += 32) {
    const Coordinate* key = key_point(a, int(head_row), s.start + token);
#pragma unroll
    for (int c = 0; c < DK; ++c) points[c] += double(key[c]);
  }
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    const double sum = warp_sum(points[c]);
    if (lane() == 0) sums[c] = sum;
  }
  for (int first = 0; first < a.value_dim; first += PANEL) {
    Columns total;
    total.clear();
    for (int token = chunk.first; token < chunk.stop; token += AHEAD) {
      Columns rows[AHEAD];
#pragma unroll
      for (int n = 0; n < AHEAD; ++n) {
        rows[n].clear();
        if (token + n < chunk.stop) rows[n].load(value_row(a, int(head_row), s.start + token + n), first, a.value_dim);
      }
#pragma unroll
      for (int n = 0; n < AHEAD; ++n) total.add(rows[n], 1);
    }
    total.store_double(sums + DK, first, a.value_dim);
  }
}

// Replace the sums of each chunk of a row by those of all chunks before it, or after it with `from_end`. A block
// takes 32 columns of a row; each of its 32 warps a stretch of chunks.
ZETA_KERNEL(history_scan_kernel, 1024) {
  __shared__ double stretches[32][33];
  const int columns = DK + a.value_dim, panels = (columns + 31) / 32;
  const i64 row = blockIdx.x / panels, head_row = row / a.num_sequences;
  const int sequence = int(row % a.num_sequences), column = int(blockIdx.x % panels) * 32 + lane();
  const int stretch = threadIdx.x / 32;
  const Sequence& s = sequences_of(a)[sequence];
  const int chunks = ((a.from_end ? s.queries : s.keys) + CHUNK - 1) / CHUNK, each = (chunks + 31) / 32;
  double* sums = chunk_sums(a, head_row, s, sequence, 0) + column;
  const auto place = [&](int n) { return i64(a.from_end ? chunks - 1 - n : n) * columns; };
  double total = 0;
  if (column < columns)
    for (int n = stretch * each; n < min((stretch + 1) * each, chunks); ++n) total += sums[place(n)];
  stretches[stretch][lane()] = total;
  __syncthreads();
  double running = 0;
  for (int before = 0; before < stretch; ++before) running += stretches[before][lane()];
  if (column >= columns) return;
  for (int n = stretch * each; n < min((stretch + 1) * each, chunks); ++n) {
    const double here = sums[place(n)];
    sums[place(n)] = running;
    running += here;
  }
}

// The mean key of a walk, and the token's weight for a query.
__device__ inline Sum token_weight(const Args& a, const Query& query, const Running& walk, int past, Sum* mean) {
  const Coordinate* x = query_point(a, query);
  double distance = 0;
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    const double centre = past > 0 ? walk.points[c] / past : 0, difference = double(x[c]) - centre;
    mean[c] = Sum(centre);
    distance += difference * difference;
  }
  const double gamma = double(static_cast<const Coordinate*>(a.gamma)[head_of(a, query)]);
  return past > 0 ? Sum(1 / (distance + gamma * gamma)) : Sum(0);
}

// A warp's chunk of queries of one head, over all of them.
__device__ inline bool chunk_of_queries(const Args& a, int& head_row, int& head, Chunk& chunk) {
  const i64 warp = warp_of_grid(), all_heads = warp / a.history_chunks;
  if (all_heads >= i64(a.batch) * a.q_heads) return false;
  head_row = int(all_heads / group_size(a));
  head = int(all_heads % group_size(a));
  return find_chunk<&Sequence::queries>(a, int(warp % a.history_chunks), chunk);
}

ZETA_KERNEL(history_fwd_kernel, 256) {
  int head_row, head;
  Chunk chunk;
  if (!chunk_of_queries(a, head_row, head, chunk)) return;
  const Sequence& s = sequences_of(a)[chunk.sequence];
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Running walk(a, head_row, chunk.sequence, first, past_of(a, s, chunk.first));
    walk.visit(chunk.first, chunk.stop, [&](int i, int past) {
      const Query query = query_of(a, head_row, chunk.sequence, head * s.queries + i);
      Sum mean_key[DK];
      const Sum weight = token_weight(a, query, walk, past, mean_key);
      Columns mean = walk.rows;
      if (weight == 0) mean.clear(); else mean.scale(Sum(1) / past);
      write_part(a, query.at, mean, weight, first);
    });
  }
}

ZETA_KERNEL(history_bwd_queries_kernel, 256) {
  int head_row, head;
  Chunk chunk;
  if (!chunk_of_queries(a, head_row, head, chunk)) return;
  const Sequence& s = sequences_of(a)[chunk.sequence];
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Running walk(a, head_row, chunk.sequence, first, past_of(a, s, chunk.first));
    walk.visit(chunk.first, chunk.stop, [&](int i, int past) {
      const Query query = query_of(a, head_row, chunk.sequence, head * s.queries + i);
      Term term;
      term.weight = token_weight(a, query, walk, past, term.mean);
      const Sum inverse = inverse_normalizer(a, query.at);
      Columns g;
      g.load(grad_row(a, query), first, a.value_dim);
      term.product = warp_sum(g.dot(walk.rows)) / max(past, 1);
      if (lane() != 0) return;
      if (term.weight == 0 || inverse == 0) term.weight = term.product = 0;
      Term* terms = static_cast<Term*>(a.history_terms) + query.at;
      Sum difference[DK];
#pragma unroll
      for (int c = 0; c < DK; ++c) difference[c] = Sum(query_point(a, query)[c]) - term.mean[c];
      Pull pull;
      pull.clear();
      if (term.weight != 0) pull.add(term.weight, term.weight * inverse, term.product, difference, first == 0);
      if (first == 0) {
        write_pull(a, query.at, pull);
        *terms = term;
      } else {
        static_cast<Pull*>(a.pulls)[query.at].add(pull);
        terms->product += term.product;
      }
    });
  }
}
