// Lists of the chosen keys in ascending order. The place of a key in its list is the number of keys before it. Where
// there are too many to gather, the next larger position is looked for again and again.
#include "choose.cuh"

ZETA_KERNEL(list_kernel, 32 * CHOOSING_WARPS) {
  __shared__ Gathered gathered[CHOOSING_WARPS];
  Gathered& memory = gathered[threadIdx.x / 32];
  const int turns = look_up(a, memory);
  Bits guess = 0;
  for (int turn = 0; turn < turns; ++turn) {
    const Chooser& query = memory.queries[turn];
    int* row = static_cast<int*>(a.indices) + query.at * a.top_k;
    int count = choose(a, query, memory, guess);
    if (count < 0) {
      const Cut cut = find_cut(a, query, memory);
      int last = -1;
      for (count = 0; count < a.top_k; ++count) {
        int least = NO_KEY;
        visit_kept(a, query, cut, [&](int position, bool kept) {
          if (kept && position > last && position < least) least = position;
        });
        last = warp_min(least);
        if (last == NO_KEY) break;
        if (lane() == 0) row[count] = query.start + last;
      }
    } else {
      for (int place = lane(); place < count; place += 32) {
        const int position = memory.positions[place];
        int before = 0;
        for (int n = 0; n < count; ++n) before += memory.positions[n] < position;
        row[before] = query.start + position;
      }
    }
    for (int place = count + lane(); place < a.top_k; place += 32) row[place] = -1;
    __syncwarp();
  }
}
