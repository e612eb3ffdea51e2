// Tiles: stretches of a row's slots, and of one level's entries, that a warp or a block takes. Rows begin where their
// own first tile does; so many tiles are launched that every row has enough of them whatever the lengths are.
#pragma once
#include "rows.cuh"

struct SlotTile {
  int head_row;                         // of the key head, over all batch items
  int sequence;
  int first;                            // slots [first, stop) of the row
  int stop;
  i64 row_slot;                         // first slot of the row
};

// Tiles of SIZE slots before those of a row.
template <int SIZE> __device__ inline i64 slot_tiles_before(const Args& a, i64 head_row, int sequence) {
  return first_slot(a, head_row, sequences_of(a)[sequence]) / SIZE + head_row * a.num_sequences + sequence;
}

// Tile number `n` over all rows; false where there is none. Tiles: slots / SIZE + rows.
template <int SIZE> __device__ inline bool find_slot_tile(const Args& a, i64 n, SlotTile& tile) {
  i64 lo = 0, hi = i64(a.batch) * a.kv_heads - 1;
  while (lo < hi) {
    const i64 middle = (lo + hi + 1) / 2;
    if (slot_tiles_before<SIZE>(a, middle, 0) <= n) lo = middle; else hi = middle - 1;
  }
  tile.head_row = int(lo);
  int first = 0, last = a.num_sequences - 1;
  while (first < last) {
    const int middle = (first + last + 1) / 2;
    if (slot_tiles_before<SIZE>(a, lo, middle) <= n) first = middle; else last = middle - 1;
  }
  tile.sequence = first;
  const Sequence& s = sequences_of(a)[first];
  const i64 start = (n - slot_tiles_before<SIZE>(a, lo, first)) * SIZE, slots = i64(s.queries) * group_size(a);
  if (start >= slots) return false;
  tile.first = int(start);
  tile.stop = int(min(start + SIZE, slots));
  tile.row_slot = first_slot(a, lo, s);
  return true;
}

struct EntryTile {
  int head_row;
  int sequence;
  int level;
  i64 first;                            // entries [first, stop) of the row, all of one level
  i64 stop;
};

// Tile `n` of SIZE entries of level 0, or of all levels above it, over all rows; false where there is none.
// Tiles of a level: batch * kv_heads * ((k_len >> level) / SIZE + num_sequences).
template <int SIZE> __device__ inline bool find_entry_tile(const Args& a, i64 n, EntryTile& tile) {
  const i64 heads = i64(a.batch) * a.kv_heads;
  int level = a.level;
  i64 of_head = (i64(a.k_len) >> level) / SIZE + a.num_sequences;
  while (a.level > 0 && n >= heads * of_head && level + 1 < MAX_LEVELS) {
    n -= heads * of_head;
    of_head = (i64(a.k_len) >> ++level) / SIZE + a.num_sequences;
  }
  if (n >= heads * of_head) return false;
  tile.level = level;
  tile.head_row = int(n / of_head);
  const i64 in_head = n - tile.head_row * of_head;
  int first = 0, last = a.num_sequences - 1;
  while (first < last) {
    const int middle = (first + last + 1) / 2;
    const i64 start = sequences_of(a)[middle].start;
    if ((start >> level) / SIZE + middle <= in_head) first = middle; else last = middle - 1;
  }
  tile.sequence = first;
  const Sequence& s = sequences_of(a)[first];
  if (level >= s.levels || s.keys == 0) return false;
  const i64 start = (in_head - (i64(s.start) >> level) / SIZE - first) * SIZE, length = level_length(s.keys, level);
  if (start >= length) return false;
  tile.first = s.level_entry[level] + start;
  tile.stop = s.level_entry[level] + min(start + SIZE, length);
  return true;
}
