// Items of keys and queries, as the sort takes them, and how many of them have each digit. A block takes a stretch of
// the items of one search. Also what has to be there before the rest of a search: the table of sequences, and counters
// that are 0.
#include "codes.cuh"
#include "items.cuh"
#include "table.cuh"

constexpr int ENCODE_THREADS = 512;
constexpr int ENCODE_ITEMS = 8 * ENCODE_THREADS;

__device__ inline u64 row_of_item(const Args& a, int search, int token) {
  return u64(is_sorted_alone(a) ? 0 : search) * a.num_sequences + sequence_of_token(a, token);
}

ZETA_KERNEL(encode_kernel, ENCODE_THREADS, sizeof(Point) <= 32 ? 4 : 2) {
  __shared__ int counts[MOST_PASSES * RADIX];
  if (blockIdx.x == 0) write_table(a);
  const int items = items_of_search(a), blocks = a.encode_blocks;
  if (items == 0) return;
  const int digits = a.sort_passes * RADIX;
  for (int n = threadIdx.x; n < digits; n += ENCODE_THREADS) counts[n] = 0;
  const i64 step = i64(blocks) * a.num_curves * a.batch * a.kv_heads * ENCODE_THREADS * 4;  // of all blocks
  for (i64 n = (i64(blockIdx.x) * ENCODE_THREADS + threadIdx.x) * 4; n < a.state_words; n += step)
    *reinterpret_cast<int4*>(static_cast<u32*>(a.state) + n) = int4{0, 0, 0, 0};
  __syncthreads();
  const Search search = search_numbered(a, int(blockIdx.x) / blocks);
  const int first = int(blockIdx.x) % blocks * ENCODE_ITEMS, stop = min(first + ENCODE_ITEMS, items);
  const Coordinate* keys = key_point(a, search.head_row, 0);
  const Coordinate* queries = static_cast<const Coordinate*>(a.q) + batch_of(a, search.head_row) * a.q_batch_stride +
                              i64(head_in_batch(a, search.head_row)) * group_size(a) * a.q_head_stride;
  const i64 before = i64(search.number) * items;
#pragma unroll 4
  for (int number = first + int(threadIdx.x); number < stop; number += ENCODE_THREADS) {
    int head;
    const int token = token_of_item(a, number, head);
    const Coordinate* at = number < a.k_len ? keys + token * a.k_stride
                                            : queries + head * a.q_head_stride + token * a.q_stride;
    Coordinate point[DK];
#pragma unroll
    for (int c = 0; c < DK; ++c) point[c] = at[c];
    u64 word = encode(a, point, search.curve);
    if (!sorts_twice(a)) word |= row_of_item(a, search.number, token) << a.row_shift;
    if (is_sorted_alone(a)) word = word << a.number_bits | u64(number);
    else static_cast<int*>(a.numbers)[before + number] = number + (sorts_twice(a) ? int(before) : 0);
    static_cast<u64*>(a.items)[before + number] = word;
    for (int pass = 0; pass < a.sort_passes; ++pass) atomicAdd(&counts[pass * RADIX + RadixDigit(a, pass).of(word)], 1);
  }
  __syncthreads();
  int* of_block = static_cast<int*>(a.digit_counts) + i64(blockIdx.x) * digits;
  for (int n = threadIdx.x; n < digits; n += ENCODE_THREADS) of_block[n] = counts[n];
}

// Between two sorts: replace the codes, which have served, by rows.
ZETA_KERNEL(rows_of_sorted_kernel, 256) {
  const i64 place = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  const int items = items_of_search(a);
  if (place >= i64(a.batch) * a.kv_heads * a.num_curves * items) return;
  const int number = static_cast<const int*>(a.sorted_numbers)[place], search = number / items;
  int head;
  const int token = token_of_item(a, number % items, head);
  static_cast<u64*>(a.sorted_items)[place] = row_of_item(a, search, token);
}
