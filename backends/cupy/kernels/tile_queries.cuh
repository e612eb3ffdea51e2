// 64 queries that are neighbours in code order, and the entries that they select: their ranges overlap, so that a block
// of threads walks over one slice for all of them. Each warp takes 16 queries; lane l serves queries l / 4 and l / 4 + 8.
#pragma once
#include "attention.cuh"
#include "tensor.cuh"
#include "tiles.cuh"

constexpr int PIECE = 32;               // neighbouring entries that are taken together
constexpr int PIECES = DIM <= 64 ? 2 : 1;
constexpr int STAGED = PIECE * PIECES;  // entries of a stage
constexpr int WIDE = 512;               // entries of a slice in which blocks that nobody sees are looked for
constexpr int LISTED = COARSE;          // blocks of such a slice that are looked at together

struct EntryStage {
  alignas(16) unsigned char rows[STAGED * ROW_BYTES];
  alignas(16) Point points[STAGED];
  int starts[PIECES];                   // the pieces' first entries; NO_KEY where there is none
};

struct EntryStages {
  EntryStage stages[STAGES];
  int least[WARPS], greatest[WARPS], visible[WARPS];
  u32 marks[LISTED / 32];               // bit b of word w: block 32 w + b is wanted
  unsigned short blocks[LISTED];        // which are
  int count;                            // of these
};

struct TileQuery {
  Coordinate x[DK];
  int left;                             // entries [left, left + length) of the batch item and head
  u32 length;
  int visible;                          // 0 where there is no query
  int number;                           // in the row; -1 where there is no query
  float nearest;                        // least squared distance of a selected key
  float square;                         // gamma^2

  __device__ bool exists() const { return number >= 0; }
};

// Where a query of a row stands.
struct QueryPlace {
  int head;                             // of all query heads of the batch item
  int token;                            // along N
  i64 at;                               // among all queries (batch, q_heads, q_len)

  __device__ QueryPlace(const Args& a, const SlotTile& tile, int number) {
    const int in_group = head_in_group(a, number, tile.queries);
    head = tile.head * a.group + in_group;
    token = tile.start + number - in_group * tile.queries;
    at = i64(tile.batch * a.q_heads + head) * a.q_len + token;
  }
  __device__ const Value* grad_row(const Args& a, const SlotTile& tile) const {
    return static_cast<const Value*>(a.grad_out) + tile.batch * a.g_batch_stride + head * a.g_head_stride +
           token * a.g_stride;
  }
};

// List the blocks of the fine skip index, from entry `at` on, that the queries of a tile may select from. All threads of a
// block together.
__device__ __noinline__ void list_blocks(const Args& a, int head_row, i64 first_slot, int count, int at,
                                         EntryStages& shared) {
  const int* fine = static_cast<const int*>(a.fine[0]) + head_row * (a.entries / BLOCK);
  const int* coarse = static_cast<const int*>(a.coarse[0]) + head_row * ((a.entries + COARSE - 1) / COARSE);
  const int first = at / BLOCK, query = int(threadIdx.x) / 32 * TILE + lane();  // a lane's own of the warp's 16
  int from = 0, to = 0, visible = 0;
  if (lane() < TILE && query < count) {
    const Slot& whole = slots_of(a)[first_slot + query];
    from = max(whole.left / BLOCK, first);
    to = min((whole.right + BLOCK - 1) / BLOCK, first + LISTED);
    visible = whole.visible;
  }
  __syncthreads();                      // the list before has been read
  if (threadIdx.x < LISTED / 32) shared.marks[threadIdx.x] = 0;
  __syncthreads();
  const auto mark = [&](int word, u32 bits) { atomicOr(shared.marks + word, bits); };
  constexpr int FEW = 4;                // blocks of a query that are taken unseen
  if (from < to && to - from <= FEW)
    for (int block = from - first; block < to - first; ++block) mark(block / 32, 1u << block % 32);
  for (u32 longs = __ballot_sync(FULL, to - from > FEW); longs; longs &= longs - 1) {
    const int owner = __ffs(int(longs)) - 1, seen = __shfl_sync(FULL, visible, owner);
    const int lo = __shfl_sync(FULL, from, owner), hi = __shfl_sync(FULL, to, owner), own = first / 32 + lane();
    for (u32 some = __ballot_sync(FULL, own >= lo / 32 && own * 32 < hi && coarse[own] < seen); some; some &= some - 1) {
      const int word = __ffs(int(some)) - 1, block = first + word * 32 + lane();
      const u32 vote = __ballot_sync(FULL, block >= lo && block < hi && fine[block] < seen);
      if (lane() == 0 && vote) mark(word, vote);
    }
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    u32 bits = shared.marks[lane()];
    int place = __popc(bits);
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int before = __shfl_up_sync(FULL, place, offset);
      if (lane() >= offset) place += before;
    }
    if (lane() == 31) shared.count = place;
    for (place -= __popc(bits); bits; bits &= bits - 1)
      shared.blocks[place++] = (unsigned short)(lane() * 32 + __ffs(int(bits)) - 1);
  }
  __syncthreads();
}

// The stretches of 32 entries that a block of queries may select from, in ascending order. Where the slice is long they
// are the blocks of the fine skip index that some query sees something of.
struct Pieces {
  const Args& a;
  const SlotTile& tile;
  EntryStages& shared;
  int greatest;                         // end of the slice
  bool wide;
  int at;                               // next entry, or place in the list of blocks
  int from;                             // the entry at which the list begins

  // The first entry of the next piece; beyond the slice where there is none.
  __device__ int next() {
    if (!wide) {
      at += PIECE;
      return at - PIECE;
    }
    while (at == shared.count) {
      from += LISTED * BLOCK;
      if (from >= greatest) {
        from -= LISTED * BLOCK;
        return NO_KEY - PIECE;
      }
      list();
    }
    return from + shared.blocks[at++] * BLOCK;
  }
  __device__ void list() {
    list_blocks(a, tile.head_row, tile.row_slot + tile.first, tile.stop - tile.first, from, shared);
    at = 0;
  }
};

// Entries on their way to shared memory.
struct EntryLoader {
  using Rows = RowLoader<STAGED>;
  const Point* points;                  // of the batch item and head
  const char* values;                   // of the sequence, this thread's column
  int stride;                           // bytes from row to row
  int greatest;                         // end of the slice
  int visible;                          // rows that no query sees are not read
  int starts[PIECES];                   // of the chunk looked up last
  int positions[Rows::COPIES];          // of this thread's rows in it

  __device__ EntryLoader(const Args& a, const SlotTile& tile, int greatest, int visible)
      : greatest(greatest), visible(visible) {
    points = static_cast<const Point*>(a.points[0]) + tile.head_row * a.entries;
    values = reinterpret_cast<const char*>(static_cast<const Value*>(a.v) + tile.batch * a.v_batch_stride +
                                           tile.head * a.v_head_stride + tile.start * a.v_stride);
    stride = int(a.v_stride) * int(sizeof(Value));
    keep(points);
    keep(values);
    keep(stride);
  }
  __device__ bool look_up(Pieces& pieces) {
#pragma unroll
    for (int p = 0; p < PIECES; ++p) starts[p] = pieces.next();
    if (starts[0] >= greatest) return false;
#pragma unroll
    for (int n = 0; n < Rows::COPIES; ++n) {
      const int e = starts[Rows::part<PIECE>(n)] + Rows::row(n) % PIECE;
      positions[n] = Rows::exists(n) && e < greatest ? points[u32(e)].position : NO_KEY;
    }
    return true;
  }
  __device__ void stage(EntryStage& stage) const {
    Rows::stage(shared_address(stage.rows), [&](int n, bool& exists) {
      exists = positions[n] < visible;
      return reinterpret_cast<const Value*>(values + i64(positions[n]) * stride);
    });
    constexpr int PARTS = sizeof(Point) / 16;
#pragma unroll
    for (int n = 0; n < (STAGED * PARTS + THREADS - 1) / THREADS; ++n) {
      const u32 part = n * THREADS + threadIdx.x;
      if (part >= STAGED * PARTS) break;
      const int e = (part / PARTS < PIECE ? starts[0] : starts[PIECES - 1]) + int(part / PARTS % PIECE);
      const char* from = reinterpret_cast<const char*>(points + u32(e)) + part % PARTS * 16;
      stage_16B(shared_address(stage.points) + part * 16, from, e < greatest);
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
      const Slot whole = slots_of(a)[tile.row_slot + min(slot, tile.stop - 1)];
      const bool exists = slot < tile.stop;
#pragma unroll
      for (int c = 0; c < DK; ++c) query.x[c] = whole.x[c];
      query.nearest = whole.nearest;
      query.left = whole.left;
      query.length = exists ? u32(whole.right - whole.left) : 0;
      query.visible = exists ? whole.visible : 0;
      query.number = exists ? whole.number : -1;
      const float gamma = static_cast<const float*>(a.gamma)[QueryPlace(a, tile, whole.number).head];
      query.square = gamma * gamma;
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
    Pieces pieces{a, tile, shared, greatest, greatest - least > WIDE, least, least / COARSE * COARSE};
    if (pieces.wide) pieces.list();
    EntryLoader loader(a, tile, greatest, visible);
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
            const int first = stage.starts[place / PIECE] + place % PIECE;
            if (first >= own_greatest || first + TILE <= own_least) continue;
            use(stage, shared_address(stage.rows) + place * ROW_BYTES, place, first);
          }
        });
  }

  // Whether this lane's n-th query selects an entry at a position.
  __device__ bool selects(int n, int entry, int position) const {
    return u32(entry - queries[n].left) < queries[n].length && position < queries[n].visible;
  }
};
