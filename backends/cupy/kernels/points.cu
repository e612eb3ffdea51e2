// Entries in full: coordinates and position; and the skip index over their positions.
// A block of 1024 threads takes 1024 entries of one batch item and head, for the curve of the launch.
#include "rows.cuh"

ZETA_KERNEL(points_kernel, 1024) {
  __shared__ int least_of_warp[BLOCK];
  const i64 blocks = (a.entries + COARSE - 1) / COARSE, head_row = blockIdx.x / blocks;
  const i64 entry = blockIdx.x % blocks * COARSE + threadIdx.x;
  const i64 table = head_row * a.entries;
  int position = NO_KEY;
  if (entry < a.entries) {
    const Sequence& s = sequences_of(a)[sequence_with<&Sequence::entry>(a, entry)];
    const i64 in_row = entry - s.entry;
    const int level = level_of_entry(s, in_row);
    // All bytes are written, those of padding too: what a forward pass leaves is then the same every time.
    union Whole {
      Point point;
      u64 words[sizeof(Point) / 8];
      __device__ Whole() {
#pragma unroll
        for (int n = 0; n < int(sizeof(Point) / 8); ++n) words[n] = 0;
      }
    } whole;
    Point& point = whole.point;
    if (s.keys > 0 && in_row - s.level_entry[level] < level_length(s.keys, level)) {
      position = static_cast<const int*>(a.entry_positions)[table + entry];
      const Coordinate* x = key_point(a, head_row, s.start + position);
#pragma unroll
      for (int c = 0; c < DK; ++c) point.x[c] = x[c];
    }
    point.position = position;
    u64* to = reinterpret_cast<u64*>(static_cast<Point*>(a.points[a.curve]) + table + entry);
#pragma unroll
    for (int n = 0; n < int(sizeof(Point) / 8); ++n) to[n] = whole.words[n];
  }
  int least = warp_min(position);
  if (lane() == 0) {
    least_of_warp[threadIdx.x / 32] = least;
    if (entry < a.entries) static_cast<int*>(a.fine[a.curve])[(table + entry) / BLOCK] = least;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    least = warp_min(least_of_warp[lane()]);
    if (lane() == 0) static_cast<int*>(a.coarse[a.curve])[blockIdx.x] = least;
  }
}
