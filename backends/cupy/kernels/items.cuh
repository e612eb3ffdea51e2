// What is sorted for one curve: keys and queries together, so that a query finds its place among the keys. Each batch
// item and key head has its own *items*: its keys in order of position, then the queries of all heads of the group.
// They are sorted by (row, code), stably: equal codes count as before the query.
//
// An item is one word: row, code, and below them its number in the head, which is not sorted by. Where that takes more
// than 64 bits, numbers stand beside the words, which hold row and code; where these take more too, items are sorted
// twice, by code and by row, and are found again by their numbers among all.
#pragma once
#include "rows.cuh"
#include "lookback.cuh"

constexpr int COUNTERS = 16;            // words at the beginning of the state, of which the first numbers blocks
constexpr int LEVEL_COUNTS = 2 * MAX_LEVELS;  // of a unit: keys by level, then queries by level

__device__ inline int items_of_head(const Args& a) { return a.k_len + a.q_len * group_size(a); }
__device__ inline bool sorts_twice(const Args& a) { return a.row_shift == 64; }

// Of the curve: the counter of blocks, and the published sums of levels (heads, units, LEVEL_COUNTS). All are 0 when a
// search begins.
__device__ inline u32* state_of(const Args& a) { return static_cast<u32*>(a.level_state) + a.curve * a.state_words; }
__device__ inline Published* level_sums(const Args& a, int head_row, int unit) {
  return state_of(a) + COUNTERS + (i64(head_row) * a.units + unit) * LEVEL_COUNTS;
}

// The number in its head of the item that stands at a place in the order.
__device__ inline int sorted_number(const Args& a, int head_row, int place) {
  const i64 before = i64(head_row) * items_of_head(a);
  if (a.number_bits > 0) return int(static_cast<const u64*>(a.order)[before + place] & ((u64(1) << a.number_bits) - 1));
  return static_cast<const int*>(a.order)[before + place] - (sorts_twice(a) ? int(before) : 0);
}

// The token of an item, and the head in the group of a query.
__device__ inline int token_of_item(const Args& a, int number, int& head) {
  head = 0;
  if (number < a.k_len) return number;
  number -= a.k_len;
  if (number >= a.q_len) head = number / a.q_len;
  return number - head * a.q_len;
}

__device__ inline u64 row_of_item(const Args& a, int head_row, int token) {
  const int sequence = a.num_sequences > 1 ? sequence_of_token(a, token) : 0;
  return u64(head_row) * a.num_sequences + sequence;
}
