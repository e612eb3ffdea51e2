// What is sorted for one curve: keys and queries together, so that a query finds its place among the keys. Each batch
// item and key head has its own *items*: its keys in order of position, then the queries of all heads of the group.
// They are sorted by (sequence, code) with a stable radix sort: equal codes count as before the query.
//
// An item is one word: sequence, code, and below them its number, which is not sorted by. Where that takes more than 64
// bits, it is wide: words hold codes and numbers stand beside them; sequences are looked up.
#pragma once
#include "rows.cuh"
#include "lookback.cuh"

constexpr int DIGIT_BITS = 8;
constexpr int RADIX = 1 << DIGIT_BITS;  // as many as threads of a block
constexpr int MOST_PASSES = 12;         // 64 bits of a code, then 32 of a sequence
constexpr int COUNTERS = 16;            // words for numbers of blocks: one each pass, the last for the levels
constexpr int LEVEL_COUNTS = 2 * MAX_LEVELS;  // of a unit: keys by level, queries by level

__device__ inline int items_of_head(const Args& a) { return a.k_len + a.q_len * group_size(a); }
__device__ inline bool is_wide(const Args& a) { return a.number_bits == 0; }

// Of the curve: counters, counts of digits (heads, passes, RADIX), published sums of the sort (passes, heads, tiles,
// RADIX), and of the levels (heads, units, LEVEL_COUNTS). Zero when a search begins.
__device__ inline u32* state_of(const Args& a) { return static_cast<u32*>(a.sort_state) + a.curve * a.state_words; }
__device__ inline int* counters_of(const Args& a) { return reinterpret_cast<int*>(state_of(a)); }
__device__ inline int* digit_counts(const Args& a, int head_row) {
  return counters_of(a) + COUNTERS + i64(head_row) * a.passes * RADIX;
}
__device__ inline Published* sort_sums(const Args& a, int head_row, int tile) {
  const i64 heads = i64(a.batch) * a.kv_heads;
  return state_of(a) + COUNTERS + heads * a.passes * RADIX +
         ((a.digit * heads + head_row) * a.sort_tiles + tile) * RADIX;
}
__device__ inline Published* level_sums(const Args& a, int head_row, int unit) {
  const i64 heads = i64(a.batch) * a.kv_heads;
  return state_of(a) + COUNTERS + heads * a.passes * RADIX * (1 + a.sort_tiles) +
         (i64(head_row) * a.units + unit) * LEVEL_COUNTS;
}

// Numbers of a head's items in order, once they are sorted.
__device__ inline const int* sorted_numbers(const Args& a, int head_row) {
  const void* const* buffers = is_wide(a) ? a.numbers : a.items;
  return static_cast<const int*>(buffers[a.passes % 2]) + i64(head_row) * items_of_head(a);
}

// The head in the group of a query, and its token; of a key, only the token.
__device__ inline int token_of_item(const Args& a, int number, int& head) {
  head = 0;
  if (number < a.k_len) return number;
  number -= a.k_len;
  if (number >= a.q_len) head = number / a.q_len;
  return number - head * a.q_len;
}

__device__ inline int sequence_of_item(const Args& a, int number) {
  int head;
  return a.num_sequences == 1 ? 0 : sequence_of_token(a, token_of_item(a, number, head));
}

// The digit of an item in a pass, from the word that it has before the first.
template <bool WIDE> __device__ inline int digit_of(const Args& a, u64 word, int number, int pass) {
  if (!WIDE) return int(word >> (a.number_bits + pass * DIGIT_BITS)) & (RADIX - 1);
  const int of_code = (a.code_bits + DIGIT_BITS - 1) / DIGIT_BITS;
  if (pass < of_code) return int(word >> pass * DIGIT_BITS) & (RADIX - 1);
  return sequence_of_item(a, number) >> (pass - of_code) * DIGIT_BITS & (RADIX - 1);
}
