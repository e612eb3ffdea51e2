// The gradient of gamma: 2 gamma times the sum over a head's queries, in a fixed order. One block a head.
#include "attention.cuh"

ZETA_KERNEL(gamma_bwd_kernel, 1024) {
  __shared__ double sums[32];
  const int head = blockIdx.x;
  double sum = 0;
  for (int batch = 0; batch < a.batch; ++batch) {
    const Sum* squares = static_cast<const Sum*>(a.squares) + (i64(batch) * a.q_heads + head) * a.q_len;
    constexpr int AHEAD = 16;           // independent loads in flight
    for (int i = threadIdx.x; i < a.q_len; i += AHEAD * blockDim.x) {
      Sum here[AHEAD];
#pragma unroll
      for (int n = 0; n < AHEAD; ++n) {
        const int at = i + n * int(blockDim.x);
        here[n] = at < a.q_len ? squares[at] : Sum(0);
      }
#pragma unroll
      for (int n = 0; n < AHEAD; ++n) sum += double(here[n]);
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(FULL, sum, offset);
  if (lane() == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0;
  for (int warp = 0; warp < 32; ++warp) sum += sums[warp];
  const double gamma = double(static_cast<const Coordinate*>(a.gamma)[head]);
  static_cast<Coordinate*>(a.grad_gamma)[head] = Coordinate(2 * gamma * sum);
}
