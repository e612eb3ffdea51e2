// Ranges: for each query the stretch [L, R) of its level's entries in which the curve's window lies. The window is what
// the definition calls so: the entries of the stretch at positions below t(i). One thread a query, in the order of
// slots: those of a block stand at neighbouring entries, whose positions it copies to shared memory first.
#include "items.cuh"

constexpr int STEP = 8;                 // positions looked at together, after the first 32
constexpr int RANGES_THREADS = 256;
constexpr int STAGED_POSITIONS = 1024;            // positions in shared memory
constexpr int MARGIN = 128;             // of these before the first query

struct Walk {
  const int* positions;                 // of the batch item and head, as are the skip indices and all entries below
  const int* staged;                    // positions of STAGED_POSITIONS entries, from this one
  int staged_first;
  const int* fine;
  const int* coarse;
  int visible;
};

// Put in front of bits, as their lowest, whether a position is below `visible`.
__device__ inline u32 add_seen(u32 bits, int position, int visible) {
  return __funnelshift_l(u32(position - visible), bits, 1);
}

// Which of COUNT positions the query sees: the first in bit 0. They begin at a multiple of 16 bytes.
template <int COUNT> __device__ inline u32 seen(const int* positions, int visible) {
  u32 bits = 0;
#pragma unroll
  for (int n = COUNT / 4 - 1; n >= 0; --n) {
    const int4 four = reinterpret_cast<const int4*>(positions)[n];
    bits = add_seen(add_seen(bits, four.w, visible), four.z, visible);
    bits = add_seen(add_seen(bits, four.y, visible), four.x, visible);
  }
  return bits;
}

// Likewise, of the entries from `first`.
template <int COUNT> __device__ inline u32 seen_from(const Walk& w, int first) {
  const int place = first - w.staged_first;
  return seen<COUNT>(u32(place) <= u32(STAGED_POSITIONS - COUNT) ? w.staged + place : w.positions + first, w.visible);
}

__device__ inline int lowest(u32 bits) { return __ffs(int(bits)) - 1; }
__device__ inline int highest(u32 bits) { return 31 - __clz(int(bits)); }
__device__ inline u32 below(int bit) { return bit >= 32 ? ~0u : (1u << bit) - 1; }

// The n-th lowest of COUNT bits that is set, from 1.
template <int COUNT> __device__ inline int nth_lowest(u32 bits, int n) {
  int place = 0;
#pragma unroll
  for (int half = COUNT / 2; half > 0; half /= 2) {
    const int count = __popc(bits & ((1u << half) - 1));
    if (n > count) n -= count, bits >>= half, place += half;
  }
  return place;
}

// The next block of the head at or above `block` of which the query may see something; not below `stop` if there is
// none up to there.
__device__ inline int block_above(const Walk& w, int block, int stop) {
  while (block < stop) {
    if (block % BLOCK == 0 && w.coarse[block / BLOCK] >= w.visible) { block += BLOCK; continue; }
    const u32 bits = seen<STEP>(w.fine + block / STEP * STEP, w.visible) >> block % STEP;
    if (bits) return block + lowest(bits);
    block = block / STEP * STEP + STEP;
  }
  return block;
}

// The next one below `block`, or one that is below `first`.
__device__ inline int block_below(const Walk& w, int block, int first) {
  while (--block >= first) {
    if (block % BLOCK == BLOCK - 1 && w.coarse[block / BLOCK] >= w.visible) { block -= BLOCK - 1; continue; }
    const u32 bits = seen<STEP>(w.fine + block / STEP * STEP, w.visible) & ((2u << block % STEP) - 1);
    if (bits) return block / STEP * STEP + highest(bits);
    block = block / STEP * STEP;
  }
  return block;
}

// Walk from `entry` up to `stop` until `wanted` visible entries are found; `entry` becomes the end of the last of these
// and `nearest` the first. Most walks end within the 32 entries that are looked at together.
__device__ inline int walk_right(const Walk& w, int& entry, int stop, int wanted, int& nearest) {
  if (entry >= stop || wanted <= 0) return 0;
  const int start = entry / 4 * 4;
  u32 bits = seen_from<32>(w, start) & below(stop - start) & ~below(entry - start);
  int found = __popc(bits);
  bool nothing = found == 0;
  if (!nothing) {
    nearest = start + lowest(bits);
    entry = start + (found > wanted ? nth_lowest<32>(bits, wanted) : highest(bits)) + 1;
  }
  for (int at = start + 32; at < stop && found < wanted;) {
    if (nothing && at % BLOCK == 0) {
      at = block_above(w, at / BLOCK, (stop + BLOCK - 1) / BLOCK) * BLOCK;
      if (at >= stop) break;
    }
    const int first = at / STEP * STEP; // beyond a level's end, up to a multiple of 32, stand entries that nobody sees
    bits = seen_from<STEP>(w, first) & ~below(at - first);
    at = first + STEP;
    nothing = bits == 0;
    if (nothing) continue;
    if (found == 0) nearest = first + lowest(bits);
    const int missing = wanted - found;
    found += __popc(bits);
    entry = first + (found > wanted ? nth_lowest<STEP>(bits, missing) : highest(bits)) + 1;
  }
  return min(found, wanted);
}

// Walk from `entry` down to `first`; `entry` becomes the last one found.
__device__ inline int walk_left(const Walk& w, int& entry, int first, int wanted, int& nearest) {
  if (entry <= first || wanted <= 0) return 0;
  const int start = max((entry + 3) / 4 * 4 - 32, 0);
  u32 bits = seen_from<32>(w, start) & below(entry - start) & ~below(max(first - start, 0));
  int found = __popc(bits);
  bool nothing = found == 0;
  if (!nothing) {
    nearest = start + highest(bits);
    entry = start + (found > wanted ? nth_lowest<32>(bits, found - wanted + 1) : lowest(bits));
  }
  for (int at = start; at > first && found < wanted;) {
    if (nothing && at % BLOCK == 0) {
      at = block_below(w, at / BLOCK, first / BLOCK) * BLOCK + BLOCK;
      if (at <= first) break;
    }
    const int from = (at - 1) / STEP * STEP;
    bits = seen_from<STEP>(w, from) & below(at - from);
    at = from;
    nothing = bits == 0;
    if (nothing) continue;
    if (found == 0) nearest = from + highest(bits);
    found += __popc(bits);
    entry = from + (found > wanted ? nth_lowest<STEP>(bits, found - wanted + 1) : lowest(bits));
  }
  return min(found, wanted);
}

// What a query's weights are relative to: about the least squared distance of a selected key. The nearer of the keys on
// either side of the query serves, as long as no weight gets too large; else it is the least one. So some weight is 1
// and none is above `largest_weight`, whatever the distances are. Infinity if no key is selected.
struct Scale {
  Coordinate x[DK];
  const Point* points;
  Coordinate least = infinity();

  __device__ void add(const Point& point) {
    const Coordinate distance = squared_distance(x, point.x);
    least = distance < least ? distance : least;
  }
  __device__ void find(int left, int right, int visible, int before, int behind, Coordinate most) {
    const Point on_left = load_here<Point>(points + max(before, 0));  // both are on their way at once
    const Point on_right = load_here<Point>(points + max(behind, 0));
    if (before >= 0) add(on_left);
    if (behind >= 0) add(on_right);
    if (least <= most) return;
    for (int e = left; e < right; ++e) {
      const Point point = points[e];
      if (point.position < visible) add(point);
    }
  }
};

// Copy positions to shared memory from a little before `entry`. Contains a barrier.
__device__ inline int stage_positions(const Args& a, const int* positions, int entry, int4* staged) {
  const int first = max(entry - MARGIN, 0) / STEP * STEP;
  if (first + 4 * int(threadIdx.x) < a.entries)
    staged[threadIdx.x] = reinterpret_cast<const int4*>(positions + first)[threadIdx.x];
  __syncthreads();
  return first;
}

template <bool LISTED> __device__ inline void find_range(const Args& a) {
  __shared__ int4 staged[STAGED_POSITIONS / 4];
  const int slots = a.q_len * group_size(a), blocks = (slots + RANGES_THREADS - 1) / RANGES_THREADS;
  const Search search = search_numbered(a, int(blockIdx.x) / blocks);
  const int head_row = search.head_row, first_of_block = int(blockIdx.x) % blocks * RANGES_THREADS;
  const int of_head = first_of_block + int(threadIdx.x);
  const bool exists = of_head < slots;
  const int first_sequence = a.cu_seqlens ? sequence_of_token(a, first_of_block / group_size(a)) : 0;
  const int sequence = a.cu_seqlens && exists ? sequence_of_token(a, of_head / group_size(a)) : 0;
  const Sequence& s = sequences_of(a)[sequence];
  const i64 slot = i64(head_row) * slots + of_head, table = head_row * a.entries;
  const int2* places = static_cast<const int2*>(a.slot_places) + i64(search.number) * slots;
  const int2 place = exists ? places[of_head] : int2{0, 0};
  // Slots are in the order of entries: none of the block stands before its first one.
  const int first_entry = int(sequences_of(a)[first_sequence].entry) + places[first_of_block].y;
  const int row = int(s.entry);         // its first entry
  const bool measures = !LISTED && exists;
  Scale scale;
  scale.points = static_cast<const Point*>(a.points[search.curve]) + table;
  if (measures) {                       // the keys on either side are probably among these
    const Point* beside = scale.points + row + max(place.y - 3, 0);
    prefetch(beside);
    prefetch(beside + 4);
  }
  const Query query = query_of(a, head_row, sequence, place.x);
  Walk walk;
  walk.visible = int(query.visible);
  walk.positions = static_cast<const int*>(a.entry_positions) + search.number * a.entries;
  walk.fine = static_cast<const int*>(a.fine[search.curve]) + table / BLOCK;
  walk.coarse = static_cast<const int*>(a.coarse[search.curve]) + head_row * ((a.entries + COARSE - 1) / COARSE);
#pragma unroll
  for (int c = 0; c < DK; ++c) scale.x[c] = measures ? query_point(a, query)[c] : Coordinate(0);
  walk.staged = reinterpret_cast<const int*>(staged);
  walk.staged_first = stage_positions(a, walk.positions, first_entry, staged);
  if (!exists) return;
  int left = row + place.y, right = left;
  if (walk.visible > 0) {
    const int level = level_of(walk.visible, s.keys, s.levels), half = (a.window + 1) / 2;
    const int first = row + int(s.level_entry[level]), stop = first + int(level_length(s.keys, level));
    int before = -1, behind = -1, nearest = -1;
    int on_left = walk_left(walk, left, first, half, before);
    const int on_right = walk_right(walk, right, stop, a.window - on_left, behind);
    if (on_left == half) walk_left(walk, left, first, a.window - on_left - on_right, nearest);
    if (!LISTED && a.gamma) {
      const int head = head_in_batch(a, head_row) * group_size(a) + query.head;
      const Coordinate gamma = static_cast<const Coordinate*>(a.gamma)[head];
      scale.find(left, right, walk.visible, before, behind, gamma * gamma * a.largest_weight);
    }
  }
  if (LISTED) {
    if (search.curve == 0) static_cast<int*>(a.query_order)[slot] = place.x;
    static_cast<int2*>(a.ranges[search.curve])[query.at] = int2{left - row, right - row};
    return;
  }
  Whole<Slot> whole;
  Slot& to = whole.value;
#pragma unroll
  for (int c = 0; c < DK; ++c) to.x[c] = scale.x[c];
  to.nearest = scale.least;
  to.left = left;
  to.right = right;
  to.visible = walk.visible;
  to.number = place.x;
  whole.store(static_cast<Slot*>(a.slots) + slot);
}

ZETA_KERNEL(ranges_kernel, RANGES_THREADS, 4) { find_range<false>(a); }

// By queries, for lists.
ZETA_KERNEL(listed_ranges_kernel, RANGES_THREADS, 5) { find_range<true>(a); }
