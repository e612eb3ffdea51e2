// The one argument of every kernel, by value. `args.py` reads this file, so that its Python twin cannot differ:
// one field a line, of the types pointer, i64, int or float, in this order of sizes.
#pragma once

struct Args {
  // Inputs. Strides count elements; the last axis is contiguous.
  const void* q;            // (batch, q_heads, q_len, DK), coordinate dtype
  const void* k;            // (batch, kv_heads, k_len, DK), coordinate dtype
  const void* cu_seqlens;   // (sequences + 1,) int32; null where nothing is packed
  // Tables and workspace.
  void* sequences;          // (sequences,) Sequence, see rows.cuh
  void* key_codes;          // (batch, kv_heads, k_len) u64: codes with the row above them, unsorted
  void* key_places;         // the same shape, int: positions in the sequence, unsorted
  void* sorted_codes;       // the same shape, u64
  void* sorted_places;      // the same shape, int
  void* query_codes;        // (batch, q_heads, q_len) u64: (row, level, code), unsorted
  void* query_places;       // the same shape, int: queries of the row, head in group * queries + i, unsorted
  void* level_counts;       // (batch * kv_heads, units, MAX_LEVELS) int: counts, then starts
  void* entry_codes;        // (batch * kv_heads, entries) u64
  void* entry_ranks;        // (curves, batch * kv_heads, entries) int: place of a key, by level start + position
  void* entry_positions;    // (curves, batch * kv_heads, entries) int
  // What is known of a selection.
  void* points;             // (curves, batch * kv_heads, entries) Point
  void* fine;               // (curves, batch * kv_heads, entries / 32) int: least position of 32 entries
  void* coarse;             // (curves, batch * kv_heads, entries / 1024 rounded up) int: and of 1024
  void* slots;              // (curves, batch, q_heads, q_len) int: queries of a row by level and code
  void* ranges;             // (curves, batch, q_heads, q_len) int2: entries [L, R) by query, from the row's first entry
  void* cut_distance;       // (batch, q_heads, q_len), coordinate dtype; only where the selection is cut
  void* cut_position;       // (batch, q_heads, q_len) int
  void* indices;            // (batch, q_heads, q_len, top_k) int
  i64 q_batch_stride;
  i64 q_head_stride;
  i64 q_stride;
  i64 k_batch_stride;
  i64 k_head_stride;
  i64 k_stride;
  i64 q_offset;
  i64 entries;              // capacity for each key head of a batch item, a multiple of 32
  int batch;
  int q_heads;
  int kv_heads;
  int q_len;
  int k_len;
  int num_sequences;        // of one batch item; 1 where nothing is packed
  int units;                // capacity of the count table, see levels.cu
  int top_k;
  int window;
  int num_curves;
  int curve;                // the curve that this launch is about
  int causal;
  int chunk_size;
  int include_self;
  int local_window;
  int bits;
  int linear;               // whether `bounds` are given
  int row_shift;            // where the row stands in a code; 64 if there is no room for it
  int query_shift;          // low bits of a query's code that its sort key leaves out
  int level_shift;          // where the level stands in a query's sort key
  float lo;
  float scale;
};
