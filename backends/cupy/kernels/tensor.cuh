// Tensor-core products of 16-bit values, and copies that run ahead of them, behind a few functions with a version for
// the host. A warp multiplies tiles of 16 x 16; lane l holds rows l / 4 and l / 4 + 8 and columns 2 (l % 4), + 1, + 8,
// + 9. ZETA_TILE_DIM, the width of values, a multiple of 16, is set when a kernel is compiled.
#pragma once
#include "values.cuh"

constexpr int TILE = 16;                // queries or entries on each side
constexpr int DIM = ZETA_TILE_DIM;
constexpr int ROW_BYTES = 2 * DIM + 16; // of a staged row: the padding spreads the rows of a tile over all banks
constexpr int WARPS = 4;                // of a block, which share what is staged
constexpr int THREADS = 32 * WARPS;
constexpr int RESIDENT = DIM <= 64 ? 4 : 1;  // blocks of a multiprocessor at least: 128 registers a thread, or 255
constexpr int GROUP = TILE * WARPS;     // queries or entries of a block

template <class T> struct IsHalf { static constexpr bool value = false; };
template <> struct IsHalf<Half> { static constexpr bool value = true; };
constexpr bool IS_HALF = IsHalf<Value>::value;

#ifdef ZETA_HOST
#include "tensor.hpp"
#else
template <class T> __device__ inline void keep(const T*& address) { asm volatile("" : "+l"(address)); }

// base + n * stride, in one instruction.
__device__ inline const char* strided(const char* base, int n, int stride) {
  const char* address;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(address) : "r"(n), "r"(stride), "l"(base));
  return address;
}

// Two floats as 16-bit values, the first in the low half.
__device__ inline u32 pack(float low, float high) {
  u32 both;
  if constexpr (IS_HALF) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// c (16 x 8) += a (16 x 16) b (16 x 8)
__device__ inline void mma_16x8x16(float* c, const u32* a, u32 b0, u32 b1) {
#define ZETA_MMA(type)                                                                                             \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9}," \
               "{%0,%1,%2,%3};"                                                                                    \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (IS_HALF) ZETA_MMA("f16");
  else ZETA_MMA("bf16");
#undef ZETA_MMA
}

// An address in shared memory, as instructions take it.
using SharedAddress = u32;
__device__ inline SharedAddress shared_address(const void* at) { return u32(__cvta_generic_to_shared(at)); }

// Four 8 x 8 matrices from shared memory: lane l gives the address of row l % 8 of matrix l / 8.
template <bool TRANSPOSED> __device__ inline void ldmatrix_x4(u32* to, SharedAddress row) {
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}

// Copy 16 bytes to shared memory without waiting, or write zeros.
__device__ inline void stage_16B(SharedAddress to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(to), "l"(from), "r"(exists ? 16 : 0) : "memory");
}
// Wait until what this thread copied has come; __syncthreads makes it visible to the block.
__device__ inline void wait_for_stage() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// What this thread copied since the last call is a group; wait for all but the last GROUPS of them.
__device__ inline void end_stage_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS> __device__ inline void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS) : "memory");
}

// Ask for a line of memory ahead of its use.
__device__ inline void fetch_ahead(const void* at) { asm volatile("prefetch.global.L2 [%0];" :: "l"(at)); }

__device__ inline int least_of_warp(int x) {
  int least;
  asm("redux.sync.min.s32 %0, %1, 0xffffffff;" : "=r"(least) : "r"(x));
  return least;
}

__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

__device__ inline float low(u32 pair) {
  return widened(Value{(unsigned short)(pair & 0xffff)});
}
__device__ inline float high(u32 pair) { return widened(Value{(unsigned short)(pair >> 16)}); }

// gamma^2 plus a squared distance: it decides nothing, so that a compiler may contract it.
__device__ inline float squared_length(const float* difference, float square) {
#pragma unroll
  for (int c = 0; c < DK; ++c) square += difference[c] * difference[c];
  return square;
}

// Start to stage rows of values, all threads of a block together. `find(row, exists)` gives the address of a row below
// `count` and whether it exists: if not, zeros stand there.
template <class Find> __device__ inline void stage_rows(unsigned char* rows, int count, Find find) {
  constexpr int CHUNKS = DIM / 8;       // of 16 bytes in a row
  if constexpr (THREADS % CHUNKS == 0) {
    const int own = int(threadIdx.x / u32(CHUNKS)), column = int(threadIdx.x % u32(CHUNKS)) * 16;
    SharedAddress to = shared_address(rows) + own * ROW_BYTES + column;
#pragma unroll 4
    for (int row = own; row < count; row += THREADS / CHUNKS, to += THREADS / CHUNKS * ROW_BYTES) {
      bool exists;
      const char* from = find(row, exists);
      stage_16B(to, from + column, exists);
    }
  } else {
#pragma unroll 4
    for (u32 chunk = threadIdx.x; chunk < u32(count) * CHUNKS; chunk += THREADS) {
      const int row = int(chunk / CHUNKS), column = int(chunk % CHUNKS) * 16;
      bool exists;
      const char* from = find(row, exists);
      stage_16B(shared_address(rows) + row * ROW_BYTES + column, from + column, exists);
    }
  }
}

// 16 bytes, loaded and stored at once.
struct alignas(16) Packed { u32 words[4]; };

// products (16 x 16) = rows (in registers, as `load_rows` leaves them) times staged rows, transposed.
__device__ inline void multiply_rows(float (*products)[4], const u32 (*rows)[4], SharedAddress staged) {
  const int matrix = lane() / 8, row = matrix / 2 * 8 + lane() % 8;
  staged += row * ROW_BYTES + matrix % 2 * 16;
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int j = 0; j < 4; ++j) products[n][j] = 0;
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) {
    u32 b[4];
    ldmatrix_x4<false>(b, staged + step * 32);
    mma_16x8x16(products[0], rows[step], b[0], b[1]);
    mma_16x8x16(products[1], rows[step], b[2], b[3]);
  }
}

// sums (16 x DIM) += weights (16 x 16) times staged rows.
__device__ inline void add_rows(float (*sums)[4], const u32* weights, SharedAddress staged) {
  const int matrix = lane() / 8, row = matrix % 2 * 8 + lane() % 8;
  staged += row * ROW_BYTES + matrix / 2 * 16;
#pragma unroll
  for (int n = 0; n < DIM / 16; ++n) {
    u32 b[4];
    ldmatrix_x4<true>(b, staged + n * 32);
    mma_16x8x16(sums[2 * n], weights, b[0], b[1]);
    mma_16x8x16(sums[2 * n + 1], weights, b[2], b[3]);
  }
}

// Load this lane's part of 16 staged rows.
__device__ inline void load_rows(u32 (*rows)[4], SharedAddress staged) {
  staged += lane() % 16 * ROW_BYTES + lane() / 16 * 16;
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) ldmatrix_x4<false>(rows[step], staged + step * 32);
}
