// Lists of runs of pairs, for each group of keys.
#include "tile_pairs.cuh"

// Places of keys, and counts of 0, before pairs are made. One thread a key.
ZETA_KERNEL(key_places_kernel, 256) {
  const i64 n = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n <= count_groups(a)) static_cast<GroupCounts*>(a.group_counts)[n] = GroupCounts{0, 0, 0, 0};
  if (!a.key_places || n >= i64(a.batch) * a.kv_heads * a.k_len) return;
  const int place = int(n % a.k_len);
  static_cast<int*>(a.key_places)[n - place + static_cast<const int*>(a.key_order)[n]] = place;
}

// Where the list of each group begins, and the parts of those that are heavy. One thread a group.
ZETA_KERNEL(group_starts_kernel, 256) {
  const i64 group = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  GroupCounts* counts = static_cast<GroupCounts*>(a.group_counts);
  GroupCounts& all = counts[count_groups(a)];
  const bool exists = group < count_groups(a);
  const int runs = exists ? counts[group].runs : 0;
  const int stop = sum_to_lane(runs);
  int first = 0;
  if (lane() == 31) first = atomicAdd(&all.runs, stop);
  first = __shfl_sync(FULL, first, 31);
  if (!exists) return;
  counts[group].start = first + stop - runs;
  const int parts = parts_of(runs);
  if (parts == 0) return;
  const int part = atomicAdd(&all.start, parts);
  counts[group].part = part;
  for (int n = 0; n < parts; ++n) static_cast<HeavyPart*>(a.heavy_parts)[part + n] = HeavyPart{int(group), n};
}

// List the runs of a tile's pairs. A warp takes a tile.
ZETA_KERNEL(list_runs_kernel, 256) {
  const int tiles = tiles_of_head(a);
  const i64 tile = warp_of_grid();
  if (tile >= i64(a.batch) * a.kv_heads * tiles) return;
  const u32 visit = u32(tile % tiles) * rounds_of(a);
  const TilePair* pairs = static_cast<const TilePair*>(a.tile_pairs) + tile * TILE * a.width;
  GroupCounts* counts = static_cast<GroupCounts*>(a.group_counts);
  const int count = static_cast<const int*>(a.tile_counts)[tile];
  int begun = 0;                        // the run that goes on from before
  for (int first = 0; first < count; first += 32) {
    const int n = min(first + lane(), count - 1);
    const TilePair pair = pairs[n], before = pairs[max(n - 1, 0)], next = pairs[min(n + 1, count - 1)];
    const u32 begins = __ballot_sync(FULL, n == 0 || !pair.continues(before));
    const u32 mine = begins & (FULL >> (31 - lane()));
    const int run = mine ? first + 31 - __clz(int(mine)) : begun;
    begun = __shfl_sync(FULL, run, 31);
    if (first + lane() >= count || (n + 1 < count && next.continues(pair))) continue;
    GroupCounts& group = counts[pair.key / TILE];
    const int place = group.start + atomicAdd(&group.listed, 1);
    static_cast<Run*>(a.group_runs)[place] =
        Run{visit + (pair.rest >> 21), u32(run) | u32(n - run) << 21 | (pair.rest >> 16 & 31) << 25};
  }
}
