// The history token: each query attends once to the mean of all keys and values of its past. Sums over chunks of 128
// tokens, then a scan over the chunks of each row, then a walk from the scan's sum to each query: `past` never falls
// from a query to the next and grows by one at most. Backward, the same from the end: a key gets what all queries hand
// on whose past holds it. Whatever is one number a query is worked out by one lane for it, 32 queries at a time, before
// or after a walk over rows of values. Sums over chunks are double, so that a million tokens lose no precision.
#pragma once
#include "attention.cuh"
#include "chunks.cuh"

constexpr int CHUNK = 128;
constexpr int HISTORY_WARPS = 4;        // of a block

// How many keys the mean of query i of a sequence holds: those at its position and before, the first `past` ones.
__device__ inline int past_of(const Args& a, const Sequence& s, i64 i) {
  if (!a.causal) return s.keys;
  return int(min(max(a.q_offset + i + (a.include_self ? 1 : 0), i64(0)), i64(s.keys)));
}

// The first query of a sequence whose mean holds position j.
__device__ inline int first_query_of(const Args& a, const Sequence& s, i64 j) {
  if (!a.causal) return 0;
  return int(min(max(j + 1 - (a.include_self ? 1 : 0) - a.q_offset, i64(0)), i64(s.queries)));
}

// A warp's chunk of keys or queries of a head; `heads` says how many heads there are.
template <auto LENGTH> __device__ inline bool history_chunk(const Args& a, int heads, int& head, Chunk& chunk) {
  const u32 warp = u32(warp_of_grid()), chunks = u32(a.history_chunks);
  head = int(warp / chunks);
  return head < a.batch * heads && find_chunk<CHUNK, LENGTH>(a, int(warp % chunks), chunk);
}

// The sums of a chunk of a head: first DK of points, then those of rows.
__device__ inline double* chunk_sums(const Args& a, i64 head_row, const Sequence& s, int sequence, int number) {
  const i64 row = head_row * a.history_chunks + chunks_before<CHUNK>(s, sequence) + number / CHUNK;
  return static_cast<double*>(a.history_sums) + row * (DK + a.value_dim);
}

// Replace each lane's points by their sum over this lane and those before it.
__device__ inline void scan_points(double* points) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2)
#pragma unroll
    for (int c = 0; c < DK; ++c) {
      const double other = __shfl_up_sync(FULL, points[c], offset);
      if (lane() >= offset) points[c] += other;
    }
}

// What a query's token leaves for the pass over keys. Each key of its mean gets the query's row of grad_out times
// `share`, and `pull` times (product - D) at its point.
struct Term {
  Sum share;                            // p / past
  Sum product;                          // g . mean value
  Sum pull[DK];                         // 2 u p (q - mean key) / past
};

// Where a walk over a chunk of queries starts: the scan has summed the keys before `from`, and those in [from, count)
// are in the mean of the first query as well.
struct Start {
  int from, count;
  const double* sums;

  __device__ Start(const Args& a, int head_row, const Chunk& chunk) {
    const Sequence& s = sequences_of(a)[chunk.sequence];
    count = past_of(a, s, chunk.first);
    // A chunk that is complete is the scan's affair, but for the last one, which has no chunk after it.
    from = count == 0 ? 0 : (count - 1) / CHUNK * CHUNK;
    sums = chunk_sums(a, head_row, s, chunk.sequence, from);
  }
};

// Sums of the keys in the means of 32 queries at a time, one a lane.
struct HistoryPoints {
  double sums[DK];                      // of the first `count` keys; the same in all lanes
  int count;

  __device__ HistoryPoints(const Args& a, int head_row, const Chunk& chunk) {
    const Start start(a, head_row, chunk);
    const int first_token = sequences_of(a)[chunk.sequence].start;
    count = start.count;
#pragma unroll
    for (int c = 0; c < DK; ++c) sums[c] = 0;
    for (int token = start.from + lane(); token < count; token += 32) {
      const Coordinate* key = key_point(a, head_row, first_token + token);
#pragma unroll
      for (int c = 0; c < DK; ++c) sums[c] += double(key[c]);
    }
#pragma unroll
    for (int c = 0; c < DK; ++c) sums[c] = warp_sum(sums[c]) + (count == 0 ? 0 : start.sums[c]);
  }
  // Go on to the lanes' next queries; fill `centre` with the mean key of this lane's.
  __device__ void next(const Args& a, int head_row, int first_token, int past, double* centre) {
    int before = __shfl_up_sync(FULL, past, 1);
    if (lane() == 0) before = count;
    double points[DK] = {};
    if (past > before) {
      const Coordinate* key = key_point(a, head_row, first_token + past - 1);
#pragma unroll
      for (int c = 0; c < DK; ++c) points[c] = double(key[c]);
    }
    scan_points(points);
    const double factor = past == 0 ? 0 : 1.0 / past;
#pragma unroll
    for (int c = 0; c < DK; ++c) {
      points[c] += sums[c];
      centre[c] = past == 0 ? 0 : points[c] * factor;
      sums[c] = __shfl_sync(FULL, points[c], 31);
    }
    count = __shfl_sync(FULL, past, 31);
  }
};

// The token's weight for a query; 0 where it holds no key.
__device__ inline Sum token_weight(const Args& a, const Query& query, int past, const double* centre) {
  const Coordinate* x = query_point(a, query);
  double distance = 0;
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    const double difference = double(x[c]) - centre[c];
    distance += difference * difference;
  }
  const double gamma = double(static_cast<const Coordinate*>(a.gamma)[head_of(a, query)]);
  return past > 0 ? Sum(1 / (distance + gamma * gamma)) : Sum(0);
}

// Add rows [from, to) of a panel, `stride` elements apart, in order.
__device__ inline void add_rows_between(Columns& sums, const Value* rows, i64 stride, int from, int to, int first,
                                        int dim) {
  for (; from < to; from += ROWS_AHEAD) {
    Columns ahead[ROWS_AHEAD];
#pragma unroll
    for (int n = 0; n < ROWS_AHEAD; ++n) ahead[n].load(rows + min(from + n, to - 1) * stride, first, dim);
#pragma unroll
    for (int n = 0; n < ROWS_AHEAD; ++n) if (from + n < to) sums.add(ahead[n], 1);
  }
}

// Sums of a panel of values over the mean of each query of a chunk, one after the other.
struct HistoryRows {
  Columns sums;
  const Value* rows;                    // of the sequence
  i64 stride;
  int first_column, dim;
  int joins, grown;                     // queries [joins, joins + grown) add a key each to the mean of the one before
  int joining;                          // the position of the key that query `joins` adds

  __device__ HistoryRows(const Args& a, int head_row, const Chunk& chunk, int first_column)
      : stride(a.v_stride), first_column(first_column), dim(a.value_dim) {
    const Sequence& s = sequences_of(a)[chunk.sequence];
    const Start start(a, head_row, chunk);
    rows = value_row(a, head_row, s.start);
    sums.clear();
    if (start.count > 0) sums.load_double(start.sums + DK, first_column, dim);
    add_rows_between(sums, rows, stride, start.from, start.count, first_column, dim);
    grown = past_of(a, s, chunk.stop - 1) - start.count;
    joins = first_query_of(a, s, start.count);
    joining = start.count;
  }
  // Visit the queries, several together: `prepare(n, i)` for each, with the last one's number where there are fewer,
  // then `use(n, i)`, where i may be beyond the last.
  template <class Prepare, class Use> __device__ void visit(const Chunk& chunk, Prepare prepare, Use use) {
    const int existing = grown > 0 ? dim : 0;
    for (int i = chunk.first; i < chunk.stop; i += ROWS_AHEAD) {
      Columns ahead[ROWS_AHEAD];
#pragma unroll
      for (int n = 0; n < ROWS_AHEAD; ++n) {
        const i64 token = joining + min(max(i + n - joins, 0), grown - 1);
        ahead[n].load(rows + token * stride, first_column, existing);
        prepare(n, min(i + n, chunk.stop - 1));
      }
#pragma unroll
      for (int n = 0; n < ROWS_AHEAD; ++n) {
        if (u32(i + n - joins) < u32(grown)) sums.add(ahead[n], 1);
        use(n, i + n);
      }
    }
  }
};
