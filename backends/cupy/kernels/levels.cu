// Dyadic levels by stable compaction of sorted items: keys go to every level that holds them, queries to the slots of
// the one level that they use. The keys of that level before a query are those that it stands behind. A block takes a
// unit of sorted items, a warp 32 of them at a time. Lane l knows where level l goes on; units publish their counts.
#include "items.cuh"

constexpr int LEVEL_WARPS = 8, EACH_OF_UNIT = UNIT / (32 * LEVEL_WARPS);  // items of a lane

struct Item {
  int level = -1;                       // deepest level of a key, the level of a query; -1 where there is no item
  int number = 0;                       // of a query in its row
  int position = NO_KEY;                // of a key
};

__device__ inline Item item_with(const Args& a, const Sequence& s, int number) {
  Item item;
  int head;
  const int i = token_of_item(a, number, head) - s.start;
  if (number < a.k_len) {
    item.position = i;
    item.level = level_with(i, s.keys, s.levels);
  } else {
    item.number = head * s.queries + i;
    item.level = level_of(int(visible_count(a, i, s.keys)), s.keys, s.levels);
  }
  return item;
}

// Lane l of each warp has its keys whose deepest level is l: leave how many are on level l.
__device__ inline void add_deeper(int* counts) {
  int here = counts[lane()];
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_sync(FULL, here, lane() + offset);
    if (lane() + offset < 32) here += other;
  }
  counts[lane()] = here;
}

// Turn counts of warps into where they begin: thread l has the entries of level l, thread 32 + l its slots, of the row.
__device__ inline void find_starts(const Args& a, const Sequence& s, int head_row, int unit,
                                   int (*counts)[LEVEL_COUNTS]) {
  const int own = threadIdx.x, level = own % MAX_LEVELS, earlier = unit - s.unit;
  int of_warps[LEVEL_WARPS], all = 0;
#pragma unroll
  for (int warp = 0; warp < LEVEL_WARPS; ++warp) all += of_warps[warp] = counts[warp][own];
  Published* sums = level_sums(a, head_row, unit) + own;
  publish(sums, earlier, all);
  int start = own < MAX_LEVELS ? int(s.level_entry[level]) : (s.queries - s.level_query[level]) * group_size(a);
  start += sum_of_earlier(sums, LEVEL_COUNTS, earlier, all);
#pragma unroll
  for (int warp = 0; warp < LEVEL_WARPS; ++warp) {
    counts[warp][own] = start;
    start += of_warps[warp];
  }
}

ZETA_KERNEL(levels_kernel, 32 * LEVEL_WARPS) {
  __shared__ int counts[LEVEL_WARPS][LEVEL_COUNTS];
  const int warp = threadIdx.x / 32;
  counts[warp][lane()] = counts[warp][MAX_LEVELS + lane()] = 0;
  const int number = take_number(reinterpret_cast<int*>(state_of(a)));
  const int head_row = number / a.units, unit = number % a.units;
  const int sequence = sequence_with<&Sequence::unit>(a, unit);
  const Sequence& s = sequences_of(a)[sequence];
  if ((unit - s.unit) * UNIT >= s.keys + s.queries * group_size(a)) return;
  const int first = (unit - s.unit) * UNIT + warp * 32 * EACH_OF_UNIT + lane();
  const int items = s.keys + s.queries * group_size(a);
  const int first_item = s.start * (1 + group_size(a));  // of the sequence
  Item of_lane[EACH_OF_UNIT];
#pragma unroll
  for (int n = 0; n < EACH_OF_UNIT; ++n) {
    if (first + n * 32 >= items) continue;
    const Item item = of_lane[n] = item_with(a, s, sorted_number(a, head_row, first_item + first + n * 32));
    atomicAdd(&counts[warp][item.level + (item.position == NO_KEY ? MAX_LEVELS : 0)], 1);
  }
  Coordinate x[EACH_OF_UNIT][DK];       // of keys, on their way while units wait for one another
#pragma unroll
  for (int n = 0; n < EACH_OF_UNIT; ++n) {
    const bool is_key = of_lane[n].position != NO_KEY;
    const Coordinate* point = key_point(a, head_row, s.start + of_lane[n].position);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[n][c] = is_key ? point[c] : Coordinate(0);
  }
  __syncwarp();
  add_deeper(counts[warp]);
  __syncthreads();
  if (threadIdx.x < LEVEL_COUNTS) find_starts(a, s, head_row, unit, counts);
  __syncthreads();
  const i64 table = head_row * a.entries + s.entry;
  Point* points = static_cast<Point*>(a.points[a.curve]) + table;
  int* positions = static_cast<int*>(a.entry_positions) + table;
  int2* places = static_cast<int2*>(a.slot_places) + first_slot(a, head_row, s);
  int entry_of_level = counts[warp][lane()];
  int* slots = counts[warp] + MAX_LEVELS;
  const u32 before = (1u << lane()) - 1;
#pragma unroll
  for (int n = 0; n < EACH_OF_UNIT; ++n) {
    const Item& item = of_lane[n];
    const bool is_key = item.position != NO_KEY;
    const u32 keys = __ballot_sync(FULL, is_key);
    Whole<Point> whole;
#pragma unroll
    for (int c = 0; c < DK; ++c) whole.value.x[c] = x[n][c];
    whole.value.position = item.position;
    int2 place{item.number, 0};
    const bool is_query = !is_key && item.level >= 0;
    const u32 same = __match_any_sync(FULL, is_query ? item.level : MAX_LEVELS);
    const int first_of_same = is_query ? slots[item.level] : 0, slot = first_of_same + __popc(same & before);
    __syncwarp();
    if (is_query && !(same & before)) slots[item.level] = first_of_same + __popc(same);
    __syncwarp();
    for (int level = 0;; ++level) {
      const u32 reaching = __ballot_sync(FULL, item.level >= level);
      if (!reaching) break;
      const u32 holding = reaching & keys;
      const int entry = __shfl_sync(FULL, entry_of_level, level) + __popc(holding & before);
      if (is_key && item.level >= level) {
        whole.store(points + entry);
        positions[entry] = item.position;
      }
      if (item.level == level) place.y = entry;
      if (lane() == level) entry_of_level += __popc(holding);
    }
    if (is_query) places[slot] = place;
  }
}
