// Attention to the selection, backward, at the keys: one warp an entry of the launch's curve and level. It looks for
// the queries that select the entry in tiles of slots, 32 slots at once, and keeps the sums of its key. Launched for
// all levels above 0, which leave sums in rows of their own, then for level 0, which adds them to its own: no two warps
// ever add to one place, the order of every sum is fixed.
#include "attention.cuh"
#include "extents.cuh"

// Whether a query selects an entry; fills the distance.
__device__ inline bool selects(const Args& a, const Query& query, const Slot& slot, const Point& point, int e,
                               Coordinate& distance) {
  if (e < slot.left || e >= slot.right || point.position >= slot.visible) return false;
  distance = comparable(squared_distance(query_point(a, query), point.x));
  return true;
}

ZETA_KERNEL(attend_bwd_keys_kernel, 256, BLOCKS) {
  EntryTile tile;
  if (!find_entry_tile<1>(a, u32(warp_of_grid()), tile)) return;
  const Sequence& s = sequences_of(a)[tile.sequence];
  const i64 head_row = tile.head_row;
  const Point point = static_cast<const Point*>(a.points[0])[head_row * a.entries + tile.first];
  const i64 token = s.start + point.position, key = head_row * a.k_len + token;
  const Value* values_at = value_row(a, tile.head_row, token);
  const i64 row_slot = first_slot(a, head_row, s);
  const int slots = s.queries * group_size(a);
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
    SlotTiles tiles(a, tile, point.position);
    for (int found = tiles.next(); found >= 0; found = tiles.next()) {
      const int slot = found * SLOT_TILE + lane();
      Query query = {};
      Coordinate distance = 0;
      bool selected = false;
      if (slot < slots) {
        const Slot& whole = slots_of(a)[row_slot + slot];
        query = query_of(a, head_row, tile.sequence, whole.number);
        selected = selects(a, query, whole, point, tile.first, distance);
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
