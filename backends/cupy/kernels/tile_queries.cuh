// 64 queries that are neighbours in code order, and the entries that they select: their ranges overlap, so that a block
// of threads walks over one slice for all of them. Each warp takes 16 queries; lane l serves queries l / 4 and l / 4 + 8.
#pragma once
#include "attention.cuh"
#include "tensor.cuh"
#include "tiles.cuh"

constexpr int FIT = 46000 / (ROW_BYTES + int(sizeof(Point))) / BLOCK * BLOCK;
constexpr int STAGED = FIT < 256 ? FIT : 256;  // entries at a time
constexpr int WIDE = 512;               // entries of a slice in which blocks that nobody sees are looked for
constexpr int LISTED = 512;             // blocks of such a slice that are looked at together

struct EntryStage {
  alignas(16) unsigned char rows[STAGED * ROW_BYTES];
  alignas(16) Point points[STAGED];
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
                                         EntryStage& shared) {
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
    u32 bits = lane() < LISTED / 32 ? shared.marks[lane()] : 0;
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

// The slice of entries that a block of queries may select from, batch by batch. Where it is long, only the blocks of the
// fine skip index that some query sees something of. All threads of a block together.
struct Slice {
  EntryStage& shared;
  int least, greatest;                  // entries [least, greatest)
  bool wide;
  int at;                               // first entry of the batch, or its first place in the list of blocks
  int from;                             // the entry at which the list begins
  int count;                            // entries of the batch

  __device__ int entry(int place) const {
    return wide ? from + shared.blocks[at + place / BLOCK] * BLOCK + place % BLOCK : at + place;
  }
  __device__ void begin() {
    wide = greatest - least > WIDE;
    at = least;
    count = 0;
    from = least / (LISTED * BLOCK) * (LISTED * BLOCK) - LISTED * BLOCK;
    if (wide) at = 0, shared.count = 0;
  }
  // Go on to the next batch; false where there is none.
  __device__ bool next(const Args& a, const SlotTile& tile) {
    if (!wide) {
      at += count;
      count = min(STAGED - TILE, greatest - at);
      return count > 0;
    }
    at += count / BLOCK;
    while (at == shared.count) {
      from += LISTED * BLOCK;
      if (from >= greatest) return false;
      list_blocks(a, tile.head_row, tile.row_slot + tile.first, tile.stop - tile.first, from, shared);
      at = 0;
    }
    count = min(STAGED / BLOCK, shared.count - at) * BLOCK;
    return true;
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

  // Let `use(rows, points, first)` see all blocks of 16 entries that may hold some of this warp's: where their staged
  // rows and points begin, and the first one's number.
  template <class Use> __device__ void visit(const Args& a, EntryStage& shared, Use use) const {
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
    Slice slice{shared, least, greatest};
    slice.begin();
    while (slice.next(a, tile)) {
      stage(a, shared, slice, visible);
      int place = 0, stop = slice.count;
      if (!slice.wide) {                // a warp's own part
        place = max(own_least - slice.at, 0);
        stop = min(own_greatest - slice.at, slice.count);
      }
#pragma unroll 1
      for (; place < stop; place += TILE) {
        const int first = slice.entry(place);
        if (slice.wide && (first >= own_greatest || first + TILE <= own_least)) continue;
        use(shared_address(shared.rows) + place * ROW_BYTES, shared.points + place, first);
      }
      if (!slice.wide && slice.at + slice.count >= greatest) break;
      __syncthreads();
    }
  }

  // Copy a batch of a slice to shared memory: points, then the rows of those that some query sees. Behind them stand
  // points that nobody sees and rows of zeros.
  __device__ void stage(const Args& a, EntryStage& shared, const Slice& slice, int visible) const {
    const char* points = reinterpret_cast<const char*>(static_cast<const Point*>(a.points[0]) + tile.head_row * a.entries);
    const char* values = reinterpret_cast<const char*>(static_cast<const Value*>(a.v) + tile.batch * a.v_batch_stride +
                                                       tile.head * a.v_head_stride + tile.start * a.v_stride);
    int stride = int(a.v_stride) * int(sizeof(Value));
    keep(points);
    keep(values);
    keep(stride);
    constexpr int PARTS = sizeof(Point) / 16;
    for (u32 part = threadIdx.x; part < u32(slice.count) * PARTS; part += THREADS)
      stage_16B(shared_address(shared.points) + part * 16,
                strided(points, slice.entry(int(part / PARTS)), sizeof(Point)) + part % PARTS * 16, true);
    const int padded = min(slice.count + TILE - 1, STAGED);
    if (slice.count + int(threadIdx.x) < padded) shared.points[slice.count + threadIdx.x].position = NO_KEY;
    wait_for_stage();
    __syncthreads();
    stage_rows(shared.rows, padded, [&](int place, bool& exists) {
      const int position = shared.points[place].position;
      exists = position < visible;
      return strided(values, position, stride);
    });
  }

  // Whether this lane's n-th query selects an entry at a position.
  __device__ bool selects(int n, int entry, int position) const {
    return u32(entry - queries[n].left) < queries[n].length && position < queries[n].visible;
  }
};
