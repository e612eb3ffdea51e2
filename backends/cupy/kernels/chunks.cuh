// Chunks: stretches of a sequence's keys or queries, in order of position, that a warp takes. Every head has the same
// ones, and each sequence begins with one of its own.
#pragma once
#include "rows.cuh"

struct Chunk {
  int sequence;
  int first, stop;                      // keys or queries [first, stop) of the sequence
};

template <int SIZE> __device__ inline i64 chunks_before(const Sequence& s, int sequence) {
  return s.start / SIZE + sequence;
}

// Chunk `n` of a head, of SIZE keys or queries, as LENGTH says, a member of Sequence; false where there is none. Chunks
// of a head: keys or queries / SIZE + num_sequences.
template <int SIZE, auto LENGTH> __device__ inline bool find_chunk(const Args& a, int n, Chunk& chunk) {
  int lo = 0, hi = a.num_sequences - 1;
  while (lo < hi) {
    const int middle = (lo + hi + 1) / 2;
    if (chunks_before<SIZE>(sequences_of(a)[middle], middle) <= n) lo = middle; else hi = middle - 1;
  }
  const Sequence& s = sequences_of(a)[lo];
  chunk.sequence = lo;
  chunk.first = int(n - chunks_before<SIZE>(s, lo)) * SIZE;
  chunk.stop = min(chunk.first + SIZE, s.*LENGTH);
  return chunk.first < chunk.stop;
}
