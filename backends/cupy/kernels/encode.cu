// Codes of keys and queries for one curve, in the form that the sort takes. One thread a point.
// Keys are sorted by (row, code): the sort is stable and they come in order of position. Queries are sorted by
// (row, level, leading bits of the code): their order within a level is for locality alone.
#include "codes.cuh"

ZETA_KERNEL(encode_keys_kernel, 256) {
  const i64 n = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= i64(a.batch) * a.kv_heads * a.k_len) return;
  const i64 head_row = n / a.k_len;
  const int token = int(n % a.k_len), sequence = sequence_of_token(a, token);
  const u64 code = encode(a, key_point(a, head_row, token), a.curve);
  static_cast<u64*>(a.key_codes)[n] = with_row(a, code, head_row * a.num_sequences + sequence);
  // Without room for the row, keys are sorted twice and have to be found again: they carry their number instead.
  const bool twice = a.row_shift == 64 && i64(a.batch) * a.kv_heads * a.num_sequences > 1;
  static_cast<int*>(a.key_places)[n] = twice ? int(n) : token - sequences_of(a)[sequence].start;
}

// Between the two sorts: replace the codes, which have served, by rows.
ZETA_KERNEL(rows_of_sorted_kernel, 256) {
  const i64 place = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (place >= i64(a.batch) * a.kv_heads * a.k_len) return;
  const i64 n = static_cast<const int*>(a.sorted_places)[place], head_row = n / a.k_len;
  static_cast<u64*>(a.sorted_codes)[place] = head_row * a.num_sequences + sequence_of_token(a, int(n % a.k_len));
}

// After them, with the order in `key_places`: codes and positions.
ZETA_KERNEL(gather_sorted_kernel, 256) {
  const i64 place = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (place >= i64(a.batch) * a.kv_heads * a.k_len) return;
  const i64 n = static_cast<const int*>(a.key_places)[place], head_row = n / a.k_len;
  const int token = int(n % a.k_len);
  static_cast<u64*>(a.sorted_codes)[place] = encode(a, key_point(a, head_row, token), a.curve);
  static_cast<int*>(a.sorted_places)[place] = token - sequences_of(a)[sequence_of_token(a, token)].start;
}

ZETA_KERNEL(encode_queries_kernel, 256) {
  const i64 n = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= i64(a.batch) * a.q_heads * a.q_len) return;
  const int token = int(n % a.q_len);
  const i64 head = n / a.q_len, head_row = head / group_size(a);
  const int sequence = a.cu_seqlens ? sequence_of_token(a, token) : 0;
  const Sequence& s = sequences_of(a)[sequence];
  const int number = int(head % group_size(a)) * s.queries + token - s.start;
  const Query query = query_of(a, head_row, sequence, number);
  const u64 level = level_of(query.visible, s.keys, s.levels);
  const u64 row = head_row * a.num_sequences + sequence;
  u64 code = encode(a, query_point(a, query), a.curve) >> a.query_shift;
  code |= level << a.level_shift | row << (a.level_shift + LEVEL_BITS);
  const i64 place = first_slot(a, head_row, s) + number;
  static_cast<u64*>(a.query_codes)[place] = code;
  static_cast<int*>(a.query_places)[place] = number;
}
