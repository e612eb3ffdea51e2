// 64 queries that are neighbours in code order, and the entries that they select: their ranges overlap, so that a block
// of threads walks over one slice for all of them. Each warp takes 16 queries; lane l serves queries l / 4 and l / 4 + 8.
#pragma once
#include "attention.cuh"
#include "tensor.cuh"
#include "tiles.cuh"

constexpr int PIECE = 32;               // neighbouring entries that are taken together
constexpr int PIECES = DIM <= 64 ? 2 : 1;
constexpr int STAGED = PIECE * PIECES;  // entries of a stage
constexpr int MARKS = 128;              // words of marked blocks
constexpr int WIDE = 512;               // entries of a slice in which blocks that nobody sees are looked for

struct EntryStage {
  alignas(16) unsigned char rows[STAGED * ROW_BYTES];
  alignas(16) Point points[STAGED];
  int starts[PIECES];                   // the pieces' first entries; -1 where there is none
};

struct EntryStages {
  EntryStage stages[STAGES];
  int least[WARPS], greatest[WARPS], visible[WARPS];
  u32 marks[MARKS];                     // bit b of word w: block 32 w + b of the fine skip index is wanted
};

struct TileQuery {
  Coordinate x[DK];
  int left;                             // entries [left, left + length) of the batch item and head
  u32 length;
  int visible;                          // 0 where there is no query
  int number;                           // in the row; -1 where there is no query
  float square;                         // gamma^2

  __device__ bool exists() const { return number >= 0; }
};

// Where a query of a row stands among all.
__device__ inline Query query_of_tile(const Args& a, const SlotTile& tile, int number) {
  Query query;
  query.sequence = tile.sequence;
  query.head_row = tile.head_row;
  query.head = number < tile.queries ? 0 : number / tile.queries;
  query.token = tile.start + number - query.head * tile.queries;
  query.at = i64(tile.head_row * group_size(a) + query.head) * a.q_len + query.token;
  query.visible = 0;
  return query;
}

// The stretches of 32 entries that a block of queries may select from, in ascending order. Where the slice is long they
// are the blocks of the fine skip index that some query sees something of.
struct Pieces {
  u32* marks;
  const int* fine;                      // of the batch item and head
  const int* coarse;
  int left, right, visible;             // of query `lane` of the warp's 16
  int greatest;                         // end of the slice
  bool wide;
  int at;                               // next entry, or the first of the marked blocks
  int word;                             // of the marks, looked at last
  u32 bits;                             // left of it

  __device__ int next() {
    if (!wide) {
      const int start = at;
      at += PIECE;
      return start < greatest ? start : -1;
    }
    while (!bits) {
      ++word;
      if (at + word * COARSE >= greatest) return -1;
      if (word == MARKS) {
        at += MARKS * COARSE;
        word = 0;
        mark();
      }
      bits = marks[word];
    }
    const int block = word * 32 + __ffs(int(bits)) - 1;
    bits &= bits - 1;
    return at + block * BLOCK;
  }

  // Mark the blocks after `at` that a query may select from, as many as there are marks. All threads together.
  __device__ void mark() {
    const int first = at / BLOCK;
    const int from = max(left / BLOCK, first), to = min((right + BLOCK - 1) / BLOCK, first + MARKS * 32);
    __syncthreads();                    // the marks before have been read
    for (int n = threadIdx.x; n < MARKS; n += THREADS) marks[n] = 0;
    __syncthreads();
    constexpr int FEW = 4;              // blocks of a query that are taken unseen
    if (from < to && to - from <= FEW)
      for (int block = from; block < to; ++block) atomicOr(marks + (block - first) / 32, 1u << (block - first) % 32);
    for (u32 longs = __ballot_sync(FULL, to - from > FEW); longs; longs &= longs - 1) {
      const int owner = __ffs(int(longs)) - 1, seen = __shfl_sync(FULL, visible, owner);
      const int lo = __shfl_sync(FULL, from, owner), hi = __shfl_sync(FULL, to, owner);
      for (int group = lo / 32; group * 32 < hi; group += 32) {
        const int own = group + lane();
        for (u32 some = __ballot_sync(FULL, own * 32 < hi && coarse[own] < seen); some; some &= some - 1) {
          const int found = group + __ffs(int(some)) - 1, block = found * 32 + lane();
          const u32 vote = __ballot_sync(FULL, block >= lo && block < hi && fine[block] < seen);
          if (lane() == 0 && vote) atomicOr(marks + found - first / 32, vote);
        }
      }
    }
    __syncthreads();
  }
};

// Entries on their way to shared memory.
struct EntryLoader {
  using Rows = RowLoader<STAGED>;
  const Point* points;                  // of the batch item and head
  const Value* values;                  // of the sequence
  int stride;
  int greatest;                         // end of the slice
  int visible;                          // rows that no query sees are not read
  int starts[PIECES];                   // of the chunk looked up last
  int positions[Rows::COPIES];          // of this thread's rows in it

  __device__ int entry(int place) const {
    const int start = PIECES == 1 || place < PIECE ? starts[0] : starts[PIECES - 1];
    return start >= 0 && start + place % PIECE < greatest ? start + place % PIECE : -1;
  }
  __device__ bool look_up(Pieces& pieces) {
#pragma unroll
    for (int p = 0; p < PIECES; ++p) starts[p] = pieces.next();
    if (starts[0] < 0) return false;
#pragma unroll
    for (int n = 0; n < Rows::COPIES; ++n) {
      const int e = Rows::row(n) < STAGED ? entry(Rows::row(n)) : -1;
      positions[n] = e >= 0 ? points[e].position : NO_KEY;
    }
    return true;
  }
  __device__ void stage(EntryStage& stage) const {
    Rows::stage(shared_address(stage.rows), [&](int n, bool& exists) {
      exists = positions[n] < visible;
      return values + i64(positions[n]) * stride;
    });
    constexpr int PARTS = sizeof(Point) / 16;
#pragma unroll
    for (int n = 0; n < (STAGED * PARTS + THREADS - 1) / THREADS; ++n) {
      const int part = n * THREADS + int(threadIdx.x);
      if (part >= STAGED * PARTS) break;
      const int e = entry(part / PARTS);
      const char* from = reinterpret_cast<const char*>(points + max(e, 0)) + part % PARTS * 16;
      stage_16B(shared_address(stage.points) + part * 16, from, e >= 0);
    }
    if (threadIdx.x < PIECES) stage.starts[threadIdx.x] = threadIdx.x == 0 ? starts[0] : starts[PIECES - 1];
  }
};

// One block's queries, and the walk over what they select.
struct QueryBlock {
  SlotTile tile;
  TileQuery queries[2];                 // of this lane

  // Find the block's queries; false where there are none.
  __device__ bool find(const Args& a) {
    if (!find_slot_tile<GROUP>(a, blockIdx.x, tile)) return false;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      TileQuery& query = queries[n];
      const int slot = slot_of_lane(n);
      query = TileQuery{};
      query.number = -1;
      query.square = 1;
      if (slot >= tile.stop) continue;
      const Slot whole = slots_of(a)[tile.row_slot + slot];
#pragma unroll
      for (int c = 0; c < DK; ++c) query.x[c] = whole.x[c];
      query.left = whole.left;
      query.length = u32(whole.right - whole.left);
      query.visible = whole.visible;
      query.number = whole.number;
      query.square = squared_gamma(a, head_of(a, query_of_tile(a, tile, whole.number)));
    }
    return true;
  }
  __device__ int slot_of_lane(int n) const { return tile.first + int(threadIdx.x) / 32 * TILE + lane() / 4 + 8 * n; }

  // Let `use(stage, rows, place, first)` see all blocks of 16 entries that may hold some of this warp's: `place` is the
  // first of them in the stage, `rows` where its row stands, `first` its number.
  template <class Use> __device__ void visit(const Args& a, EntryStages& shared, Use use) const {
    int least = NO_KEY, greatest = 0, visible = 0;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (queries[n].length == 0) continue;
      least = min(least, queries[n].left);
      greatest = max(greatest, queries[n].left + int(queries[n].length));
      visible = max(visible, queries[n].visible);
    }
    const int own_least = least_of_warp(least), own_greatest = -least_of_warp(-greatest), warp = threadIdx.x / 32;
    shared.least[warp] = own_least;
    shared.greatest[warp] = own_greatest;
    shared.visible[warp] = -least_of_warp(-visible);
    __syncthreads();
#pragma unroll
    for (int n = 0; n < WARPS; ++n) {
      least = min(least, shared.least[n]);
      greatest = max(greatest, shared.greatest[n]);
      visible = max(visible, shared.visible[n]);
    }
    Pieces pieces;
    pieces.greatest = greatest;
    pieces.wide = greatest - least > WIDE;
    pieces.at = least;
    if (pieces.wide) start_marking(a, shared, pieces);
    EntryLoader loader;
    loader.points = static_cast<const Point*>(a.points[0]) + tile.head_row * a.entries;
    loader.values = value_row(a, tile.head_row, tile.start);
    loader.stride = int(a.v_stride);
    loader.greatest = greatest;
    loader.visible = visible;
    bool more = loader.look_up(pieces);
    pipeline(
        [&](int buffer) {
          if (!more) return false;
          loader.stage(shared.stages[buffer]);
          more = loader.look_up(pieces);
          return true;
        },
        [&](int buffer) {
          const EntryStage& stage = shared.stages[buffer];
#pragma unroll 1
          for (int place = 0; place < STAGED; place += TILE) {
            const int start = stage.starts[place / PIECE], first = start + place % PIECE;
            if (start < 0 || first >= own_greatest || first + TILE <= own_least) continue;
            use(stage, shared_address(stage.rows) + place * ROW_BYTES, place, first);
          }
        });
  }

  __device__ void start_marking(const Args& a, EntryStages& shared, Pieces& pieces) const {
    const i64 blocks = (a.entries + COARSE - 1) / COARSE;
    pieces.marks = shared.marks;
    pieces.fine = static_cast<const int*>(a.fine[0]) + tile.head_row * (a.entries / BLOCK);
    pieces.coarse = static_cast<const int*>(a.coarse[0]) + tile.head_row * blocks;
    pieces.left = pieces.right = pieces.visible = 0;
    const int slot = tile.first + int(threadIdx.x) / 32 * TILE + lane();
    if (lane() < TILE && slot < tile.stop) {
      const Slot& whole = slots_of(a)[tile.row_slot + slot];
      pieces.left = whole.left;
      pieces.right = whole.right;
      pieces.visible = whole.visible;
    }
    pieces.at = pieces.at / COARSE * COARSE;
    pieces.word = -1;
    pieces.bits = 0;
    pieces.mark();
  }

  // Whether this lane's n-th query selects an entry at a position.
  __device__ bool selects(int n, int entry, int position) const {
    return u32(entry - queries[n].left) < queries[n].length && position < queries[n].visible;
  }
};
