// One pass of the sort: a digit of 8 bits, from the lowest to the highest. Each block takes a tile of one head's items,
// orders it by the digit in shared memory and writes it where the head's earlier tiles leave off. The number of earlier
// items with each digit is known from the tiles before, which publish theirs: every item is read and written once. A
// pass leaves its digit out of the words that it writes, so that they fit into 32 bits after a while: in the end they
// are numbers alone.
#include "items.cuh"

constexpr int SORT_WARPS = RADIX / 32;  // a thread a digit

template <class In, class Out, bool WIDE = false> __device__ inline void sort_tile(const Args& a) {
  constexpr int EACH = WIDE ? 8 : 16, TILE_ITEMS = EACH * RADIX;
  __shared__ In staged[TILE_ITEMS];
  __shared__ int staged_numbers[WIDE ? TILE_ITEMS : 1];
  __shared__ int counts[SORT_WARPS][RADIX];
  __shared__ int offsets[RADIX];        // from a place in the tile to one among the head's items
  __shared__ int of_warps[2][SORT_WARPS];
  const int own = threadIdx.x, warp = own / 32;
#pragma unroll
  for (int n = 0; n < SORT_WARPS; ++n) counts[n][own] = 0;
  const int number = take_number(counters_of(a) + a.digit);
  const int head_row = number / a.sort_tiles, tile = number % a.sort_tiles;
  const int items = items_of_head(a), first = tile * TILE_ITEMS, count = min(items - first, TILE_ITEMS);
  const i64 base = i64(head_row) * items;
  const In* words = static_cast<const In*>(a.items[a.digit % 2]) + base + first;
  const int* numbers = WIDE ? static_cast<const int*>(a.numbers[a.digit % 2]) + base + first : nullptr;
  In word[EACH];
  int other[WIDE ? EACH : 1];
  u32 ranks[EACH / 2] = {};             // among the warp's items with the same digit, two a word
  const int place = warp * 32 * EACH + lane();  // of the thread's first item in the tile
#pragma unroll
  for (int n = 0; n < EACH; ++n) {
    word[n] = place + n * 32 < count ? words[place + n * 32] : 0;
    if (WIDE) other[n] = place + n * 32 < count ? numbers[place + n * 32] : 0;
  }
  const auto digit_of_item = [&](In item, int of_item) {
    return WIDE ? digit_of<true>(a, item, of_item, a.digit) : int(item >> a.number_bits) & (RADIX - 1);
  };
  const auto digit_at = [&](int n) { return digit_of_item(word[n], WIDE ? other[n] : 0); };
  const u32 before = (1u << lane()) - 1;
#pragma unroll
  for (int n = 0; n < EACH; ++n) {      // count the warp's earlier items with the same digit
    const bool exists = place + n * 32 < count;
    const int digit = digit_at(n);
    const u32 same = __match_any_sync(FULL, exists ? digit : RADIX);
    const int earlier = counts[warp][digit];
    ranks[n / 2] |= u32(earlier + __popc(same & before)) << n % 2 * 16;
    __syncwarp();
    if (exists && !(same & before)) counts[warp][digit] = earlier + __popc(same);
    __syncwarp();
  }
  __syncthreads();
  int in_tile = 0;                      // items with digit `own`
#pragma unroll
  for (int n = 0; n < SORT_WARPS; ++n) {
    const int of_warp = counts[n][own];
    counts[n][own] = in_tile;
    in_tile += of_warp;
  }
  Published* sums = sort_sums(a, head_row, tile) + own;
  publish(sums, tile, in_tile);
  const int in_head = digit_counts(a, head_row)[a.digit * RADIX + own];
  const int start = block_sum_before(in_tile, of_warps[0]), start_in_head = block_sum_before(in_head, of_warps[1]);
#pragma unroll
  for (int n = 0; n < SORT_WARPS; ++n) counts[n][own] += start;
  offsets[own] = start_in_head + sum_of_earlier(sums, RADIX, tile, in_tile) - start;
  __syncthreads();
#pragma unroll
  for (int n = 0; n < EACH; ++n) {
    if (place + n * 32 >= count) continue;
    const int to = counts[warp][digit_at(n)] + int(ranks[n / 2] >> n % 2 * 16 & 0xffff);
    staged[to] = word[n];
    if (WIDE) staged_numbers[to] = other[n];
  }
  __syncthreads();
  Out* to_words = static_cast<Out*>(a.items[(a.digit + 1) % 2]) + base;
  int* to_numbers = WIDE ? static_cast<int*>(a.numbers[(a.digit + 1) % 2]) + base : nullptr;
  const In numbers_mask = (In(1) << a.number_bits) - 1;
#pragma unroll
  for (int n = 0; n < EACH; ++n) {
    const int from = n * RADIX + own;
    if (from >= count) continue;
    const In item = staged[from];
    const int of_item = WIDE ? staged_numbers[from] : 0, to = from + offsets[digit_of_item(item, of_item)];
    if (WIDE) {
      to_words[to] = item;
      to_numbers[to] = of_item;
    } else {
      to_words[to] = Out((item >> DIGIT_BITS & ~numbers_mask) | (item & numbers_mask));
    }
  }
}

ZETA_KERNEL(sort_long_kernel, RADIX, 4) { sort_tile<u64, u64>(a); }
ZETA_KERNEL(sort_to_short_kernel, RADIX, 4) { sort_tile<u64, u32>(a); }
ZETA_KERNEL(sort_short_kernel, RADIX, 4) { sort_tile<u32, u32>(a); }
ZETA_KERNEL(sort_wide_kernel, RADIX) { sort_tile<u64, u64, true>(a); }
