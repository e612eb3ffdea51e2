// Lists of the chosen keys in ascending order. The place of a key in its list is the number of keys before it. Where
// there are too many to gather, the least of the rest is swapped to its place, again and again.
#include "choose.cuh"

ZETA_KERNEL(list_kernel, 32 * CHOOSING_WARPS, CHOOSING_BLOCKS) {
  __shared__ Gathered gathered[CHOOSING_WARPS];
  Gathered& memory = gathered[uniform_warp_of_block()];
  const auto emit = [&](const Chooser& query, int count, int own) {
    for (int place = own; place < count; place += 32) {
      const int position = memory.candidates[place].position;
      int before = 0;
      for (int n = 0; n < count; ++n) before += memory.candidates[n].position < position;
      query.row[before] = query.start + position;
    }
  };
  const auto complete = [](const Chooser& query, int count) {
    int* row = query.row;
    for (int sorted = 0; sorted < count; ++sorted) {
      int least = NO_KEY, from = sorted;
      for (int place = sorted + lane(); place < count; place += 32)
        if (row[place] < least) least = row[place], from = place;
      if (warp_min(least) == least && least != NO_KEY) row[from] = row[sorted], row[sorted] = least;
      __syncwarp();
    }
  };
  choose_all(a, memory, emit, complete);
}
