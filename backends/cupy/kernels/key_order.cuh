// The keys of each head in the order of the first curve, sequence by sequence.
#pragma once
#include "rows.cuh"

// Write the place of key number `key`, over all batch items and heads, if there is such a key.
__device__ inline void order_key(const Args& a, i64 key) {
  if (key >= i64(a.batch) * a.kv_heads * a.k_len) return;
  const i64 head_row = key / a.k_len;
  const int token = int(key % a.k_len);
  const Sequence& s = sequences_of(a)[a.cu_seqlens ? sequence_of_token(a, token) : 0];
  const i64 entry = head_row * a.entries + s.entry + token - s.start;
  const bool exists = token - s.start < s.keys;  // not beyond borders that are out of order
  static_cast<int*>(a.key_order)[key] = exists ? s.start + static_cast<const int*>(a.entry_positions)[entry] : token;
}
