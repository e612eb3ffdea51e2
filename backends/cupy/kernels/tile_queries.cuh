// A tile of 16 queries that are neighbours in code order, and the entries that they select: their ranges overlap, so
// that all of them walk over one slice together. Lane l serves queries l / 4 and l / 4 + 8 of the tile.
#pragma once
#include "attention.cuh"
#include "tensor.cuh"
#include "tiles.cuh"

struct TileQuery {
  i64 at;                               // among all queries; -1 where there is none
  Coordinate x[DK];
  int visible;                          // 0 where there is no query
  int2 ranges[CURVES];                  // in entries of the batch item and head
  Coordinate cut_distance;
  int cut_position;
  float square;                         // gamma^2

  // Load the query in a place of the tile, and the address of its row of grad_out where that is wanted.
  __device__ void load(const Args& a, const SlotTile& tile, int place, const Value** grad = nullptr) {
    visible = 0;
    square = 1;
    cut_distance = 0;
    cut_position = 0;
    at = -1;
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = 0;
#pragma unroll
    for (int curve = 0; curve < CURVES; ++curve) ranges[curve] = int2{0, 0};
    if (tile.first + place >= tile.stop) return;
    const i64 slot = tile.row_slot + tile.first + place;
    const Query query = query_of(a, tile.head_row, tile.sequence, number_in_slot(a, 0, slot));
    at = query.at;
    visible = int(query.visible);
    const Coordinate* point = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = point[c];
    const int entry = int(sequences_of(a)[tile.sequence].entry);
#pragma unroll
    for (int curve = 0; curve < CURVES; ++curve) {
      const int2 range = range_in_slot(a, curve, slot, at);
      ranges[curve] = int2{range.x + entry, range.y + entry};
    }
    square = float(squared_gamma(a, head_of(a, query)));
    if (grad) *grad = grad_row(a, query);
    if (CUTS) {
      cut_distance = static_cast<const Coordinate*>(a.cut_distance)[at];
      cut_position = static_cast<const int*>(a.cut_position)[at];
    }
  }
  __device__ bool exists() const { return at >= 0; }
};

// Squared distance for weights: where it decides nothing, a compiler may contract it.
__device__ inline float weighing_distance(const Coordinate* x, const Coordinate* y) {
  if (CUTS) return squared_distance(x, y);
  float total = 0;
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    const float difference = x[c] - y[c];
    total += difference * difference;
  }
  return total;
}

// Whether a query with these ranges selects an entry of a curve. Ranks count from the row's first entry.
template <class Owner>
__device__ inline bool selects(const Args& a, const Owner& owner, int curve, int e, const Point& point, int first_entry,
                               Coordinate distance) {
  const int2 range = owner.ranges[curve];
  bool selected = u32(e - range.x) < u32(range.y - range.x) && point.position < owner.visible;
  for (int earlier = 0; earlier < curve; ++earlier) {
    const int2 other = owner.ranges[earlier];
    selected = selected && u32(point.rank(earlier) + first_entry - other.x) >= u32(other.y - other.x);
  }
  if (CUTS)
    selected = selected && before_cut(comparable(distance), point.position, owner.cut_distance, owner.cut_position);
  return selected;
}

// The blocks of 16 entries of a curve that a tile of queries may select from, in ascending order; blocks of which no
// query sees anything are left out by the skip index.
struct Blocks {
  const int* fine;                      // of the batch item and head
  const int* coarse;
  int2 ranges[2];                       // of this lane's queries
  int sees[2];                          // their t
  int least, greatest, visible;         // of all queries
  bool wide;                            // the slice is long: ask each query about each block
  int group;                            // next 32 coarse blocks to look at
  u32 coarse_left, left[2];             // blocks left of the coarse group, and first and second halves of fine blocks
  int coarse_first, fine_first;

  __device__ Blocks(const Args& a, int head_row, int curve, const TileQuery* queries) {
    const i64 blocks = (a.entries + COARSE - 1) / COARSE;
    fine = static_cast<const int*>(a.fine[curve]) + i64(head_row) * a.entries / BLOCK;
    coarse = static_cast<const int*>(a.coarse[curve]) + head_row * blocks;
    ranges[0] = queries[0].ranges[curve];
    ranges[1] = queries[1].ranges[curve];
    least = NO_KEY;
    greatest = 0;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      sees[n] = queries[n].visible;
      if (ranges[n].x < ranges[n].y) least = min(least, ranges[n].x), greatest = max(greatest, ranges[n].y);
    }
    least = warp_min(least);
    greatest = -warp_min(-greatest);
    visible = -warp_min(-max(sees[0], sees[1]));
    wide = greatest - least > COARSE - BLOCK;
    group = least == NO_KEY ? 0 : least / COARSE;
    coarse_left = left[0] = left[1] = 0;
    coarse_first = 0;
    if (least != NO_KEY && !wide) {     // 32 blocks of the fine index are enough
      find_blocks(least / BLOCK * BLOCK);
      group = greatest;
    }
  }
  __device__ void find_blocks(int from) {
    fine_first = from;
    const int start = from + lane() * BLOCK;
    const int position = start < greatest && start + BLOCK > least ? fine[start / BLOCK] : NO_KEY;
    left[0] = __ballot_sync(FULL, meets(start, TILE, position));
    left[1] = __ballot_sync(FULL, meets(start + TILE, TILE, position));
  }
  // Whether a query may select some of the entries [start, start + size), the least position of which is `position`.
  // Each lane asks about entries of its own, all lanes together.
  __device__ bool meets(int start, int size, int position) const {
    if (!wide) return start < greatest && start + size > least && position < visible;
    bool any = false;
#pragma unroll 1
    for (int row = 0; row < 8; ++row) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int x = __shfl_sync(FULL, ranges[n].x, row * 4), y = __shfl_sync(FULL, ranges[n].y, row * 4);
        const int seen = __shfl_sync(FULL, sees[n], row * 4);
        any = any || (x < start + size && y > max(start, x) && position < seen);
      }
    }
    return any;
  }
  __device__ int next() {
    for (;;) {
      if (left[0] | left[1]) {
        const int even = left[0] ? 2 * __ffs(int(left[0])) : 999, odd = left[1] ? 2 * __ffs(int(left[1])) + 1 : 999;
        if (even < odd) { left[0] &= left[0] - 1; return fine_first + (even - 2) * TILE; }
        left[1] &= left[1] - 1;
        return fine_first + (odd - 2) * TILE;
      }
      if (coarse_left) {
        const int from = (coarse_first + __ffs(int(coarse_left)) - 1) * COARSE;
        coarse_left &= coarse_left - 1;
        find_blocks(from);
        continue;
      }
      if (least == NO_KEY || group > (greatest - 1) / COARSE) return -1;
      coarse_first = group;
      const int start = (group + lane()) * COARSE;
      const int position = start < greatest && start + COARSE > least ? coarse[start / COARSE] : NO_KEY;
      coarse_left = __ballot_sync(FULL, meets(start, COARSE, position));
      group += 32;
    }
  }
};

// 16 entries of a curve and the rows of their values, on their way to shared memory.
struct EntryStage {
  alignas(16) unsigned char rows[STAGED_ROWS];
  alignas(16) Point points[TILE];
};

struct EntryLoader {
  const Point* points;                  // of the batch item and head
  const Value* values;                  // of the sequence
  int stride;
  int visible;                          // entries that no query of the tile sees are not read
  int position;                         // of entry `lane` of the block looked up last

  __device__ EntryLoader(const Args& a, const SlotTile& tile, int curve, int greatest_visible) {
    points = static_cast<const Point*>(a.points[curve]) + tile.head_row * a.entries;
    values = value_row(a, tile.head_row, sequences_of(a)[tile.sequence].start);
    stride = int(a.v_stride);
    visible = greatest_visible;
    position = 0;
  }
  __device__ void look_up(int block) { position = points[block + lane() % TILE].position; }
  __device__ void stage(SharedAddress to, int block) const {
    stage_rows(to, [&](int row, const Value*& from) {
      const int at = __shfl_sync(FULL, position, row);
      from = values + i64(at) * stride;
      return at < visible;
    });
    stage_bytes<TILE * sizeof(Point)>(to + STAGED_ROWS, points + block);
  }
};
