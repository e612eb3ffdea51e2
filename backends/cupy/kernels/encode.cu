// Items of keys and queries, as the sort takes them, and how many of them have each digit. A block takes a stretch of
// the items of one batch item and key head, on all curves. Also what has to be there before the rest of a search: the
// table of sequences, and counters that are 0.
#include "codes.cuh"
#include "items.cuh"
#include "table.cuh"

constexpr int ENCODE_THREADS = 512;
constexpr int ENCODE_ITEMS = 8 * ENCODE_THREADS;

__device__ inline u64 row_of_item(const Args& a, int search, int token) {
  return u64(is_sorted_alone(a) ? 0 : search) * a.num_sequences + sequence_of_token(a, token);
}

// Make the items [first, stop) of a head's searches, on all curves, and count their digits: a block together.
template <bool SEVERAL>
__device__ inline void make_items(const Args& a, int head_row, int first, int stop, int* counts) {
  const int items = items_of_search(a), heads = a.batch * a.kv_heads;
  const Coordinate* keys = key_point(a, head_row, 0);
  const Coordinate* queries = static_cast<const Coordinate*>(a.q) + batch_of(a, head_row) * a.q_batch_stride +
                              i64(head_in_batch(a, head_row)) * group_size(a) * a.q_head_stride;
#pragma unroll SEVERAL ? 1 : 4
  for (int number = first + int(threadIdx.x); number < stop; number += ENCODE_THREADS) {
    int head;
    const int token = token_of_item(a, number, head);
    const Coordinate* at = number < a.k_len ? keys + token * a.k_stride
                                            : queries + head * a.q_head_stride + token * a.q_stride;
    Coordinate point[DK];
#pragma unroll
    for (int c = 0; c < DK; ++c) point[c] = at[c];
    const Cells cells(a, point);
    int* of_curve = counts;
    for (int curve = 0; curve < (SEVERAL ? a.num_curves : 1); ++curve, of_curve += a.sort_passes * RADIX) {
      const int search = curve * heads + head_row;
      const i64 before = i64(search) * items;
      u64 word = cells.code(a, curve);
      if (!sorts_twice(a)) word |= row_of_item(a, search, token) << a.row_shift;
      if (is_sorted_alone(a)) word = word << a.number_bits | u64(number);
      else static_cast<int*>(a.numbers)[before + number] = number + (sorts_twice(a) ? int(before) : 0);
      static_cast<u64*>(a.items)[before + number] = word;
      for (int pass = 0; pass < a.sort_passes; ++pass)
        atomicAdd(&of_curve[pass * RADIX + RadixDigit(a, pass).of(word)], 1);
    }
  }
}

ZETA_KERNEL(encode_kernel, ENCODE_THREADS, sizeof(Point) <= 32 ? 4 : 2) {
  __shared__ int counts[MOST_CURVES * MOST_PASSES * RADIX];
  if (blockIdx.x == 0) write_table(a);
  const int items = items_of_search(a), blocks = a.encode_blocks, heads = a.batch * a.kv_heads;
  if (items == 0) return;
  const int digits = a.sort_passes * RADIX;
  for (int n = threadIdx.x; n < a.num_curves * digits; n += ENCODE_THREADS) counts[n] = 0;
  const i64 step = i64(blocks) * heads * ENCODE_THREADS * 4;  // of all blocks
  for (i64 n = (i64(blockIdx.x) * ENCODE_THREADS + threadIdx.x) * 4; n < a.state_words; n += step)
    *reinterpret_cast<int4*>(static_cast<u32*>(a.state) + n) = int4{0, 0, 0, 0};
  __syncthreads();
  const int head_row = int(blockIdx.x) / blocks, block = int(blockIdx.x) % blocks;
  const int first = block * ENCODE_ITEMS, stop = min(first + ENCODE_ITEMS, items);
  if (a.num_curves == 1) make_items<false>(a, head_row, first, stop, counts);
  else make_items<true>(a, head_row, first, stop, counts);
  __syncthreads();
  for (int curve = 0; curve < a.num_curves; ++curve) {
    int* of_block = static_cast<int*>(a.digit_counts) + (i64(curve * heads + head_row) * blocks + block) * digits;
    for (int n = threadIdx.x; n < digits; n += ENCODE_THREADS) of_block[n] = counts[curve * digits + n];
  }
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
