// Which keys a query attends to: the union of its windows, each key once, cut to the nearest top_k where it is larger.
// Where ranges are long, and where several candidates are at the border, they are gathered in shared memory. Those that
// are too many for that are found again and again, digit by digit.
#pragma once
#include "choose_near.cuh"
#include "digits.cuh"

// Choose among the candidates of any query, which are gathered; returns how many are chosen, or -1 where there are too
// many to gather.
__device__ inline int choose_far(const Args& a, const Chooser& query, Gathered& memory) {
  const int count = gather(a, query, memory);
  __syncwarp();
  if (count > MOST_GATHERED) return -1;
  if (count <= a.top_k) return count;
  Bits end = memory.end;
  if (count <= 64) choose_gathered<0, 2>(a, memory.candidates, count, memory.pace, end);
  else if (count <= 128) choose_gathered<2, 4>(a, memory.candidates, count, memory.pace, end);
  else choose_gathered<4, MOST_GATHERED / 32>(a, memory.candidates, count, memory.pace, end);
  leave_end(memory, end);
  return a.top_k;
}

// Write the list of a query with too many candidates to gather, in the order of visits; returns its length. The last
// one that is kept is found in counters in the warp's memory. A call of its own: it takes no registers elsewhere.
__device__ __noinline__ int list_far(const Args& a, const Chooser& query, Gathered& memory) {
  const Cut cut = cut_after(a.top_k, reinterpret_cast<int*>(memory.candidates), [&](auto offer) {
    visit_candidates(a, query, [&](int position, Coordinate distance, bool candidate) {
      if (candidate) offer(comparable(distance), position);
    });
  });
  int* row = query.row;
  int count = 0;
  visit_candidates(a, query, [&](int position, Coordinate distance, bool candidate) {
    const bool kept = candidate && before_cut(comparable(distance), position, cut.distance, cut.position);
    const u32 vote = __ballot_sync(FULL, kept);
    if (kept) row[count + below_lane(vote)] = query.start + position;
    count += __popc(vote);
  });
  __syncwarp();
  return count;
}

// Choose for all of the warp's queries. `emit(query, count, lane)` writes the list of those `count` keys that are at
// the front of the warp's memory, `complete(query, count)` does what is left to do for one that `list_far` has written.
template <class Emit, class Complete>
__device__ inline void choose_all(const Args& a, Gathered& memory, Emit emit, Complete complete) {
  look_up(a, memory);
  if (a.num_curves == 1) choose_near<1>(a, memory, emit);
  else if (a.num_curves == 2) choose_near<2>(a, memory, emit);
  else choose_near<3>(a, memory, emit);
  for (u32 turns = memory.left; turns; turns &= turns - 1) {
    const Chooser& query = memory.queries[__ffs(int(turns)) - 1];
    int count = choose_far(a, query, memory);
    if (count < 0) {
      count = list_far(a, query, memory);
      complete(query, count);
    } else {
      emit(query, count, lane());
    }
    fill_list(a, query, count, lane());
    __syncwarp();
  }
}
