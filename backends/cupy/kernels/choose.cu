// Lists of the chosen keys, for attention to read, with their distances: in any order, but the same one every time.
#include "choose.cuh"

ZETA_KERNEL(choose_kernel, 32 * CHOOSING_WARPS, CHOOSING_BLOCKS) {
  __shared__ Gathered gathered[CHOOSING_WARPS];
  Gathered& memory = gathered[uniform_warp_of_block()];
  const auto emit = [&](const Chooser& query, int count, int own) {
#pragma unroll 1
    for (u32 n = own; n < u32(count); n += 32) {
      const Candidate candidate = memory.candidates[n];
      int* row = query.row;             // with what is next to it, in one load
      float* distances = query.distances;
      row[n] = query.start + candidate.position;
      if (a.distances) distances[n] = float(distance_of(candidate.distance));
    }
  };
  const auto complete = [&](const Chooser& query, int count) {
    const int head_row = int(query.at / a.q_len / group_size(a));
    for (int n = lane(); a.distances && n < count; n += 32)
      query.distances[n] = float(squared_distance(query.x, key_point(a, head_row, query.row[n])));
  };
  choose_all(a, memory, emit, complete);
}
