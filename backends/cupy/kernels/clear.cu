// Gradients of keys and values that no query can select. One thread a key.
#include "attention.cuh"

ZETA_KERNEL(clear_keys_kernel, 256) {
  const i64 key = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (key >= i64(a.batch) * a.kv_heads * a.k_len) return;
  for (int c = 0; c < DK; ++c) static_cast<Coordinate*>(a.grad_k)[key * DK + c] = 0;
  for (int c = 0; c < a.value_dim; ++c) static_cast<Value*>(a.grad_v)[key * a.value_dim + c] = narrowed<Value>(0);
}
