// A tile of 16 queries that are neighbours in code order, and the entries that they select: their ranges overlap, so that
// all of them walk over one slice together. Lane l serves queries l / 4 and l / 4 + 8 of the tile.
#pragma once
#include "attention.cuh"
#include "tensor.cuh"
#include "tiles.cuh"

struct TileQuery {
  Query query;
  Coordinate x[DK];
  int visible;                          // 0 where there is no query
  int2 ranges[CURVES];                  // in entries of the batch item and head
  Coordinate cut_distance;
  int cut_position;
  float square;                         // gamma^2

  __device__ void load(const Args& a, const SlotTile& tile, int place) {
    visible = 0;
    square = 1;
    cut_distance = 0;
    cut_position = 0;
    query = {};
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = 0;
#pragma unroll
    for (int curve = 0; curve < CURVES; ++curve) ranges[curve] = int2{0, 0};
    if (tile.first + place >= tile.stop) return;
    const int number = static_cast<const int*>(a.slots[0])[tile.row_slot + tile.first + place];
    query = query_of(a, tile.head_row, tile.sequence, number);
    visible = int(query.visible);
    const Coordinate* point = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = point[c];
    const int entry = int(sequences_of(a)[tile.sequence].entry);
#pragma unroll
    for (int curve = 0; curve < CURVES; ++curve) {
      const int2 range = static_cast<const int2*>(a.ranges[curve])[query.at];
      ranges[curve] = int2{range.x + entry, range.y + entry};
    }
    square = float(squared_gamma(a, head_of(a, query)));
    if (a.cut_position) {
      cut_distance = static_cast<const Coordinate*>(a.cut_distance)[query.at];
      cut_position = static_cast<const int*>(a.cut_position)[query.at];
    }
  }
  __device__ bool exists(const SlotTile& tile, int place) const { return tile.first + place < tile.stop; }
};

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
  if (a.cut_position)
    selected = selected && before_cut(comparable(distance), point.position, owner.cut_distance, owner.cut_position);
  return selected;
}

// The blocks of 16 entries of a curve that a tile of queries may select from, in ascending order; blocks of which no
// query sees anything are left out by the skip index.
struct Blocks {
  const int* fine;                      // of the batch item and head
  const int* coarse;
  int2 first, second;                   // ranges of this lane's queries
  int least, greatest, visible;         // of all queries
  bool wide;                            // the slice is long: ask each query about each block
  int group;                            // next 32 coarse blocks to look at
  u32 coarse_left, left[2];             // blocks left of the coarse group, and of the coarse block: first and second halves
  int coarse_first, fine_first;

  __device__ Blocks(const Args& a, int head_row, int curve, const TileQuery& q0, const TileQuery& q1) {
    const i64 blocks = (a.entries + COARSE - 1) / COARSE;
    fine = static_cast<const int*>(a.fine[curve]) + i64(head_row) * a.entries / BLOCK;
    coarse = static_cast<const int*>(a.coarse[curve]) + head_row * blocks;
    first = q0.ranges[curve];
    second = q1.ranges[curve];
    least = NO_KEY;
    greatest = 0;
    if (first.x < first.y) least = first.x, greatest = first.y;
    if (second.x < second.y) least = min(least, second.x), greatest = max(greatest, second.y);
    least = warp_min(least);
    greatest = -warp_min(-greatest);
    visible = -warp_min(-max(q0.visible, q1.visible));
    wide = greatest - least > 512;
    group = least == NO_KEY ? 0 : least / COARSE;
    coarse_left = left[0] = left[1] = 0;
    coarse_first = fine_first = 0;
  }
  // Whether entries [start, start + size) meet a range; each lane asks about entries of its own, all lanes together.
  __device__ bool meets(int start, int size) const {
    if (!wide) return start < greatest && start + size > least;
    bool any = false;
#pragma unroll
    for (int row = 0; row < 8; ++row) {
      const int x0 = __shfl_sync(FULL, first.x, row * 4), y0 = __shfl_sync(FULL, first.y, row * 4);
      const int x1 = __shfl_sync(FULL, second.x, row * 4), y1 = __shfl_sync(FULL, second.y, row * 4);
      any = any || (x0 < start + size && y0 > max(start, x0)) || (x1 < start + size && y1 > max(start, x1));
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
        fine_first = (coarse_first + __ffs(int(coarse_left)) - 1) * COARSE;
        coarse_left &= coarse_left - 1;
        const int start = fine_first + lane() * BLOCK;
        const bool seen = start < greatest && start + BLOCK > least && fine[start / BLOCK] < visible;
        left[0] = __ballot_sync(FULL, meets(start, TILE) && seen);
        left[1] = __ballot_sync(FULL, meets(start + TILE, TILE) && seen);
        continue;
      }
      if (least == NO_KEY || group > (greatest - 1) / COARSE) return -1;
      coarse_first = group;
      const int start = (group + lane()) * COARSE;
      const bool seen = start < greatest && start + COARSE > least && coarse[start / COARSE] < visible;
      coarse_left = __ballot_sync(FULL, meets(start, COARSE) && seen);
      group += 32;
    }
  }
};

// 16 entries of a curve and the rows of their values, on their way to shared memory.
struct EntryStage {
  alignas(16) unsigned char rows[TILE * ROW_BYTES];
  alignas(16) Point points[TILE];
};

struct EntryLoader {
  const Point* points;                  // of the batch item and head
  const Value* values;                  // of the sequence
  i64 stride;
  int visible;                          // entries that no query of the tile sees are not read
  int position;                         // of entry `lane` of the block looked up last

  __device__ EntryLoader(const Args& a, const SlotTile& tile, int curve, int greatest_visible) {
    points = static_cast<const Point*>(a.points[curve]) + tile.head_row * a.entries;
    values = value_row(a, tile.head_row, sequences_of(a)[tile.sequence].start);
    stride = a.v_stride;
    visible = greatest_visible;
    position = 0;
  }
  __device__ void look_up(int block) { position = points[block + lane() % TILE].position; }
  __device__ void stage(EntryStage& to, int block) const {
    stage_rows(to.rows, [&](int row) {
      const int at = __shfl_sync(FULL, position, row);
      return at < visible ? values + at * stride : nullptr;
    });
    constexpr int CHUNKS = sizeof(Point) / 16;
    const unsigned char* from = reinterpret_cast<const unsigned char*>(points + block);
    unsigned char* into = reinterpret_cast<unsigned char*>(to.points);
    for (int chunk = lane(); chunk < TILE * CHUNKS; chunk += 32) stage_16B(into + chunk * 16, from + chunk * 16, true);
  }
};
