// Where the key of an entry stands on the curves before its own: a key that windows of several curves share is chosen
// on the first of them. A block takes 1024 entries of one batch item and head, a thread four.
#include "rows.cuh"

constexpr int RANK_THREADS = COARSE / 4;

__device__ inline i64 entries_of_curve(const Args& a) { return i64(a.batch) * a.kv_heads * a.entries; }

__device__ inline const int* positions_on(const Args& a, int curve) {
  return static_cast<const int*>(a.entry_positions) + curve * entries_of_curve(a);
}

// A thread's four entries, of one level: levels begin at multiples of more.
struct FourEntries {
  int curve;
  i64 entry;                            // the first, among all (batch, kv_heads, entries)
  int positions[4];                     // NO_KEY where there is none
  i64 ranks;                            // where its level's ranks begin, likewise
  int in_row;                           // the first, from the row's first entry

  // False if no key stands in them; `first_curve` is the first of those that the launch is about.
  __device__ bool find(const Args& a, int first_curve) {
    const int blocks = int((a.entries + COARSE - 1) / COARSE), block = int(blockIdx.x) % blocks;
    const int row = int(blockIdx.x) / blocks, rows = a.batch * a.kv_heads;
    const i64 in_table = i64(block) * COARSE + 4 * threadIdx.x;
    if (in_table >= a.entries) return false;
    curve = first_curve + row / rows;
    entry = row % rows * a.entries + in_table;
    const int4 four = *reinterpret_cast<const int4*>(positions_on(a, curve) + entry);
    positions[0] = four.x;
    positions[1] = four.y;
    positions[2] = four.z;
    positions[3] = four.w;
    if (four.x == NO_KEY) return false;  // nor in the entries behind the first
    const Sequence& s = sequences_of(a)[sequence_with<&Sequence::entry>(a, in_table)];
    in_row = int(in_table - s.entry);
    ranks = entry - in_row + s.level_entry[level_of_entry(s, in_row)];
    return true;
  }
};

// By level and position, for all curves but the last.
ZETA_KERNEL(ranks_kernel, RANK_THREADS) {
  FourEntries e;
  if (!e.find(a, 0)) return;
  int* ranks = static_cast<int*>(a.entry_ranks) + e.curve * entries_of_curve(a) + e.ranks;
#pragma unroll
  for (int n = 0; n < 4; ++n)
    if (e.positions[n] != NO_KEY) ranks[e.positions[n]] = e.in_row + n;
}

template <int CURVE> __device__ inline void find_earlier(const Args& a, const FourEntries& e) {
  int earlier[4 * CURVE];               // by entry, then curve
#pragma unroll
  for (int curve = 0; curve < CURVE; ++curve) {
    const int* ranks = static_cast<const int*>(a.entry_ranks) + curve * entries_of_curve(a) + e.ranks;
#pragma unroll
    for (int n = 0; n < 4; ++n)
      earlier[n * CURVE + curve] = e.positions[n] == NO_KEY ? 0 : ranks[e.positions[n]];
  }
  int4* to = reinterpret_cast<int4*>(static_cast<int*>(a.earlier[CURVE]) + e.entry * CURVE);
#pragma unroll
  for (int n = 0; n < CURVE; ++n)
    to[n] = int4{earlier[4 * n], earlier[4 * n + 1], earlier[4 * n + 2], earlier[4 * n + 3]};
}

// By entry, for all curves but the first.
ZETA_KERNEL(earlier_ranks_kernel, RANK_THREADS) {
  FourEntries e;
  if (!e.find(a, 1)) return;
  if (e.curve == 1) find_earlier<1>(a, e);
  else find_earlier<2>(a, e);
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
  static_cast<int*>(a.key_order)[key] = exists ? s.start + positions_on(a, 0)[entry] : token;
}
