// Where the key of an entry stands on the curves before its own: a key that windows of several curves share is chosen
// on the first of them. One thread an entry, of all curves that a launch is about.
#include "rows.cuh"

// An entry of some curve: `curve` counts the curves of the launch.
struct EntryOfCurve {
  int curve;
  i64 entry;                            // among all (batch, kv_heads, entries)
  int position;                         // NO_KEY where there is none
  i64 ranks;                            // where its level's ranks begin, likewise
  int in_row;                           // from the row's first entry
};

__device__ inline EntryOfCurve entry_of_thread(const Args& a, int first_curve) {
  const i64 n = i64(blockIdx.x) * blockDim.x + threadIdx.x, all = i64(a.batch) * a.kv_heads * a.entries;
  EntryOfCurve e;
  e.curve = first_curve + int(n / all);
  e.entry = n % all;
  e.position = NO_KEY;
  if (n >= (a.num_curves - 1) * all) return e;
  e.position = static_cast<const Point*>(a.points[e.curve])[e.entry].position;
  const i64 in_table = e.entry % a.entries;
  const Sequence& s = sequences_of(a)[sequence_with<&Sequence::entry>(a, in_table)];
  e.in_row = int(in_table - s.entry);
  e.ranks = e.entry - e.in_row + s.level_entry[level_of_entry(s, e.in_row)];
  return e;
}

// By level and position, for all curves but the last.
ZETA_KERNEL(ranks_kernel, 256) {
  const EntryOfCurve e = entry_of_thread(a, 0);
  if (e.position == NO_KEY) return;
  const i64 all = i64(a.batch) * a.kv_heads * a.entries;
  static_cast<int*>(a.entry_ranks)[e.curve * all + e.ranks + e.position] = e.in_row;
}

// By entry, for all curves but the first.
ZETA_KERNEL(earlier_ranks_kernel, 256) {
  const EntryOfCurve e = entry_of_thread(a, 1);
  if (e.position == NO_KEY) return;
  const i64 all = i64(a.batch) * a.kv_heads * a.entries;
  int* earlier = static_cast<int*>(a.earlier[e.curve]) + e.entry * e.curve;
  for (int curve = 0; curve < e.curve; ++curve)
    earlier[curve] = static_cast<const int*>(a.entry_ranks)[curve * all + e.ranks + e.position];
}
