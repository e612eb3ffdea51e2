// The one argument of every kernel, by value. `args.py` reads this file, so that its Python twin cannot differ:
// one field a line, of the types pointer, i64, int or float, in this order of sizes.
#pragma once

struct Args {
  // Inputs. Strides count elements; the last axis is contiguous.
  const void* q;            // (batch, q_heads, q_len, DK), coordinate dtype
  const void* k;            // (batch, kv_heads, k_len, DK), coordinate dtype
  const void* v;            // (batch, kv_heads, k_len, value_dim), value dtype
  const void* gamma;        // (q_heads,), coordinate dtype
  const void* cu_seqlens;   // (sequences + 1,) int32; null where nothing is packed
  const void* grad_out;     // (batch, q_heads, q_len, value_dim), value dtype
  // Outputs, contiguous.
  void* out;                // (batch, q_heads, q_len, value_dim), value dtype
  void* normalizer;         // (batch, q_heads, q_len), sum dtype; an input of the backward pass
  void* grad_q;             // (batch, q_heads, q_len, DK), coordinate dtype
  void* grad_k;             // (batch, kv_heads, k_len, DK), coordinate dtype
  void* grad_v;             // (batch, kv_heads, k_len, value_dim), value dtype
  void* grad_gamma;         // (q_heads,), coordinate dtype
  void* indices;            // (batch, q_heads, q_len, width) int
  void* distances;          // the same shape, float: squared distances of the keys of a list; null where not asked for
  void* codes;              // for encoding and decoding alone: see morton.cu
  // Tables and workspace.
  void* sequences;          // (sequences,) Sequence, see rows.cuh
  void* state;              // counters that encoding sets to 0: (curves * batch * kv_heads, levels, units) u64, see
                            // items.cuh, and behind them what the sort looks back at, see sort.cu
  void* digit_counts;       // (curves * batch * kv_heads, encode_blocks, sort_passes, 256) int: items with each digit
  void* digit_starts;       // (sort_passes, curves * batch * kv_heads, 256) int: where they begin
  void* items;              // (curves, batch * kv_heads, k_len + group * q_len) u64, see items.cuh
  void* numbers;            // the same shape, int; only where items have no room for them
  void* sorted_items;       // the same shapes
  void* sorted_numbers;
  void* order;              // that one of these that holds the numbers in order
  void* slot_places;        // (curves, batch, q_heads, q_len) int2: number of a slot's query, entry that it is before
  void* sorted_places;      // (curves - 1, batch * kv_heads, k_len) int: of keys in their searches, see items.cuh
  void* entry_positions;    // (curves, batch * kv_heads, entries) int
  void* extents;            // Extent, of stretches of 1024, 32 and 32768 slots, see extents.cuh
  void* pulls;              // (batch, q_heads, q_len) Pull, see attention.cuh: parts of a query's gradients
  void* tails;              // (batch, q_heads, q_len) QueryTail in the order of slots, see tile_tails.cuh
  void* records;            // (batch, q_heads, q_len) GivenRecord, by tile, see tile_pairs.cuh
  void* history_sums;       // (batch * kv_heads, history_chunks, DK + value_dim) double, see history.cuh
  void* history_terms;      // (batch, q_heads, q_len, 2 + DK), sum dtype, see history.cuh
  void* delta;              // (batch, q_heads, q_len), sum dtype: D = grad_out . out
  void* squares;            // (batch, q_heads, q_len), sum dtype: gradient of gamma^2
  void* sum_k;              // (batch, kv_heads, k_len, DK), sum dtype: gradients of keys and values while they grow;
  void* sum_v;              // (batch, kv_heads, k_len, value_dim) the gradients themselves where dtypes are the same
  void* level_k;            // (batch * kv_heads, upper_entries, DK), sum dtype: what the levels above 0 add to them
  void* level_v;            // (batch * kv_heads, upper_entries, value_dim)
  void* pair_keys;          // (batch, q_heads, q_len, width) u32: keys that the indices name, see given_pairs.cuh
  void* pair_queries;       // the same shape, int: queries that name them, head in group * q_len + token, or -1
  void* sorted_pair_keys;   // the same shape, u32
  void* sorted_pair_queries;  // the same shape, int
  void* pair_starts;        // (batch, kv_heads, k_len) int: where each key's sorted pairs begin
  void* key_order;          // (batch, kv_heads, k_len) int: tokens of the keys of each head, neighbours in code order
  void* tile_pairs;         // (tiles, 16, width) TilePair, see tile_pairs.cuh
  void* tile_counts;        // (tiles,) int: how many pairs each tile has
  void* group_runs;         // (places,) Run
  void* group_counts;       // (groups + 1,) GroupCounts
  void* heavy_parts;        // (heavy parts,) HeavyPart
  void* key_places;         // (batch, kv_heads, k_len) int: places of the keys of each head in key_order
  void* stretch_k;          // (places / 1024, DK), sum dtype: gradients from stretches of pairs that name one key
  void* stretch_v;          // (places / 1024, value_dim)
  // What is known of a selection, for each curve.
  void* points[3];          // (batch, kv_heads, entries) Point
  void* fine[3];            // (batch, kv_heads, entries / 32) int: least position of 32 entries
  void* coarse[3];          // (batch, kv_heads, entries / 1024 rounded up) int: and of 1024
  void* slots;              // (batch, q_heads, q_len) Slot: by level and code; null where the selection is listed
  void* query_order;        // the same shape, int: numbers of queries in that order, where it is listed
  void* ranges[3];          // (batch, q_heads, q_len) int2: entries [L, R) by query, from the row's first, likewise
  void* earlier[3];         // (batch, kv_heads, entries, curve) int: sorted places of the keys on the curves before
  i64 q_batch_stride;
  i64 q_head_stride;
  i64 q_stride;
  i64 k_batch_stride;
  i64 k_head_stride;
  i64 k_stride;
  i64 v_batch_stride;
  i64 v_head_stride;
  i64 v_stride;
  i64 g_batch_stride;       // of grad_out
  i64 g_head_stride;
  i64 g_stride;
  i64 q_offset;
  i64 entries;              // capacity for each key head of a batch item, a multiple of 256
  i64 upper_entries;        // and of the levels above 0
  i64 state_words;
  i64 level_words;          // those of levels
  int batch;
  int q_heads;
  int kv_heads;
  int group;                // query heads that read one key head
  int q_len;
  int k_len;
  int value_dim;
  int width;                // indices of each query
  int num_sequences;        // of one batch item; 1 where nothing is packed
  int history_chunks;       // capacity of chunks of tokens for each key head of a batch item
  int units;                // of each search, see levels.cu
  int encode_blocks;        // of each search
  int sort_passes;          // 0 where a search is not sorted by itself
  int sorted_bits;
  int digit_bits;           // of a pass, fewer of the last one
  int levels;               // of a sequence at most
  int top_k;
  int window;
  int num_curves;
  int curve;                // of codes that are made alone
  int level;                // and the level: 0, or 1 for all above it
  int prior;                // out and normalizer, or pulls, hold an earlier part of each query's attention
  int carried;              // sum_k and sum_v hold earlier parts for all keys
  int from_end;             // whether a scan runs from the end
  int token_bits;           // of a token in the key of a pair, see given_pairs.cuh
  int last;                 // whether this launch completes the gradients of keys and values
  int causal;
  int chunk_size;
  int include_self;
  int local_window;
  int bits;
  int linear;               // whether `bounds` are given
  int number_bits;          // below a code in an item; 0 if there is no room for a number
  int row_shift;            // where the row stands above a code; 64 if there is no room for it
  float lo;
  float scale;
  float largest_weight;     // relative to that of a selected key near the query, see ranges.cu
};
