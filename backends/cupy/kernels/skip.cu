// The skip index over the positions of entries: the least of 32 and of 1024. Also the entries that pad a level to a
// multiple of 32, or the table to its capacity: all bytes are written, so that what a forward pass leaves is the same
// every time. A block takes 1024 entries of one search, a thread four.
#include "items.cuh"

constexpr int SKIP_THREADS = COARSE / 4;

// The first entry, from that of the row, that no key stands in, of those of the level of `entry`.
__device__ inline i64 level_stop(const Sequence& s, i64 entry) {
  if (s.keys == 0) return 0;
  const int level = level_of_entry(s, entry);
  return s.level_entry[level] + level_length(s.keys, level);
}

ZETA_KERNEL(skip_kernel, SKIP_THREADS) {
  __shared__ int least_of_blocks[BLOCK];
  const int blocks = int((a.entries + COARSE - 1) / COARSE), block = int(blockIdx.x) % blocks;
  const Search search = search_numbered(a, int(blockIdx.x) / blocks);
  const i64 entry = i64(block) * COARSE + 4 * threadIdx.x, at = search.head_row * a.entries + entry;
  int least = NO_KEY;
  if (entry < a.entries) {
    int* of_search = static_cast<int*>(a.entry_positions) + search.number * a.entries;
    int4& positions = *reinterpret_cast<int4*>(of_search + entry);
    int4 found = positions;
    const Sequence& s = sequences_of(a)[sequence_with<&Sequence::entry>(a, entry)];
    const i64 in_row = entry - s.entry, stop = level_stop(s, in_row);
    if (in_row + 4 > stop) {
      int* of_entries[4] = {&found.x, &found.y, &found.z, &found.w};
      for (int n = 0; n < 4; ++n) {
        if (in_row + n < stop) continue;
        Whole<Point> whole;
        whole.value.position = *of_entries[n] = NO_KEY;
        whole.store(static_cast<Point*>(a.points[search.curve]) + at + n);
      }
      positions = found;
    }
    least = min(min(found.x, found.y), min(found.z, found.w));
  }
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2) least = min(least, __shfl_xor_sync(FULL, least, offset));
  if (threadIdx.x % 8 == 0) {           // eight threads have 32 entries
    least_of_blocks[threadIdx.x / 8] = least;
    if (entry < a.entries) static_cast<int*>(a.fine[search.curve])[at / BLOCK] = least;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    least = warp_min(least_of_blocks[lane()]);
    if (lane() == 0) static_cast<int*>(a.coarse[search.curve])[search.head_row * blocks + block] = least;
  }
}
