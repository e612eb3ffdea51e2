// The local window on tensor cores. A block takes 64 consecutive queries of a head and the keys that some of them
// attend to, or 64 keys and the queries that attend to them; it stages their rows, which are consecutive, a slab at a
// time for all of its warps. A warp multiplies tiles of 16 x 16: lane l serves rows l / 4 and l / 4 + 8 of its own 16.
#pragma once
#include "chunks.cuh"
#include "local.cuh"
#include "tensor.cuh"

constexpr int LOCAL_RESIDENT = DIM <= 64 ? 4 : DIM <= 128 ? 2 : 1;  // blocks of a multiprocessor at least
constexpr int SLAB = DIM <= 128 ? 96 : 64;  // rows that are staged at once: all of them for windows up to 33
static_assert(SLAB <= THREADS, "a thread for each row");

// A block's queries or keys; `head` counts over all batch items.
struct LocalBlock : Chunk {
  int head;

  template <auto LENGTH> __device__ bool find(const Args& a, int length) {
    const u32 chunks = u32(length / GROUP + a.num_sequences);
    head = int(blockIdx.x / chunks);
    return find_chunk<GROUP, LENGTH>(a, int(blockIdx.x % chunks), *this);
  }
  // This warp's part [tile, tile_stop), which may be empty.
  __device__ int tile() const { return first + int(threadIdx.x) / 32 * TILE; }
  __device__ int tile_stop() const { return min(tile() + TILE, stop); }
};

// Stage rows of values, `stride` elements apart; zeros stand after them, to a whole tile.
__device__ inline void stage_slab(SharedAddress to, const Value* rows, i64 stride, int count) {
  constexpr u32 CHUNKS = DIM / 8;       // of 16 bytes in a row
  const int padded = (count + TILE - 1) / TILE * TILE;
#pragma unroll
  for (u32 n = 0; n < SLAB * CHUNKS; n += THREADS) {
    const u32 chunk = n + threadIdx.x, column = chunk % CHUNKS * 8;
    const int row = int(chunk / CHUNKS);
    if (row >= padded) break;
    stage_16B(to + row * ROW_BYTES + column * 2, rows + min(row, count - 1) * stride + column, row < count);
  }
}

// Load this lane's part of 16 rows from memory: `first` and `second` are those of rows l / 4 and l / 4 + 8, or null for
// 0.
__device__ inline void load_two_rows(u32 (*rows)[4], const Value* first, const Value* second) {
  const int column = 2 * (lane() % 4);
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = step * 16 + half * 8 + column;
      rows[step][2 * half] = first ? *reinterpret_cast<const u32*>(first + at) : 0;
      rows[step][2 * half + 1] = second ? *reinterpret_cast<const u32*>(second + at) : 0;
    }
  }
}

// Visit the tiles of a slab that meet [first, stop): `f(number of its first row)`.
template <class F> __device__ inline void visit_tiles(int slab, int first, int stop, F f) {
  for (int row = max(first - slab, 0) / TILE * TILE; row < min(SLAB, stop - slab); row += TILE) f(row);
}

// One of the two queries of a lane.
struct LocalTileQuery {
  i64 at;                               // among all queries; -1 where there is none
  Coordinate x[DK];
  Window window;
  const Value* grad;                    // its row of grad_out, for backward passes

  __device__ LocalTileQuery(const Args& a, const LocalBlock& block, int place) {
    const Sequence& s = sequences_of(a)[block.sequence];
    const int i = min(block.tile() + place, block.stop - 1);
    Query query = {};
    query.head_row = block.head / group_size(a);
    query.head = block.head % group_size(a);
    query.token = s.start + i;
    const Coordinate* point = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = point[c];
    grad = a.grad_out ? grad_row(a, query) : nullptr;
    at = block.tile() + place < block.stop ? i64(block.head) * a.q_len + query.token : -1;
    if (exists()) window = Window(a, s, i);
  }
  __device__ bool exists() const { return at >= 0; }
};

struct KeySlab {
  alignas(16) unsigned char rows[SLAB * ROW_BYTES];
  Coordinate points[SLAB][DK];
};

// The keys that some query of a block attends to, a slab at a time.
struct LocalKeys {
  KeySlab& shared;
  const Value* values;                  // of the sequence
  const Coordinate* points;
  i64 value_stride, point_stride;
  int first, stop;                      // positions
  int first_of_warp, stop_of_warp;

  __device__ LocalKeys(const Args& a, const LocalBlock& block, KeySlab& shared)
      : shared(shared), value_stride(a.v_stride), point_stride(a.k_stride), first_of_warp(0), stop_of_warp(0) {
    const Sequence& s = sequences_of(a)[block.sequence];
    const int head_row = block.head / group_size(a);
    values = value_row(a, head_row, s.start);
    points = key_point(a, head_row, s.start);
    first = Window(a, s, block.first).first;
    stop = Window(a, s, block.stop - 1).stop;
    if (block.tile() < block.tile_stop()) {
      first_of_warp = Window(a, s, block.tile()).first;
      stop_of_warp = Window(a, s, block.tile_stop() - 1).stop;
    }
  }
  __device__ void stage(int slab) const {
    const int count = min(stop - slab, SLAB);
    stage_slab(shared_address(shared.rows), values + slab * value_stride, value_stride, count);
    const int n = threadIdx.x;
    if (n >= count) return;
#pragma unroll
    for (int c = 0; c < DK; ++c) shared.points[n][c] = points[(slab + n) * point_stride + c];
  }
  // Visit this warp's tiles, with the first slab staged: `f(position, staged rows, points)`. All threads together.
  template <class F> __device__ void visit(F f) const {
    for (int slab = first; slab < stop; slab += SLAB) {
      if (slab > first) {
        __syncthreads();                // all have used the one before
        stage(slab);
      }
      wait_for_stage();
      __syncthreads();
      visit_tiles(slab, first_of_warp, stop_of_warp, [&](int row) {
        f(slab + row, shared_address(shared.rows) + row * ROW_BYTES, shared.points + row);
      });
    }
  }
};

// Squared distance for weights: it decides nothing, and a compiler may contract it.
__device__ inline float local_distance(const Coordinate* x, const Coordinate* y) {
  float total = 0;
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    const float difference = x[c] - y[c];
    total += difference * difference;
  }
  return total;
}
