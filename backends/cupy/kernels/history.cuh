// The history token: each query attends once to the mean of all keys and values of its past. Sums over chunks of 128
// tokens, then a scan over the chunks of each row, then a walk from the scan's sum to each query: `past` never falls
// from a query to the next and grows by one at most. Backward, the same from the end: a key gets what all queries hand
// on whose past holds it. Sums over chunks are double, so that a million tokens lose no precision.
#pragma once
#include "attention.cuh"

constexpr int CHUNK = 128;
constexpr int AHEAD = 8;                // rows of a walk that are loaded together

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

// A chunk of a row's keys or queries: numbers [first, stop) in the sequence.
struct Chunk {
  int sequence;
  int first, stop;
};

__device__ inline i64 chunks_before(const Sequence& s, int sequence) { return s.start / CHUNK + sequence; }

// Chunk `n` of a head; false where there is none. LENGTH is a member of Sequence: keys or queries.
template <auto LENGTH> __device__ inline bool find_chunk(const Args& a, int n, Chunk& chunk) {
  int lo = 0, hi = a.num_sequences - 1;
  while (lo < hi) {
    const int middle = (lo + hi + 1) / 2;
    if (chunks_before(sequences_of(a)[middle], middle) <= n) lo = middle; else hi = middle - 1;
  }
  const Sequence& s = sequences_of(a)[lo];
  chunk.sequence = lo;
  chunk.first = int(n - chunks_before(s, lo)) * CHUNK;
  chunk.stop = min(chunk.first + CHUNK, s.*LENGTH);
  return chunk.first < chunk.stop;
}

// The sums of a chunk of a head: first DK of points, then those of rows.
__device__ inline double* chunk_sums(const Args& a, i64 head_row, const Sequence& s, int sequence, int number) {
  const i64 row = head_row * a.history_chunks + chunks_before(s, sequence) + number / CHUNK;
  return static_cast<double*>(a.history_sums) + row * (DK + a.value_dim);
}

// What a query's token leaves for the pass over keys.
struct Term {
  Sum weight;                           // u
  Sum product;                          // g . mean value
  Sum mean[DK];                         // mean key
};

// Sums of keys and of a panel of values over the first tokens of a row, that a warp carries along.
struct Running {
  const Args& a;
  int head_row;
  const Sequence& s;
  int first;                            // column of the panel
  int count;                            // tokens summed
  double points[DK];                    // the same in all lanes
  Columns rows;

  // Stand at `count` tokens.
  __device__ Running(const Args& args, int head_row, int sequence, int first, int count)
      : a(args), head_row(head_row), s(sequences_of(args)[sequence]), first(first), count(count) {
    // A chunk that is complete is the scan's affair, but for the last one, which has no chunk after it.
    const int from = count == 0 ? 0 : (count - 1) / CHUNK * CHUNK;
    const double* sums = chunk_sums(a, head_row, s, sequence, from);
#pragma unroll
    for (int c = 0; c < DK; ++c) points[c] = count == 0 ? 0 : sums[c];
    rows.clear();
    if (count == 0) return;
    rows.load_double(sums + DK, first, a.value_dim);
    for (int token = from; token < count; token += AHEAD) {
      Columns ahead[AHEAD];
#pragma unroll
      for (int n = 0; n < AHEAD; ++n) load(ahead[n], token + n, token + n < count);
#pragma unroll
      for (int n = 0; n < AHEAD; ++n) if (token + n < count) add(ahead[n], token + n);
    }
  }
  __device__ void load(Columns& row, int token, bool wanted) const {
    if (wanted) row.load(value_row(a, head_row, s.start + token), first, a.value_dim);
  }
  __device__ void add(const Columns& row, int token) {
    rows.add(row, 1);
    const Coordinate* key = key_point(a, head_row, s.start + token);
#pragma unroll
    for (int c = 0; c < DK; ++c) points[c] += double(key[c]);
  }
  // Visit the queries [i, stop) of a head: `f(i, past)` with the sums of the past of each.
  template <class F> __device__ void visit(int i, int stop, F f) {
    for (; i < stop; i += AHEAD) {
      Columns ahead[AHEAD];
#pragma unroll
      for (int n = 0; n < AHEAD; ++n) {
        const int past = past_of(a, s, i + n);
        load(ahead[n], past - 1, i + n < stop && past > max(count, past_of(a, s, i + n - 1)));
      }
#pragma unroll
      for (int n = 0; n < AHEAD; ++n) {
        if (i + n >= stop) break;
        const int past = past_of(a, s, i + n);
        if (past > count) add(ahead[n], past - 1);
        count = past;
        f(i + n, past);
      }
    }
  }
};
