// The table of sequences: lengths, levels and where they begin.
#pragma once
#include "rows.cuh"

// First query of a sequence that sees more than `length` keys: visible_count never falls as i grows.
__device__ inline int first_query_beyond(const Args& a, const Sequence& s, i64 length) {
  int lo = 0, hi = s.queries;
  while (lo < hi) {
    const int middle = (lo + hi) / 2;
    if (visible_count(a, middle, s.keys) > length) hi = middle; else lo = middle + 1;
  }
  return lo;
}

// Write it, as one block: a warp takes a sequence, a lane a level.
__device__ inline void write_table(const Args& a) {
  Sequence* table = static_cast<Sequence*>(a.sequences);
  const int* borders = static_cast<const int*>(a.cu_seqlens);
  for (int n = threadIdx.x / 32; n < a.num_sequences; n += int(blockDim.x) / 32) {
    Sequence& s = table[n];
    const int start = borders ? borders[n] : 0;
    if (lane() == 0) {
      s.start = start;
      s.keys = borders ? borders[n + 1] - start : a.k_len;
      s.queries = borders ? s.keys : a.q_len;
      s.levels = level_count(s.keys, a.window);
      s.level_entry[0] = 0;
      s.level_query[MAX_LEVELS] = 0;
    }
    __syncwarp();
    const int level = lane();
    const i64 length = level < s.levels ? level_length(s.keys, level) : 0;
    // The queries of this level and of those above it are the first ones, which see the fewest keys.
    s.level_query[level] = level == 0 ? s.queries : level < s.levels ? first_query_beyond(a, s, length) : 0;
    s.level_entry[level + 1] = sum_to_lane((length + BLOCK - 1) / BLOCK * BLOCK);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    i64 entry = 0;
    int unit = 0, upper = 0;
    for (int n = 0; n < a.num_sequences; ++n) {
      table[n].entry = entry;
      table[n].unit = unit;
      table[n].upper = upper;
      upper += int(table[n].level_entry[MAX_LEVELS] - table[n].level_entry[1]);
      entry += table[n].level_entry[MAX_LEVELS];
      unit += (table[n].keys + table[n].queries * group_size(a) + UNIT - 1) / UNIT;
    }
  }
}
