// 64 queries that are neighbours in code order, and the entries that they select: their ranges overlap, so that a block
// of threads walks over one slice for all of them. A warp takes 16 queries; lane l serves queries l / 4 and l / 4 + 8.
#pragma once
#include "attention.cuh"
#include "tensor.cuh"
#include "tiles.cuh"

constexpr int FIT = 46000 / (ROW_BYTES + int(sizeof(Point))) / BLOCK * BLOCK;
constexpr int STAGED_ENTRIES = FIT < 256 ? FIT : 256;  // entries at a time, and a tile of nothing behind them
constexpr int BATCH = STAGED_ENTRIES - TILE;
constexpr int WIDE = 512;               // entries of a slice of which those that nobody selects are left out
constexpr int ROOM = STAGED_ENTRIES * ROW_BYTES / (BLOCK * int(sizeof(int)));
constexpr int WORDS = ROOM < THREADS ? ROOM : THREADS;  // blocks of such a slice that are looked at together

struct EntryStage {
  union {
    alignas(16) unsigned char rows[STAGED_ENTRIES * ROW_BYTES];
    int positions[WORDS * BLOCK];       // before there are rows
  };
  alignas(16) Point points[STAGED_ENTRIES];
  i64 queries[GROUP];                   // where rows of the queries begin, or which these are
  int least[WARPS], greatest[WARPS], visible[WARPS];
  // Of the blocks that are looked at together, bit b of word w being entry 32 w + b:
  int leasts[THREADS];                  // their least positions
  u32 marks[THREADS];                   // entries that are selected and not yet staged
  u32 taken[THREADS];                   // entries of the batch
  int before[THREADS];                  // how many of them come before the word
  unsigned short places[BATCH];         // where they are
  int counts[WARPS];
};

struct TileQuery {
  Coordinate x[DK];
  int left, right;                      // entries of the batch item and head; none where there is no query
  int visible;                          // 0 where there is no query
  int number;                           // in the row; -1 where there is no query
  float nearest;                        // what weights are relative to
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

// Mark which of the entries from `from` on a tile's queries select, as many as there are words. All threads of a block
// together; `greatest_visible` is the greatest t of the queries.
__device__ __noinline__ void mark_entries(const Args& a, int head_row, i64 first_slot, int count, int from,
                                          int greatest_visible, EntryStage& shared) {
  const i64 table = head_row * a.entries + from;
  const Point* points = static_cast<const Point*>(a.points[0]) + table;
  const int word = threadIdx.x, query = int(threadIdx.x) / 32 * TILE + lane();
  int left = 0, right = 0, visible = 0;  // of one of the warp's 16 queries, from `from` on
  if (lane() < TILE && query < count) {
    const Slot& whole = slots_of(a)[first_slot + query];
    left = max(whole.left - from, 0);
    right = min(whole.right - from, WORDS * BLOCK);
    visible = whole.visible;
  }
  const bool exists = word < WORDS && from + word * BLOCK < a.entries;
  __syncthreads();                      // what was there before has been used
  shared.leasts[word] = exists ? static_cast<const int*>(a.fine[0])[table / BLOCK + word] : NO_KEY;
  shared.marks[word] = 0;
  __syncthreads();
#pragma unroll 4
  for (int n = threadIdx.x / 32; n < WORDS; n += WARPS)
    if (shared.leasts[n] < greatest_visible)
      shared.positions[n * BLOCK + lane()] = points[n * BLOCK + lane()].position;
  __syncthreads();
  for (u32 owners = __ballot_sync(FULL, left < right); owners; owners &= owners - 1) {
    const int owner = __ffs(int(owners)) - 1, seen = __shfl_sync(FULL, visible, owner);
    const int lo = __shfl_sync(FULL, left, owner), hi = __shfl_sync(FULL, right, owner);
    for (int first = lo / BLOCK; first * BLOCK < hi; first += 32) {
      const int own = min(first + lane(), WORDS - 1);
      u32 some = __ballot_sync(FULL, (first + lane()) * BLOCK < hi && shared.leasts[own] < seen);
      for (; some; some &= some - 1) {
        const int n = first + __ffs(int(some)) - 1, entry = n * BLOCK + lane();
        const u32 vote = __ballot_sync(FULL, entry >= lo && entry < hi && shared.positions[entry] < seen);
        if (lane() == 0 && vote) atomicOr(shared.marks + n, vote);
      }
    }
  }
  __syncthreads();
}

// List the first of the marked entries, as many as can be staged; they are marked no longer. Says how many. All threads
// of a block together.
__device__ __noinline__ int take_entries(EntryStage& shared) {
  const int word = threadIdx.x, warp = word / 32;
  const u32 marked = shared.marks[word];
  int place = sum_to_lane(__popc(marked));
  if (lane() == 31) shared.counts[warp] = place;
  __syncthreads();                      // also: the batch before has been used
  place -= __popc(marked);
  int total = 0;
#pragma unroll
  for (int n = 0; n < WARPS; ++n) {
    if (n < warp) place += shared.counts[n];
    total += shared.counts[n];
  }
  shared.before[word] = min(place, BATCH);
  u32 left = marked;
  for (; left && place < BATCH; left &= left - 1)
    shared.places[place++] = (unsigned short)(word * BLOCK + __ffs(int(left)) - 1);
  shared.marks[word] = left;
  shared.taken[word] = marked ^ left;
  __syncthreads();
  return min(total, BATCH);
}

// The slice of entries that a block of queries may select from, batch by batch. Where it is long, only what some query
// selects. All threads of a block together.
struct Slice {
  EntryStage& shared;
  int least, greatest;                  // entries [least, greatest)
  int visible;                          // greatest t of the queries
  int from;                             // the batch's first entry, or that of the blocks looked at
  int count;                            // entries of the batch
  bool wide;

  __device__ void begin() {
    wide = greatest - least > WIDE;
    from = wide ? least / BLOCK * BLOCK - WORDS * BLOCK : least;
    count = 0;
    if (wide) shared.marks[threadIdx.x] = 0;
  }
  // Go on to the next batch; false where there is none.
  __device__ bool next(const Args& a, const SlotTile& tile) {
    if (!wide) {
      from += count;
      count = min(BATCH, greatest - from);
      return count > 0;
    }
    for (;;) {
      count = take_entries(shared);
      if (count > 0) return true;
      from += WORDS * BLOCK;
      if (from >= greatest) return false;
      mark_entries(a, tile.head_row, tile.row_slot + tile.first, tile.stop - tile.first, from, visible, shared);
    }
  }
  // Whether a batch after this one may come.
  __device__ bool goes_on() const { return wide || from + count < greatest; }
  // The entry in a place of the batch.
  __device__ int entry(int place) const { return wide ? from + shared.places[place] : from + place; }
  // How many entries of the batch come before an entry; less than 0, or too many, where it is of another batch.
  __device__ int place_of(int entry) const {
    if (!wide) return entry - from;
    const int bit = max(entry - from, 0), word = bit / BLOCK;
    return word < WORDS ? shared.before[word] + __popc(shared.taken[word] & ((1u << bit % BLOCK) - 1)) : count;
  }
};

// Where in a block of staged entries a query's window lies: [first, first + length), which may begin before the block.
struct TileWindow {
  int first;
  u32 length;

  __device__ bool has(int place) const { return u32(place - first) < length; }
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
      query.left = exists ? whole.left : 0;
      query.right = exists ? whole.right : 0;
      query.visible = exists ? whole.visible : 0;
      query.number = exists ? whole.number : -1;
      const float gamma = static_cast<const float*>(a.gamma)[QueryPlace(a, tile, whole.number).head];
      query.square = gamma * gamma;
    }
    return true;
  }
  __device__ int slot_of_lane(int n) const { return tile.first + int(threadIdx.x) / 32 * TILE + lane() / 4 + 8 * n; }

  // Let `use(rows, points, windows)` see all blocks of 16 entries that may hold some of this warp's: where their staged
  // rows and points begin, and where in the block the windows of the lane's queries lie.
  template <class Use> __device__ void visit(const Args& a, EntryStage& shared, Use use) const {
    int least = NO_KEY, greatest = 0, visible = 0;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (queries[n].left == queries[n].right) continue;
      least = min(least, queries[n].left);
      greatest = max(greatest, queries[n].right);
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
    Slice slice{shared, least, greatest, visible};
    slice.begin();
    while (slice.next(a, tile)) {
      stage(a, shared, slice);
      TileWindow windows[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        windows[n].first = slice.place_of(queries[n].left);
        windows[n].length = u32(slice.place_of(queries[n].right) - windows[n].first);
      }
      int place = max(slice.place_of(own_least), 0);
      const int stop = min(slice.place_of(own_greatest), slice.count);
      windows[0].first -= place;
      windows[1].first -= place;
#pragma unroll 1
      for (; place < stop; place += TILE) {
        use(shared_address(shared.rows) + place * ROW_BYTES, shared.points + place, windows);
        windows[0].first -= TILE;
        windows[1].first -= TILE;
      }
      if (!slice.goes_on()) break;
      __syncthreads();
    }
  }

  // Copy a batch of a slice to shared memory: points, then the rows of those that some query sees. Behind them stand
  // points that nobody sees and rows of zeros.
  __device__ void stage(const Args& a, EntryStage& shared, const Slice& slice) const {
    const char* points =
        reinterpret_cast<const char*>(static_cast<const Point*>(a.points[0]) + tile.head_row * a.entries);
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
    const int padded = slice.count + TILE - 1;
    if (slice.count + int(threadIdx.x) < padded) shared.points[slice.count + threadIdx.x].position = NO_KEY;
    wait_for_stage();
    __syncthreads();
    stage_rows(shared.rows, padded, [&](int place, bool& exists) {
      const int position = shared.points[place].position;
      exists = position < slice.visible;
      return strided(values, position, stride);
    });
    wait_for_stage();
    __syncthreads();
  }
};
