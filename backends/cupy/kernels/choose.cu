// Lists of the chosen keys, for attention to read: in any order, but the same one every time.
#include "choose.cuh"

ZETA_KERNEL(choose_kernel, 32 * CHOOSING_WARPS, CHOOSING_BLOCKS) {
  __shared__ Gathered gathered[CHOOSING_WARPS];
  Gathered& memory = gathered[uniform_warp_of_block()];
  const int turns = look_up(a, memory);
  Bits end = 0;
  for (int turn = 0; turn < turns; ++turn) {
    const Chooser& query = memory.queries[turn];
    int count = choose(a, query, memory, end);
    int* row = static_cast<int*>(a.indices) + query.at * a.top_k;
    if (count < 0) count = list_far(a, query, memory);
    else
#pragma unroll 1
      for (int n = lane(); n < count; n += 32) row[n] = query.start + memory.candidates[n].position;
    finish_list(a, query, count);
    __syncwarp();
  }
}
