// The way of pairs from the tiles of queries that make them to their groups of keys.
#include "tile_pairs.cuh"

// Places of keys, and counts of 0, before pairs are made. One thread a key.
ZETA_KERNEL(key_places_kernel, 256) {
  const i64 n = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n <= count_groups(a)) static_cast<GroupCounts*>(a.group_counts)[n] = GroupCounts{0, 0, 0, 0};
  if (!a.key_places || n >= i64(a.batch) * a.kv_heads * a.k_len) return;
  const int place = int(n % a.k_len);
  static_cast<int*>(a.key_places)[n - place + static_cast<const int*>(a.key_order)[n]] = place;
}

// Where the pairs of each group begin, and the parts of those that are heavy. One thread a group.
ZETA_KERNEL(group_starts_kernel, 256) {
  const i64 group = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  GroupCounts* counts = static_cast<GroupCounts*>(a.group_counts);
  GroupCounts& all = counts[count_groups(a)];
  const bool exists = group < count_groups(a);
  const int pairs = exists ? counts[group].pairs : 0;
  int stop = pairs;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(FULL, stop, offset);
    if (lane() >= offset) stop += other;
  }
  int first = 0;
  if (lane() == 31) first = atomicAdd(&all.pairs, stop);
  first = __shfl_sync(FULL, first, 31);
  if (!exists) return;
  counts[group].start = first + stop - pairs;
  const int parts = parts_of(pairs);
  if (parts == 0) return;
  const int part = atomicAdd(&all.start, parts);
  counts[group].part = part;
  for (int n = 0; n < parts; ++n) static_cast<HeavyPart*>(a.heavy_parts)[part + n] = HeavyPart{int(group), n};
}

// Move pairs to their groups. A warp takes a tile.
ZETA_KERNEL(move_pairs_kernel, 256) {
  const int tiles = tiles_of_head(a);
  const i64 tile = warp_of_grid();
  if (tile >= i64(a.batch) * a.kv_heads * tiles) return;
  const u32 visit = u32(tile % tiles) * rounds_of(a);
  const TilePair* pairs = static_cast<const TilePair*>(a.tile_pairs) + tile * TILE * a.width;
  GroupCounts* counts = static_cast<GroupCounts*>(a.group_counts);
  const int count = static_cast<const int*>(a.tile_counts)[tile];
#pragma unroll 4
  for (int n = lane(); n < count; n += 32) {
    const TilePair pair = pairs[n];
    GroupCounts& group = counts[pair.key / TILE];
    const int place = group.start + atomicAdd(&group.moved, 1);
    static_cast<GroupPair*>(a.group_pairs)[place] =
        GroupPair{visit + (pair.rest >> 21), (pair.rest & 0x1fffff) | pair.key % TILE << 21};
  }
}
