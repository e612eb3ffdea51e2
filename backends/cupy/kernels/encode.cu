// Items of keys and queries for one curve, and how often each digit occurs in each pass of their sort. A block takes a
// stretch of one head's items.
#include "codes.cuh"
#include "items.cuh"

constexpr int ENCODE_THREADS = 512;
constexpr int ENCODE_ITEMS = 8 * ENCODE_THREADS;

template <bool WIDE> __device__ inline void encode_items(const Args& a) {
  __shared__ int counts[MOST_PASSES * RADIX];
  const int items = items_of_head(a), blocks = (items + ENCODE_ITEMS - 1) / ENCODE_ITEMS;
  const int head_row = blockIdx.x / blocks, first = blockIdx.x % blocks * ENCODE_ITEMS;
  const int stop = min(first + ENCODE_ITEMS, items), head_of_batch = head_row % a.kv_heads;
  const Coordinate* keys = key_point(a, head_row, 0);
  const Coordinate* queries = static_cast<const Coordinate*>(a.q) + head_row / a.kv_heads * a.q_batch_stride +
                              i64(head_of_batch) * group_size(a) * a.q_head_stride;
  u64* words = static_cast<u64*>(a.items[0]) + i64(head_row) * items;
  for (int n = threadIdx.x; n < a.passes * RADIX; n += ENCODE_THREADS) counts[n] = 0;
  __syncthreads();
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
    if (!WIDE) {
      if (a.num_sequences > 1) word |= u64(sequence_of_token(a, token)) << a.code_bits;
      word = word << a.number_bits | u64(number);
    } else {
      static_cast<int*>(a.numbers[0])[i64(head_row) * items + number] = number;
    }
    words[number] = word;
    for (int pass = 0; pass < a.passes; ++pass)
      atomicAdd(&counts[pass * RADIX + digit_of<WIDE>(a, word, number, pass)], 1);
  }
  __syncthreads();
  int* all = digit_counts(a, head_row);
  for (int n = threadIdx.x; n < a.passes * RADIX; n += ENCODE_THREADS)
    if (counts[n] > 0) atomicAdd(&all[n], counts[n]);
}

ZETA_KERNEL(encode_kernel, ENCODE_THREADS) { encode_items<false>(a); }
ZETA_KERNEL(encode_wide_kernel, ENCODE_THREADS) { encode_items<true>(a); }
