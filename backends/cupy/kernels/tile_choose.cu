// Lists of the chosen keys, and attention to them, forward, on tensor cores: distances and positions are at hand when
// keys are chosen.
#include "choose.cuh"
#include "gathered_mean.cuh"

// What attention needs of a query beside what choosing does.
struct Attender {
  const Value* base;                    // first row of its key head
  float square;                         // gamma^2
};

ZETA_KERNEL(tile_choose_fwd_kernel, 32 * CHOOSING_WARPS, DIM <= 64 ? 3 : 1) {
  __shared__ Gathered gathered[CHOOSING_WARPS];
  __shared__ WeightedRows stages[CHOOSING_WARPS];
  __shared__ Attender looked_up[CHOOSING_WARPS][TURNS];
  Gathered& memory = gathered[warp_of_block()];
  WeightedRows& weighted = stages[warp_of_block()];
  Attender* attenders = looked_up[warp_of_block()];
  const int turns = look_up(a, memory);
  if (lane() < turns) {
    const Chooser& query = memory.queries[lane()];
    attenders[lane()] = Attender{value_row(a, query.head_row, 0), squared_gamma(a, query.head)};
  }
  __syncwarp();
  Bits end = 0;
  for (int turn = 0; turn < turns; ++turn) {
    const Chooser& query = memory.queries[turn];
    const int count = choose(a, query, memory, end);
    if (count < 0) {
      finish_list(a, query, list_far(a, query, memory));
      __syncwarp();
      attend_to_given(a, query.at, weighted);
      continue;
    }
    int* row = static_cast<int*>(a.indices) + query.at * a.top_k;
    int nearest = 0x7f800000;           // infinity, as an integer
    for (int place = lane(); place < count; place += 32) nearest = min(nearest, int(memory.candidates[place].distance));
    const Attender& attender = attenders[turn];
    MeanOfRows mean(a, attender.base, attender.square, __int_as_float(__reduce_min_sync(FULL, nearest)));
    for (int first = 0; first < count; first += 32) {
      const int place = first + lane();
      const bool named = place < count;
      const Candidate candidate = memory.candidates[named ? place : 0];
      const int token = query.start + candidate.position;
      if (named) row[place] = token;
      mean.add(token, __int_as_float(int(candidate.distance)), named, weighted);
    }
    finish_list(a, query, count);
    mean.write(a, query.at);
  }
}
