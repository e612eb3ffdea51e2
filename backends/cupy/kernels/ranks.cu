// Where the key of an entry stands on the curves before its own: a key that windows of several curves share is chosen
// on the first of them. A block of 1024 threads takes 1024 entries of one batch item and head.
#include "rows.cuh"

struct EntryOfCurve {
  int curve;
  i64 entry;                            // among all (batch, kv_heads, entries)
  int position;                         // NO_KEY where there is none
  i64 ranks;                            // where its level's ranks begin, likewise
  int in_row;                           // from the row's first entry
};

// The thread's entry; `first_curve` is the first of those that the launch is about.
__device__ inline EntryOfCurve entry_of_thread(const Args& a, int first_curve) {
  const int blocks = int((a.entries + COARSE - 1) / COARSE), block = int(blockIdx.x) % blocks;
  const int row = int(blockIdx.x) / blocks, rows = a.batch * a.kv_heads;
  const i64 in_table = i64(block) * COARSE + threadIdx.x;
  EntryOfCurve e;
  e.curve = first_curve + row / rows;
  e.entry = row % rows * a.entries + in_table;
  e.position = in_table < a.entries ? static_cast<const Point*>(a.points[e.curve])[e.entry].position : NO_KEY;
  if (e.position == NO_KEY) return e;
  const Sequence& s = sequences_of(a)[sequence_with<&Sequence::entry>(a, in_table)];
  e.in_row = int(in_table - s.entry);
  e.ranks = e.entry - e.in_row + s.level_entry[level_of_entry(s, e.in_row)];
  return e;
}

// By level and position, for all curves but the last.
ZETA_KERNEL(ranks_kernel, 1024) {
  const EntryOfCurve e = entry_of_thread(a, 0);
  if (e.position == NO_KEY) return;
  const i64 all = i64(a.batch) * a.kv_heads * a.entries;
  static_cast<int*>(a.entry_ranks)[e.curve * all + e.ranks + e.position] = e.in_row;
}

// By entry, for all curves but the first.
ZETA_KERNEL(earlier_ranks_kernel, 1024) {
  const EntryOfCurve e = entry_of_thread(a, 1);
  if (e.position == NO_KEY) return;
  const i64 all = i64(a.batch) * a.kv_heads * a.entries;
  int* earlier = static_cast<int*>(a.earlier[e.curve]) + e.entry * e.curve;
  for (int curve = 0; curve < e.curve; ++curve)
    earlier[curve] = static_cast<const int*>(a.entry_ranks)[curve * all + e.ranks + e.position];
}

// The keys of each head in the order of the first curve, sequence by sequence. One thread a key.
ZETA_KERNEL(key_order_kernel, 256) {
  const i64 key = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (key >= i64(a.batch) * a.kv_heads * a.k_len) return;
  const i64 head_row = key / a.k_len;
  const int token = int(key % a.k_len);
  const Sequence& s = sequences_of(a)[a.cu_seqlens ? sequence_of_token(a, token) : 0];
  const i64 entry = head_row * a.entries + s.entry + token - s.start;
  const bool exists = token - s.start < s.keys;  // not beyond borders that are out of order
  static_cast<int*>(a.key_order)[key] =
      exists ? s.start + static_cast<const Point*>(a.points[0])[entry].position : token;
}
