// Where everything lies: sequences, rows, dyadic levels.
//
// A *row* is one key head of one sequence (of a batch item, or packed) with the queries of all heads that read it. All
// batch items and heads have the same sequences, so that one table of sequences serves all rows; without packing it
// has one line. A row's keys stand in *entries*, sorted by (code, position), level after level; level l holds the
// positions below ceil(keys / 2^l) and begins at a multiple of 32. Its queries stand in *slots*, by level, then code.
// A query that sees t keys uses the last level with at least t: the queries of one level are consecutive in i.
#pragma once
#include "platform.cuh"
#include "args.cuh"

constexpr int MAX_LEVELS = 32;
constexpr int MOST_CURVES = 3;
constexpr int BLOCK = 32;               // entries per value of the fine skip index
constexpr int COARSE = BLOCK * BLOCK;   // and of the coarse one
constexpr int UNIT = 2048;              // sorted items per block where levels are made
constexpr int NO_KEY = 0x7fffffff;      // position of a padding entry: visible to nobody

struct Sequence {
  int start;                            // along N
  int keys;
  int queries;                          // of one head
  int levels;
  int unit;                             // first unit of sorted items
  int upper;                            // entries above level 0 of the sequences before
  i64 entry;                            // first entry, from the first of the batch item and head
  i64 level_entry[MAX_LEVELS + 1];      // first entry of each level, from `entry`
  int level_query[MAX_LEVELS + 1];      // queries i in [level_query[l + 1], level_query[l]) use level l
};

struct Key {
  Coordinate x[DK];
  int position;
};

struct alignas(16) Point : Key {};

// A query in its slot: all that attention needs of it, in one piece.
struct alignas(16) Slot {
  Coordinate x[DK];
  Coordinate nearest;                   // what weights are relative to, see ranges.cu
  int left, right;                      // entries [left, right), counted from the first of the batch item and head
  int visible;                          // t
  int number;                           // of the query in its row: head in group * queries + i
};

// Write a structure of 16-byte words all of whose bytes are to be known, padding too.
template <class T> union Whole {
  T value;
  int4 words[sizeof(T) / 16];
  __device__ Whole() {
#pragma unroll
    for (int n = 0; n < int(sizeof(T) / 16); ++n) words[n] = int4{0, 0, 0, 0};
  }
  __device__ void store(T* to) const {
#pragma unroll
    for (int n = 0; n < int(sizeof(T) / 16); ++n) reinterpret_cast<int4*>(to)[n] = words[n];
  }
};

__device__ inline const Slot* slots_of(const Args& a) { return static_cast<const Slot*>(a.slots); }

__device__ inline int group_size(const Args& a) { return a.group; }

__device__ inline i64 level_length(i64 keys, int level) { return (keys + (i64(1) << level) - 1) >> level; }

// Number of levels: the last one still holds `window` keys.
__device__ inline int level_count(i64 keys, int window) {
  int level = 0;
  while (level_length(keys, level) > 1 && level_length(keys, level + 1) >= window) ++level;
  return level + 1;
}

// The deepest level that holds a position, of a sequence with keys.
__device__ inline int level_with(int position, int keys, int levels) {
  if (position == 0) return levels - 1;
  const int level = __clz(position) - __clz(keys - 1);  // at most one too deep; position << level fits like keys - 1
  return min(level - int(u32(position) << level >= u32(keys)), levels - 1);
}

// The deepest level that holds all of the first `visible` positions.
__device__ inline int level_of(int visible, int keys, int levels) {
  return level_with(max(visible - 1, 0), keys, levels);
}

// t(i): how many keys query i of a sequence sees. Rounds towards minus infinity, as the definition's floor does.
__device__ inline i64 visible_count(const Args& a, i64 i, i64 keys) {
  if (!a.causal) return keys;
  const i64 position = a.q_offset + i, past = a.include_self ? position + 1 : position;
  i64 whole = past;                     // of whole chunks
  if (a.chunk_size > 1) {
    const i64 rest = past % a.chunk_size;
    whole = past - rest - (rest < 0 ? a.chunk_size : 0);
  }
  const i64 seen = min(whole, position + 1 - a.local_window);
  return min(max(seen, i64(0)), keys);
}

__device__ inline const Sequence* sequences_of(const Args& a) { return static_cast<const Sequence*>(a.sequences); }

// The last sequence for which `first(sequence)`, which never falls, is not beyond `value`: no empty one, unless all after
// it are.
template <class T, class First> __device__ inline int last_sequence(const Args& a, T value, First first) {
  int lo = 0, hi = a.num_sequences - 1;
  while (lo < hi) {
    const int middle = (lo + hi + 1) / 2;
    if (first(middle) <= value) lo = middle; else hi = middle - 1;
  }
  return lo;
}

// The sequence with an entry, or with a unit, by where its first one is.
template <auto FIRST> __device__ inline int sequence_with(const Args& a, i64 value) {
  return last_sequence(a, value, [&](int sequence) { return sequences_of(a)[sequence].*FIRST; });
}

// The sequence of a token along N; without the table.
__device__ inline int sequence_of_token(const Args& a, int token) {
  return last_sequence(a, token, [&](int sequence) { return static_cast<const int*>(a.cu_seqlens)[sequence]; });
}

// The level of an entry, counted from the first of its row.
__device__ inline int level_of_entry(const Sequence& s, i64 entry) {
  int level = 0;
  while (level + 1 < s.levels && s.level_entry[level + 1] <= entry) ++level;
  return level;
}

// A query among all rows: `place` counts slots of one batch item and key head, in the order of rows.
struct Query {
  int sequence;
  int head_row;                         // of its key head, over all batch items
  int head;                             // in its group
  int token;                            // along N
  i64 at;                               // among all queries (batch, q_heads, q_len)
  i64 visible;
};

// Slots of a row are consecutive: a sequence's queries of all heads of the group, one sequence after the other.
__device__ inline i64 first_slot(const Args& a, i64 head_row, const Sequence& s) {
  return (head_row * a.q_len + s.start) * group_size(a);
}

// Look a row's query up by its number `head in group * queries + i`.
__device__ inline Query query_of(const Args& a, i64 head_row, int sequence, int number) {
  const Sequence& s = sequences_of(a)[sequence];
  Query query;
  query.sequence = sequence;
  query.head_row = int(head_row);
  query.head = number < s.queries ? 0 : number / s.queries;
  query.token = s.start + number - query.head * s.queries;
  query.at = (head_row * group_size(a) + query.head) * i64(a.q_len) + query.token;
  query.visible = visible_count(a, query.token - s.start, s.keys);
  return query;
}

// Look up a query by its number among all (batch, q_heads, q_len).
__device__ inline Query query_numbered(const Args& a, i64 at) {
  const i64 head = at / a.q_len, head_row = head / group_size(a);
  const int token = int(at % a.q_len), sequence = a.cu_seqlens ? sequence_of_token(a, token) : 0;
  const Sequence& s = sequences_of(a)[sequence];
  return query_of(a, head_row, sequence, int(head % group_size(a)) * s.queries + token - s.start);
}

// Look up the query in a slot, counted over all rows.
__device__ inline Query query_in_slot(const Args& a, i64 slot) {
  const i64 group = group_size(a), head_row = slot / (a.q_len * group);
  const int sequence = a.cu_seqlens ? sequence_of_token(a, int(slot % (a.q_len * group) / group)) : 0;
  const int number = a.slots ? slots_of(a)[slot].number : static_cast<const int*>(a.query_order)[slot];
  return query_of(a, head_row, sequence, number);
}

// The batch item of a key head, and which of its heads it is: without a division where there is one batch item.
__device__ inline int batch_of(const Args& a, int head_row) { return a.batch == 1 ? 0 : head_row / a.kv_heads; }
__device__ inline int head_in_batch(const Args& a, int head_row) {
  return head_row - batch_of(a, head_row) * a.kv_heads;
}

__device__ inline const Coordinate* query_point(const Args& a, const Query& query) {
  const int head = head_in_batch(a, query.head_row) * group_size(a) + query.head;
  return static_cast<const Coordinate*>(a.q) + batch_of(a, query.head_row) * a.q_batch_stride +
         head * a.q_head_stride + query.token * a.q_stride;
}

__device__ inline const Coordinate* key_point(const Args& a, int head_row, i64 token) {
  return static_cast<const Coordinate*>(a.k) + batch_of(a, head_row) * a.k_batch_stride +
         head_in_batch(a, head_row) * a.k_head_stride + token * a.k_stride;
}

// Squared distance, from the first coordinate to the last, each operation rounded for itself.
__device__ inline Coordinate squared_distance(const Coordinate* x, const Coordinate* y) {
  const Coordinate first = subtract_rounded(x[0], y[0]);
  Coordinate total = multiply_rounded(first, first);
#pragma unroll
  for (int c = 1; c < DK; ++c) {
    const Coordinate difference = subtract_rounded(x[c], y[c]);
    total = add_rounded(total, multiply_rounded(difference, difference));
  }
  return total;
}
