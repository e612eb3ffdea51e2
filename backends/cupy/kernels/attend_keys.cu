// Attention to the selection, backward, at the keys: one warp an entry of the launch's curve and level. It looks for
// the queries that select the entry in tiles of slots, 32 slots at once, and keeps the sums of its key. Launched for
// all levels above 0, which leave sums in rows of their own, then for level 0, which adds them to its own: no two warps
// ever add to one place, the order of every sum is fixed.
#include "attention.cuh"
#include "extents.cuh"

// Whether a query selects an entry of the launch's curve; fills the distance.
__device__ inline bool selects(const Args& a, const Query& query, int2 range, const Point& point, int e,
                               Coordinate& distance) {
  if (e < range.x || e >= range.y || point.position >= query.visible) return false;
  for (int earlier = 0; earlier < a.curve; ++earlier) {
    const int2 other = static_cast<const int2*>(a.ranges[earlier])[query.at];
    const int rank = point.rank(earlier);
    if (rank >= other.x && rank < other.y) return false;
  }
  distance = comparable(squared_distance(query_point(a, query), point.x));
  return !CUTS ||
         before_cut(distance, point.position, static_cast<const Coordinate*>(a.cut_distance)[query.at],
                    static_cast<const int*>(a.cut_position)[query.at]);
}

ZETA_KERNEL(attend_bwd_keys_kernel, 256) {
  EntryTile tile;
  if (!find_entry_tile<1>(a, warp_of_grid(), tile)) return;
  const Sequence& s = sequences_of(a)[tile.sequence];
  const int e = int(tile.first);
  const i64 head_row = tile.head_row;
  const Point point = static_cast<const Point*>(a.points[a.curve])[head_row * a.entries + s.entry + e];
  const i64 token = s.start + point.position, key = head_row * a.k_len + token;
  const Value* values_at = value_row(a, tile.head_row, token);
  const i64 row_slot = first_slot(a, head_row, s);
  const int slots = s.queries * group_size(a);
  const Extent* extents =
      static_cast<const Extent*>(a.extents) + slot_tiles_before<SLOT_TILE>(a, head_row, tile.sequence);
  int from, to;
  tiles_that_meet(extents, (slots + SLOT_TILE - 1) / SLOT_TILE, e, e + 1, from, to);
  Sum* sum_k = static_cast<Sum*>(a.sum_k) + key * DK;
  Sum* sum_v = static_cast<Sum*>(a.sum_v) + key * a.value_dim;
  Sum* level_k = static_cast<Sum*>(a.level_k);
  Sum* level_v = static_cast<Sum*>(a.level_v);
  const auto row_of_level = [&](int level) { return level_row(a, head_row, s, level, point.position); };
  int levels = 1;                       // that the key is on
  while (tile.level == 0 && levels < s.levels && point.position < level_length(s.keys, levels)) ++levels;
  Sum grad_k[DK] = {};
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    Columns values, sums;
    values.load(values_at, first, a.value_dim);
    sums.clear();
    if (tile.level == 0 && a.carried) sums.load(sum_v, first, a.value_dim);
    for (int level = 1; level < levels; ++level) {
      Columns others;
      others.load(level_v + row_of_level(level) * a.value_dim, first, a.value_dim);
      sums.add(others, 1);
    }
    for (int group = from; group < to; group += 32) {
      bool meets = false;
      if (group + lane() < to) {
        const Extent extent = extents[group + lane()];
        meets = extent.left <= e && extent.right > e && extent.visible > point.position;
      }
      for (u32 tiles = __ballot_sync(FULL, meets); tiles;) {  // two at once
        const int low_tile = __ffs(int(tiles)) - 1;
        tiles &= tiles - 1;
        const int high_tile = tiles ? __ffs(int(tiles)) - 1 : -1;
        tiles &= tiles - 1;
        const int own_tile = lane() < SLOT_TILE ? low_tile : high_tile;
        const int slot = own_tile < 0 ? slots : (group + own_tile) * SLOT_TILE + lane() % SLOT_TILE;
        Query query = {};
        Coordinate distance = 0;
        bool selected = false;
        if (slot < slots) {
          query = query_of(a, head_row, tile.sequence, number_in_slot(a, a.curve, row_slot + slot));
          selected = selects(a, query, range_in_slot(a, a.curve, row_slot + slot, query.at), point, e, distance);
        }
        const Sum inverse = selected ? inverse_normalizer(a, query.at) : Sum(0);
        selected = inverse != 0;
        const Sum u = selected ? 1 / (Sum(distance) + squared_gamma(a, head_of(a, query))) : Sum(0), p = u * inverse;
        Sum product = 0;
        for (u32 left = __ballot_sync(FULL, selected); left; left &= left - 1) {
          const int owner = __ffs(int(left)) - 1;
          Query other = query;          // the fields that say where its row of grad_out is
          other.head = __shfl_sync(FULL, query.head, owner);
          other.token = __shfl_sync(FULL, query.token, owner);
          other.head_row = tile.head_row;
          Columns g;
          g.load(grad_row(a, other), first, a.value_dim);
          const Sum sum = warp_sum(g.dot(values));
          if (lane() == owner) product = sum;
          sums.add(g, __shfl_sync(FULL, p, owner));
        }
        if (selected) {
          const Sum mean = first == 0 ? static_cast<const Sum*>(a.delta)[query.at] : Sum(0);
          const Sum slope = 2 * u * p * (product - mean);
          const Coordinate* x = query_point(a, query);
#pragma unroll
          for (int c = 0; c < DK; ++c) grad_k[c] += slope * (Sum(x[c]) - Sum(point.x[c]));
        }
      }
    }
    if (tile.level > 0) sums.store(level_v + row_of_level(tile.level) * a.value_dim, first, a.value_dim);
    else if (a.last) sums.store(static_cast<Value*>(a.grad_v) + key * a.value_dim, first, a.value_dim);
    else sums.store(sum_v, first, a.value_dim);
  }
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    Sum sum = warp_sum(grad_k[c]);
    if (lane() != 0) continue;
    if (tile.level == 0 && a.carried) sum += sum_k[c];
    for (int level = 1; level < levels; ++level) sum += level_k[row_of_level(level) * DK + c];
    if (tile.level > 0) level_k[row_of_level(tile.level) * DK + c] = sum;
    else if (a.last) static_cast<Coordinate*>(a.grad_k)[key * DK + c] = Coordinate(sum);
    else sum_k[c] = sum;
  }
}
