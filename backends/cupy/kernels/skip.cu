// The skip index over the positions of entries: the least of 32 and of 1024. Also the entries that pad a level to a
// multiple of 32, or the table to its capacity: all bytes are written, so that what a forward pass leaves is the same
// every time. A block takes 1024 entries of one search, a thread four. What lists need of entries is found on the way.
#include "earlier.cuh"
#include "key_order.cuh"

constexpr int SKIP_THREADS = COARSE / 4;

// The first entry, from that of the row, that no key stands in, of those of the level of `entry`.
__device__ inline i64 level_stop(const Sequence& s, i64 entry) {
  if (s.keys == 0) return 0;
  const int level = level_of_entry(s, entry);
  return s.level_entry[level] + level_length(s.keys, level);
}

ZETA_KERNEL(skip_kernel, SKIP_THREADS, 8) {
  __shared__ int least_of_blocks[BLOCK];
  const int blocks = int((a.entries + COARSE - 1) / COARSE), block = int(blockIdx.x) % blocks;
  const int searches = a.batch * a.kv_heads * a.num_curves, number = int(blockIdx.x) / blocks;
  if (number >= searches) {             // the blocks behind all others
    order_key(a, i64(int(blockIdx.x) - searches * blocks) * SKIP_THREADS + threadIdx.x);
    return;
  }
  const Search search = search_numbered(a, number);
  const i64 entry = i64(block) * COARSE + 4 * threadIdx.x, at = search.head_row * a.entries + entry;
  int least = NO_KEY;
  if (entry < a.entries) {
    int* positions = static_cast<int*>(a.entry_positions) + search.number * a.entries + entry;
    int4 found = *reinterpret_cast<const int4*>(positions);
    const Sequence& s = sequences_of(a)[sequence_with<&Sequence::entry>(a, entry)];
    const i64 in_row = entry - s.entry, stop = level_stop(s, in_row);
    if (in_row + 4 > stop) {
      int* of_entries[4] = {&found.x, &found.y, &found.z, &found.w};
      for (int n = 0; n < 4; ++n) {
        if (in_row + n < stop) continue;
        Whole<Point> whole;
        whole.value.position = *of_entries[n] = positions[n] = NO_KEY;
        whole.store(static_cast<Point*>(a.points[search.curve]) + at + n);
      }
    }
    least = min(min(found.x, found.y), min(found.z, found.w));
    if (least != NO_KEY) write_earlier(a, search, s.start, entry, found);
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
