// Lists of the chosen keys, for attention to read, with their distances: in any order, but the same one every time.
#include "choose.cuh"

__device__ inline float* distances_of(const Args& a, const Chooser& query) {
  return static_cast<float*>(a.distances) + query.at * a.top_k;
}

// Write the distances of the keys of a list that was made without keeping them.
__device__ __noinline__ void measure_list(const Args& a, const Chooser& query, const int* row, int count) {
  const int head_row = int(query.at / a.q_len / group_size(a));
  for (int n = lane(); n < count; n += 32)
    distances_of(a, query)[n] = float(squared_distance(query.x, key_point(a, head_row, row[n])));
}

ZETA_KERNEL(choose_kernel, 32 * CHOOSING_WARPS, CHOOSING_BLOCKS) {
  __shared__ Gathered gathered[CHOOSING_WARPS];
  Gathered& memory = gathered[uniform_warp_of_block()];
  const int turns = look_up(a, memory);
  Bits end = 0;
  for (int turn = 0; turn < turns; ++turn) {
    const Chooser& query = memory.queries[turn];
    int count = choose(a, query, memory, end);
    int* row = static_cast<int*>(a.indices) + query.at * a.top_k;
    if (count < 0) {
      count = list_far(a, query, memory);
      if (a.distances) measure_list(a, query, row, count);
    } else {
#pragma unroll 1
      for (int n = lane(); n < count; n += 32) {
        const Candidate chosen = memory.candidates[n];
        row[n] = query.start + chosen.position;
        if (a.distances) distances_of(a, query)[n] = float(distance_of(chosen.distance));
      }
    }
    finish_list(a, query, count);
    __syncwarp();
  }
}
