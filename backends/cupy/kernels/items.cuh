// What is sorted: keys and queries together, so that a query finds its place among the keys. Each *search*, one curve
// of a batch item and key head, has its own *items*: its keys in order of position, then the queries of all heads of
// the group. They are sorted by (row, code), stably: equal codes count as before the query. The rows of the second
// curve come after all of the first.
//
// An item is one word: its sequence, code, and below them its number in the search, which is not sorted by; each search
// is sorted by itself. Where that takes more than 64 bits, numbers stand beside the words, which hold row and code, and
// all searches are sorted together; where these take more too, twice, by code and by row, and items are found again by
// their numbers among all.
#pragma once
#include "rows.cuh"
#include "lookback.cuh"

__device__ inline int items_of_search(const Args& a) { return a.k_len + a.q_len * group_size(a); }
__device__ inline bool is_sorted_alone(const Args& a) { return a.number_bits > 0; }
__device__ inline bool sorts_twice(const Args& a) { return a.row_shift == 64; }

// A search that is sorted by itself is sorted digit by digit.
constexpr int RADIX_BITS = 8, RADIX = 1 << RADIX_BITS;  // digits that there are at most
constexpr int MOST_PASSES = 64 / RADIX_BITS;

struct RadixDigit {
  int first_bit, bits;

  __device__ RadixDigit(const Args& a, int pass) {
    first_bit = a.number_bits + pass * a.digit_bits;
    bits = min(a.digit_bits, a.sorted_bits - pass * a.digit_bits);
  }
  __device__ int of(u64 item) const { return int(u32(item >> first_bit) & ((1u << bits) - 1)); }
};

// Searches are numbered curve by curve.
struct Search {
  int number, curve, head_row;
};

__device__ inline Search search_numbered(const Args& a, int number) {
  const int heads = a.batch * a.kv_heads, curve = a.num_curves == 1 ? 0 : number / heads;
  return {number, curve, number - curve * heads};
}

// *Sorted places* of a search's keys, where they stand in its order. They tell whether the range of a query on one
// curve has a key that another curve has found, so that the last curve's are not needed.
__device__ inline int* sorted_places(const Args& a, int search) {
  return static_cast<int*>(a.sorted_places) + i64(search) * a.k_len;
}

// The published sums of levels (searches, levels, units), all 0 when levels are made.
__device__ inline Published* level_sums(const Args& a, int search, int level, int unit) {
  return static_cast<Published*>(a.state) + (i64(search) * a.levels + level) * a.units + unit;
}

// The numbers in their search of the items in order, as words of 32 bits.
struct Order {
  const int* words;
  int stride, mask, before;

  __device__ Order(const Args& a, int search) {
    const i64 first = i64(search) * items_of_search(a);
    const bool in_items = is_sorted_alone(a);
    stride = in_items ? 2 : 1;          // the lower half of an item
    words = static_cast<const int*>(a.order) + first * stride;
    mask = in_items ? int((u32(1) << a.number_bits) - 1) : ~0;
    before = sorts_twice(a) ? int(first) : 0;
  }
  __device__ int number(int word) const { return (word & mask) - before; }
  __device__ int load(int place) const { return words[i64(place) * stride]; }
};

// The token of an item, and the head in the group of a query.
__device__ inline int token_of_item(const Args& a, int number, int& head) {
  head = 0;
  if (number < a.k_len) return number;
  number -= a.k_len;
  if (number >= a.q_len) head = number / a.q_len;
  return number - head * a.q_len;
}
