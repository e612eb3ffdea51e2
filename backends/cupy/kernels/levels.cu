// Dyadic levels by stable compaction of sorted items: keys go to every level that holds them, queries to the slots of
// the one level that they use. The keys of that level before a query are those that it stands behind. A block takes a
// unit of sorted items, a warp 128 of them, 32 at a time; lane l counts for level l. Units publish their counts. Those
// of several searches take turns, so that blocks that run at once wait for few others.
#include "items.cuh"
#include "votes.cuh"

constexpr int LEVEL_WARPS = 16, EACH_OF_UNIT = UNIT / (32 * LEVEL_WARPS);  // items of a lane
constexpr int LEVEL_BITS = 5;

struct Item {
  int level;                            // deepest level of a key, the level of a query
  int number;                           // position of a key, number of a query in its row
  bool is_key;
};

__device__ inline Item item_with(const Args& a, const Sequence& s, int number) {
  Item item;
  int head;
  const int i = token_of_item(a, number, head) - s.start;
  item.is_key = number < a.k_len;
  item.number = head * s.queries + i;
  const int last = item.is_key ? i : max(int(visible_count(a, i, s.keys)) - 1, 0);  // that the level has to hold
  item.level = level_with(last, s.keys, s.levels);
  return item;
}

// Turn counts of warps into where they begin in the row: the entries and slots of one level. All lanes of a warp.
__device__ inline void find_starts(const Args& a, const Sequence& s, int search, int unit, int level,
                                   Counts (*counts)[MAX_LEVELS]) {
  Counts before{0, 0}, all{0, 0};
#pragma unroll
  for (int warp = 0; warp < LEVEL_WARPS; ++warp) {
    const Counts of_warp = counts[warp][level];
    if (warp < lane()) before = {before.keys + of_warp.keys, before.queries + of_warp.queries};
    all = {all.keys + of_warp.keys, all.queries + of_warp.queries};
  }
  const Counts earlier = sum_of_earlier(level_sums(a, search, level, unit), unit - s.unit, all);
  const int first_entry = int(s.level_entry[level]), first_slot = (s.queries - s.level_query[level]) * group_size(a);
  __syncwarp();                         // all lanes have read what is written over now
  if (lane() < LEVEL_WARPS)
    counts[lane()][level] = {first_entry + earlier.keys + before.keys, first_slot + earlier.queries + before.queries};
}

ZETA_KERNEL(levels_kernel, 32 * LEVEL_WARPS, sizeof(Point) <= 32 ? 2 : 1) {
  __shared__ Counts counts[LEVEL_WARPS][MAX_LEVELS];
  const int warp = threadIdx.x / 32, searches = a.batch * a.kv_heads * a.num_curves;
  const int unit = int(blockIdx.x) / searches;
  const Search search = search_numbered(a, int(blockIdx.x) % searches);
  const Sequence& s = sequences_of(a)[sequence_with<&Sequence::unit>(a, unit)];
  const int items = s.keys + s.queries * group_size(a), first_of_unit = (unit - s.unit) * UNIT;
  if (first_of_unit >= items) return;
  const int first = first_of_unit + warp * 32 * EACH_OF_UNIT + lane();
  const int first_item = s.start * (1 + group_size(a));  // of the sequence
  const Order order(a, search.number);
  int words[EACH_OF_UNIT];
#pragma unroll
  for (int n = 0; n < EACH_OF_UNIT; ++n) words[n] = order.load(first_item + min(first + n * 32, items - 1));
  Item of_lane[EACH_OF_UNIT];
#pragma unroll
  for (int n = 0; n < EACH_OF_UNIT; ++n) of_lane[n] = item_with(a, s, order.number(words[n]));
  Coordinate x[EACH_OF_UNIT][DK];       // of keys, on their way while units wait for one another
#pragma unroll
  for (int n = 0; n < EACH_OF_UNIT; ++n) {
    const Coordinate* point = key_point(a, search.head_row, s.start + of_lane[n].number);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[n][c] = of_lane[n].is_key ? point[c] : Coordinate(0);
  }
  // For the lane's level: lanes with keys that it holds, and with queries that use it.
  u32 keys[EACH_OF_UNIT], queries[EACH_OF_UNIT];
  Counts count{0, 0};
#pragma unroll
  for (int n = 0; n < EACH_OF_UNIT; ++n) {
    const Votes votes = vote<LEVEL_BITS>(of_lane[n].level);
    const u32 there = __ballot_sync(FULL, first + n * 32 < items), is_key = __ballot_sync(FULL, of_lane[n].is_key);
    keys[n] = there & is_key & (votes.equal | votes.above);
    queries[n] = there & ~is_key & votes.equal;
    count.keys += __popc(keys[n]);
    count.queries += __popc(queries[n]);
  }
  counts[warp][lane()] = count;
  __syncthreads();
  for (int level = warp; level < s.levels; level += LEVEL_WARPS) find_starts(a, s, search.number, unit, level, counts);
  __syncthreads();
  const i64 table = search.head_row * a.entries + s.entry;
  Point* points = static_cast<Point*>(a.points[search.curve]) + table;
  int* positions = static_cast<int*>(a.entry_positions) + search.number * a.entries + s.entry;
  int2* places = static_cast<int2*>(a.slot_places) + first_slot(a, search.number, s);
  const u32 before = (1u << lane()) - 1;
  Counts next = counts[warp][lane()];   // entry and slot of the lane's level
  const int first_next = next.keys;
#pragma unroll
  for (int n = 0; n < EACH_OF_UNIT; ++n) {
    const int level = of_lane[n].level;
    const u32 same = __shfl_sync(FULL, queries[n], level);
    const int entry = __shfl_sync(FULL, next.keys, level) + __popc(__shfl_sync(FULL, keys[n], level) & before);
    const int slot = __shfl_sync(FULL, next.queries, level) + __popc(same & before);
    if (same >> lane() & 1) places[slot] = int2{of_lane[n].number, entry};
    next.keys += __popc(keys[n]);
    next.queries += __popc(queries[n]);
  }
  const int levels = __popc(__ballot_sync(FULL, count.keys > 0));
  for (int level = 0; level < levels; ++level) {
    int entry = __shfl_sync(FULL, first_next, level);
#pragma unroll
    for (int n = 0; n < EACH_OF_UNIT; ++n) {
      const u32 holding = __shfl_sync(FULL, keys[n], level);
      if (holding >> lane() & 1) {
        const int to = entry + __popc(holding & before);
        Whole<Point> whole;
#pragma unroll
        for (int c = 0; c < DK; ++c) whole.value.x[c] = x[n][c];
        whole.value.position = of_lane[n].number;
        whole.store(points + to);
        positions[to] = of_lane[n].number;
      }
      entry += __popc(holding);
    }
  }
}
