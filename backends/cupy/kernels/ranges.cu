// Ranges: for each query the stretch [L, R) of its level's entries in which the curve's window lies. The window is what
// the definition calls so: the entries of the stretch at positions below t(i). One thread a query, in the order of
// slots: neighbours insert at neighbouring entries and walk over the same lines. Attention also wants the distance of
// the nearest.
#include "codes.cuh"

struct Walk {
  Coordinate x[DK];
  const Point* points;                  // of the batch item and head, as are the skip indices and all entries below
  const int* fine;
  const int* coarse;
  i64 visible;
  Coordinate nearest = infinity();

  // Count an entry in, if the query sees it.
  __device__ bool sees(i64 entry) {
    const Point point = points[entry];
    if (point.position >= visible) return false;
    const Coordinate distance = squared_distance(x, point.x);
    nearest = distance < nearest ? distance : nearest;
    return true;
  }
};

// Whether a whole block lies ahead of which the query sees nothing, and how long it is.
__device__ inline int invisible_ahead(const Walk& w, i64 entry, int step) {
  const i64 block = step > 0 ? entry : entry - 1;
  if (entry % BLOCK != 0 || w.fine[block / BLOCK] < w.visible) return 0;
  return entry % COARSE == 0 && w.coarse[block / COARSE] >= w.visible ? COARSE : BLOCK;
}

// Walk from `entry` down to `first` until `wanted` visible entries are found; `entry` becomes the last of these.
__device__ inline int walk_left(Walk& w, i64& entry, i64 first, int wanted) {
  int found = 0;
  for (i64 at = entry; at > first && found < wanted;) {
    if (const int skip = invisible_ahead(w, at, -1)) { at = max(at - skip, first); continue; }
    if (w.sees(--at)) { ++found; entry = at; }
  }
  return found;
}

// Walk from `entry` up to `stop`; `entry` becomes the end of the last visible entry found.
__device__ inline int walk_right(Walk& w, i64& entry, i64 stop, int wanted) {
  int found = 0;
  for (i64 at = entry; at < stop && found < wanted;) {
    if (const int skip = invisible_ahead(w, at, 1)) { at = min(at + skip, stop); continue; }
    if (w.sees(at++)) { ++found; entry = at; }
  }
  return found;
}

ZETA_KERNEL(ranges_kernel, 256) {
  const i64 slots = i64(a.batch) * a.q_heads * a.q_len;
  const i64 slot = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (slot >= slots) return;
  const i64 group = group_size(a), row = slot / (a.q_len * group);
  const int in_sequence = a.cu_seqlens ? sequence_of_token(a, int(slot % (a.q_len * group) / group)) : 0;
  const void* numbers = CURVES == 1 ? a.sorted_query_places : a.slots[a.curve];
  const int number = static_cast<const int*>(numbers)[slot];
  const Query query = query_of(a, row, in_sequence, number);
  const Sequence& s = sequences_of(a)[query.sequence];
  const i64 head_row = query.head_row;
  const auto write = [&](const Coordinate* x, i64 left, i64 right, Coordinate nearest) {
    if constexpr (CURVES == 1) {
      Slot whole;
#pragma unroll
      for (int c = 0; c < DK; ++c) whole.x[c] = x[c];
      whole.nearest = nearest;
      whole.left = int(left);
      whole.right = int(right);
      whole.visible = int(query.visible);
      whole.number = number;
      static_cast<Slot*>(a.slots[0])[slot] = whole;
    } else {
      static_cast<int2*>(a.ranges[a.curve])[query.at] = int2{int(left - s.entry), int(right - s.entry)};
      if (!a.nearest) return;
      Coordinate& least = static_cast<Coordinate*>(a.nearest)[query.at];
      least = a.curve > 0 && least < nearest ? least : nearest;
    }
  };
  if (s.keys == 0) return write(query_point(a, query), s.entry, s.entry, infinity());
  const i64 table = head_row * a.entries, blocks = (a.entries + COARSE - 1) / COARSE;
  Walk walk;
#pragma unroll
  for (int c = 0; c < DK; ++c) walk.x[c] = query_point(a, query)[c];
  walk.points = static_cast<const Point*>(a.points[a.curve]) + table;
  walk.fine = static_cast<const int*>(a.fine[a.curve]) + table / BLOCK;
  walk.coarse = static_cast<const int*>(a.coarse[a.curve]) + head_row * blocks;
  walk.visible = query.visible;
  const int level = level_of(query.visible, s.keys, s.levels);
  const i64 first = s.entry + s.level_entry[level], stop = first + level_length(s.keys, level);
  const u64* codes = static_cast<const u64*>(a.entry_codes) + head_row * a.entries;
  const u64 code = with_row(a, encode(a, walk.x, a.curve), head_row * a.num_sequences + query.sequence);
  i64 lo = first, hi = stop;
  while (lo < hi) {                     // equal codes count as before the query
    const i64 middle = (lo + hi) / 2;
    if (codes[middle] <= code) lo = middle + 1; else hi = middle;
  }
  const int half = (a.window + 1) / 2;
  i64 left = lo, right = lo;
  const int on_left = walk_left(walk, left, first, half);
  const int on_right = walk_right(walk, right, stop, a.window - on_left);
  if (on_left == half && on_left + on_right < a.window) walk_left(walk, left, first, a.window - on_left - on_right);
  write(walk.x, left, right, walk.nearest);
}
