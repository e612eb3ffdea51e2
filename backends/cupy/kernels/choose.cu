// Lists of the chosen keys, for attention to read: in any order, but the same one every time.
#include "choose.cuh"

ZETA_KERNEL(choose_kernel, 32 * CHOOSING_WARPS) {
  __shared__ Gathered gathered[CHOOSING_WARPS];
  Gathered& memory = gathered[threadIdx.x / 32];
  const int turns = look_up(a, memory);
  Bits guess = 0;
  for (int turn = 0; turn < turns; ++turn) {
    const Chooser& query = memory.queries[turn];
    int* row = static_cast<int*>(a.indices) + query.at * a.top_k;
    int count = choose(a, query, memory, guess);
    if (count < 0) {
      count = 0;
      visit_kept(a, query, find_cut(a, query, memory), [&](int position, bool kept) {
        const u32 vote = __ballot_sync(FULL, kept);
        if (kept) row[count + below_lane(vote)] = query.start + position;
        count += __popc(vote);
      });
    } else {
      for (int place = lane(); place < count; place += 32) row[place] = query.start + memory.positions[place];
    }
    for (int place = count + lane(); place < a.top_k; place += 32) row[place] = -1;
    __syncwarp();
  }
}
