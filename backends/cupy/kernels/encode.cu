// Items of keys and queries for one curve, as the sort takes them. A block takes a stretch of one head's items.
#include "codes.cuh"
#include "items.cuh"

constexpr int ENCODE_THREADS = 256;
constexpr int ENCODE_ITEMS = 4 * ENCODE_THREADS;

ZETA_KERNEL(encode_kernel, ENCODE_THREADS) {
  const int items = items_of_head(a), blocks = (items + ENCODE_ITEMS - 1) / ENCODE_ITEMS;
  const int head_row = blockIdx.x / blocks, first = blockIdx.x % blocks * ENCODE_ITEMS;
  const int stop = min(first + ENCODE_ITEMS, items), head_of_batch = head_row % a.kv_heads;
  const Coordinate* keys = key_point(a, head_row, 0);
  const Coordinate* queries = static_cast<const Coordinate*>(a.q) + head_row / a.kv_heads * a.q_batch_stride +
                              i64(head_of_batch) * group_size(a) * a.q_head_stride;
  const i64 before = i64(head_row) * items;
#pragma unroll 4
  for (int number = first + int(threadIdx.x); number < stop; number += ENCODE_THREADS) {
    int head;
    const int token = token_of_item(a, number, head);
    const Coordinate* at = number < a.k_len ? keys + token * a.k_stride
                                            : queries + head * a.q_head_stride + token * a.q_stride;
    Coordinate point[DK];
#pragma unroll
    for (int c = 0; c < DK; ++c) point[c] = at[c];
    u64 word = encode(a, point, a.curve);
    if (!sorts_twice(a)) word |= row_of_item(a, head_row, token) << a.row_shift;
    if (a.number_bits > 0) word = word << a.number_bits | u64(number);
    else static_cast<int*>(a.numbers)[before + number] = number + (sorts_twice(a) ? int(before) : 0);
    static_cast<u64*>(a.items)[before + number] = word;
  }
}

// Between two sorts: replace the codes, which have served, by rows.
ZETA_KERNEL(rows_of_sorted_kernel, 256) {
  const i64 place = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  const int items = items_of_head(a);
  if (place >= i64(a.batch) * a.kv_heads * items) return;
  const int number = static_cast<const int*>(a.sorted_numbers)[place], head_row = number / items;
  int head;
  const int token = token_of_item(a, number % items, head);
  static_cast<u64*>(a.sorted_items)[place] = row_of_item(a, head_row, token);
}
