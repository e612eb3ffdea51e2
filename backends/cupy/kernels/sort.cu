// Each search's items in the order of their sequence and code: a radix sort in one launch. Items go from one array to
// the other and back, pass by pass; in a pass a tile of them is ranked, and looks back at the tiles of its search
// before it for where each digit's items go. Blocks take jobs in the order of their indices, in which GPUs start them
// (see lookback.cuh): first where the digits of each pass and search begin, from the counts that encoding has made,
// then tiles.
#include "radix.cuh"

// What the sort keeps behind the counters of levels, all 0 before.
struct SortState {
  int* ready;                           // (sort_passes, searches): jobs done that a pass over a search waits for
  u32* look_back;                       // (sort_passes, searches, tiles, RADIX)

  __device__ SortState(const Args& a, int searches) {
    ready = static_cast<int*>(a.state) + a.level_words;
    look_back = reinterpret_cast<u32*>(ready) + a.sort_passes * searches;
  }
};

// A word that a tile leaves for a digit: how many of its items have it, or of all up to it.
constexpr u32 OF_TILE = u32(1) << 30;
constexpr u32 OF_ALL_TILES = u32(2) << 30;
constexpr u32 COUNT_OF_TILES = OF_TILE - 1;

// Find where the items with each digit of a pass begin. A thread answers for a digit.
__device__ inline void find_digit_starts(const Args& a, int search, int pass, int* starts) {
  __shared__ int of_warps[RADIX / 32];
  const int* counts = static_cast<const int*>(a.digit_counts) +
                      (i64(search) * a.encode_blocks * a.sort_passes + pass) * RADIX + threadIdx.x;
  int count = 0;
#pragma unroll 32
  for (int block = 0; block < a.encode_blocks; ++block) count += counts[i64(block) * a.sort_passes * RADIX];
  int start = sum_to_lane(count);
  if (lane() == 31) of_warps[threadIdx.x / 32] = start;
  __syncthreads();
  for (int warp = 0; warp < int(threadIdx.x) / 32; ++warp) start += of_warps[warp];
  starts[threadIdx.x] = start - count;
}

// Sum up the thread's digit over the tiles before a tile and publish the sum with its own; `words` are those of the
// digit in the tiles of the search.
__device__ inline int sum_of_earlier_tiles(volatile u32* words, int tile, int own) {
  constexpr int TOGETHER = 4;           // words on their way at once
  int sum = 0;
  for (int back = tile - 1; back >= 0;) {
    u32 found[TOGETHER];
#pragma unroll
    for (int n = 0; n < TOGETHER; ++n) found[n] = back >= n ? words[i64(back - n) * RADIX] : OF_ALL_TILES;
#pragma unroll
    for (int n = 0; n < TOGETHER; ++n) {
      if (back < 0 || found[n] == 0) break;  // the rest are asked for again
      sum += int(found[n] & COUNT_OF_TILES);
      back = found[n] >= OF_ALL_TILES ? -1 : back - 1;
    }
  }
  if (tile > 0) words[i64(tile) * RADIX] = OF_ALL_TILES | u32(sum + own);
  return sum;
}

struct SortMemory {
  union {
    RankMemory ranks;
    u64 items[SORT_TILE];
  };
  int offsets[RADIX];
};

// Bring the items of a tile to where they go in a pass. `starts` and `look_back` are those of the pass and search.
// `found(item, place)` sees where they are then.
template <class Found>
__device__ inline void sort_tile(SortMemory& memory, const u64* from, u64* to, int items, int tile, RadixDigit digit,
                                 const int* starts, u32* look_back, Found found) {
  const int first = tile * SORT_TILE, count = min(SORT_TILE, items - first);
  TileItems own;
  TileRanks ranks;
#pragma unroll
  for (int n = 0; n < EACH_OF_TILE; ++n)
    own[n] = place_in_tile(n) < count ? load_shared_by_blocks(from + first + place_in_tile(n)) : ~u64(0);
  int of_digit = 0;
  volatile u32* words = look_back + threadIdx.x;
  const int smaller = find_ranks(memory.ranks, own, ranks, digit, [&](int count_of_digit) {
    of_digit = count_of_digit;
    words[i64(tile) * RADIX] = (tile == 0 ? OF_ALL_TILES : OF_TILE) | u32(of_digit);
  });
  const int start = load_shared_by_blocks(starts + threadIdx.x);
  __syncthreads();                      // all ranks have been read
#pragma unroll
  for (int n = 0; n < EACH_OF_TILE; ++n) memory.items[ranks[n]] = own[n];
  memory.offsets[threadIdx.x] = start - smaller + sum_of_earlier_tiles(words, tile, of_digit);
  __syncthreads();
#pragma unroll
  for (int n = 0; n < EACH_OF_TILE; ++n) {
    const int in_tile = n * SORT_THREADS + int(threadIdx.x);
    if (in_tile >= count) break;
    const u64 item = memory.items[in_tile];
    const int place = memory.offsets[digit.of(item)] + in_tile;
    to[place] = item;
    found(item, place);
  }
}

struct Tile {
  int search, pass, tile;
};

// The order of tiles. All passes over a few searches, whose items the second cache holds, before the next few; in a
// pass one half of these after the other, so that the first is done when the next pass begins; in a half the searches
// take turns, so that blocks that run at once wait for few others.
__device__ inline Tile tile_with(int job, int searches, int tiles, int passes) {
  constexpr int FEW = 16;
  const int first = job / (FEW * tiles * passes) * FEW, few = min(searches - first, FEW);
  job -= first * tiles * passes;
  const int pass = job / (few * tiles), half = (few + 1) / 2;
  job -= pass * few * tiles;
  const bool second = job >= half * tiles;
  if (second) job -= half * tiles;
  const int turns = second ? few - half : half, tile = job / turns;
  return {first + (second ? half : 0) + job - tile * turns, pass, tile};
}

ZETA_KERNEL(sort_kernel, SORT_THREADS, 4) {
  __shared__ SortMemory memory;
  const int searches = a.batch * a.kv_heads * a.num_curves, items = items_of_search(a);
  const int tiles = (items + SORT_TILE - 1) / SORT_TILE, of_starts = searches * a.sort_passes;
  const SortState state(a, searches);
  int* all_starts = static_cast<int*>(a.digit_starts);
  int job = int(blockIdx.x);
  if (job < of_starts) {
    find_digit_starts(a, job % searches, job / searches, all_starts + i64(job) * RADIX);
    report_done(state.ready + job);
    return;
  }
  const Tile t = tile_with(job - of_starts, searches, tiles, a.sort_passes);
  const int number = t.pass * searches + t.search;
  u64* arrays[2] = {static_cast<u64*>(a.items) + i64(t.search) * items,
                    static_cast<u64*>(a.sorted_items) + i64(t.search) * items};
  await_done(state.ready + number, t.pass == 0 ? 1 : 1 + tiles);
  int* places = nullptr;                // to be found
  if (t.pass + 1 == a.sort_passes && t.search < a.batch * a.kv_heads * (a.num_curves - 1))
    places = sorted_places(a, t.search);
  sort_tile(memory, arrays[t.pass % 2], arrays[1 - t.pass % 2], items, t.tile, RadixDigit(a, t.pass),
            all_starts + i64(number) * RADIX, state.look_back + i64(number) * tiles * RADIX, [&](u64 item, int place) {
              const u32 own = u32(item) & ((u32(1) << a.number_bits) - 1);
              if (places && own < u32(a.k_len)) places[own] = place;
            });
  if (t.pass + 1 < a.sort_passes) report_done(state.ready + number + searches);
}
