// Tiles: stretches of a row's slots, and of one level's entries, that a warp or a block takes. Rows begin where their
// own first tile does; so many tiles are launched that every row has enough of them whatever the lengths are.
#pragma once
#include "rows.cuh"

struct SlotTile {
  int head_row;                         // of the key head, over all batch items
  int batch;
  int head;                             // the key head in its batch item
  int sequence;
  int queries;                          // of the sequence and one head
  int start;                            // of the sequence, along N
  int first;                            // slots [first, stop) of the row
  int stop;
  i64 row_slot;                         // first slot of the row
};

// Batch item and key head of a head row. A division takes twenty instructions: it is left out where it can be.
__device__ inline void split_head_row(const Args& a, int head_row, int& batch, int& head) {
  batch = a.batch == 1 ? 0 : int(u32(head_row) / u32(a.kv_heads));
  head = head_row - batch * a.kv_heads;
}

// The head in its group of the query with a number in a row.
__device__ inline int head_in_group(const Args& a, int number, int queries) {
  return a.group == 1 ? 0 : int(u32(number) / u32(queries));
}

// Tiles of SIZE slots of each key head of a batch item: enough for all of its rows.
template <int SIZE> __device__ inline int slot_tiles_of_head(const Args& a) {
  return a.q_len * group_size(a) / SIZE + a.num_sequences;
}

// Tiles of SIZE slots before those of a row.
template <int SIZE> __device__ inline int slot_tiles_before(const Args& a, int head_row, int sequence) {
  const int in_head = a.cu_seqlens ? sequences_of(a)[sequence].start * group_size(a) / SIZE + sequence : 0;
  return head_row * slot_tiles_of_head<SIZE>(a) + in_head;
}

// Tile number `n` over all rows; false where there is none.
template <int SIZE> __device__ inline bool find_slot_tile(const Args& a, u32 n, SlotTile& tile) {
  const u32 of_head = u32(slot_tiles_of_head<SIZE>(a));
  tile.head_row = int(n / of_head);
  if (tile.head_row >= a.batch * a.kv_heads) return false;
  split_head_row(a, tile.head_row, tile.batch, tile.head);
  int in_head = int(n - u32(tile.head_row) * of_head);
  tile.sequence = tile.start = 0;
  tile.queries = a.q_len;
  if (a.cu_seqlens) {
    const auto tiles_before = [&](int sequence) { return slot_tiles_before<SIZE>(a, 0, sequence); };
    tile.sequence = last_sequence(a, in_head, tiles_before);
    in_head -= tiles_before(tile.sequence);
    tile.start = sequences_of(a)[tile.sequence].start;
    tile.queries = sequences_of(a)[tile.sequence].queries;
  }
  const int slots = tile.queries * group_size(a);
  tile.first = in_head * SIZE;
  if (tile.first >= slots) return false;
  tile.stop = min(tile.first + SIZE, slots);
  tile.row_slot = (i64(tile.head_row) * a.q_len + tile.start) * group_size(a);
  return true;
}

struct EntryTile {
  int head_row;
  int batch;
  int head;
  int sequence;
  int level;
  int first;                            // entries [first, stop) of the batch item and head, all of one level
  int stop;
};

// Tile `n` of SIZE entries of level 0, or of all levels above it, over all rows; false where there is none.
// Tiles of a level: batch * kv_heads * ((k_len >> level) / SIZE + num_sequences).
template <int SIZE> __device__ inline bool find_entry_tile(const Args& a, u32 n, EntryTile& tile) {
  const u32 heads = u32(a.batch) * a.kv_heads;
  int level = a.level;
  u32 of_head = u32(a.k_len >> level) / SIZE + a.num_sequences;
  while (a.level > 0 && n >= heads * of_head && level + 1 < MAX_LEVELS) {
    n -= heads * of_head;
    of_head = u32(a.k_len >> ++level) / SIZE + a.num_sequences;
  }
  if (n >= heads * of_head) return false;
  tile.level = level;
  tile.head_row = int(n / of_head);
  split_head_row(a, tile.head_row, tile.batch, tile.head);
  const int in_head = int(n - u32(tile.head_row) * of_head);
  int first = 0, last = a.num_sequences - 1;
  const auto tiles_before = [&](int sequence) {
    return (sequences_of(a)[sequence].start >> level) / SIZE + sequence;
  };
  while (first < last) {
    const int middle = (first + last + 1) / 2;
    if (tiles_before(middle) <= in_head) first = middle; else last = middle - 1;
  }
  tile.sequence = first;
  const Sequence& s = sequences_of(a)[first];
  if (level >= s.levels || s.keys == 0) return false;
  const int start = (in_head - tiles_before(first)) * SIZE, length = int(level_length(s.keys, level));
  if (start >= length) return false;
  tile.first = int(s.entry + s.level_entry[level]) + start;
  tile.stop = tile.first + min(SIZE, length - start);
  return true;
}
