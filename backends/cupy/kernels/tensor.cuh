// Tensor-core products of 16-bit values, and copies that run ahead of them, behind a few functions with a version for
// the host. A warp multiplies tiles of 16 x 16; lane l holds rows l / 4 and l / 4 + 8 and columns 2 (l % 4), + 1, + 8,
// + 9. ZETA_TILE_DIM, the width of values, a multiple of 16, is set when a kernel is compiled.
#pragma once
#include "values.cuh"

constexpr int TILE = 16;                // queries or entries on each side
constexpr int DIM = ZETA_TILE_DIM;
constexpr int ROW_BYTES = 2 * DIM + 16; // of a staged row: the padding spreads the rows of a tile over all banks
constexpr int STAGES = DIM <= 128 ? 3 : 2;
constexpr int WARPS = 4;                // of a block, which share what is staged
constexpr int THREADS = 32 * WARPS;
constexpr int GROUP = TILE * WARPS;     // queries or entries of a block

template <class T> struct IsHalf { static constexpr bool value = false; };
template <> struct IsHalf<Half> { static constexpr bool value = true; };
constexpr bool IS_HALF = IsHalf<Value>::value;

#ifdef ZETA_HOST
#include "tensor.hpp"
#else
// Keep a value in a register: a compiler that sees how it came about may work it out again and again.
__device__ inline void keep(int& value) { asm volatile("" : "+r"(value)); }
template <class T> __device__ inline void keep(const T*& address) { asm volatile("" : "+l"(address)); }

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
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;"
               :: "r"(to), "l"(from), "r"(exists ? 16 : 0) : "memory");
}
__device__ inline void commit_stage() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until all but the last `LATER` stages have come; a __syncwarp makes them visible to the warp.
template <int LATER> __device__ inline void wait_for_stage() {
  asm volatile("cp.async.wait_group %0;" :: "n"(LATER) : "memory");
}

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

// Stage ROWS rows of values, all threads of a block together. `find(n, row)` gives the address of this thread's n-th
// row, or null: then zeros stand there.
template <int ROWS> struct RowLoader {
  static constexpr int CHUNKS = DIM / 8;  // of 16 bytes in a row
  static constexpr int COPIES = (ROWS * CHUNKS + THREADS - 1) / THREADS;  // of each thread

  static constexpr bool EVEN = ROWS * CHUNKS % THREADS == 0;  // every thread has as many copies

  // The row of this thread's n-th copy, which does not exist if that is ROWS; and the first column.
  __device__ static int row(u32 n) {
    if constexpr (THREADS % CHUNKS == 0) return int(n * (THREADS / CHUNKS) + threadIdx.x / u32(CHUNKS));
    const u32 row = (n * THREADS + threadIdx.x) / u32(CHUNKS);
    return EVEN ? int(row) : min(int(row), ROWS);
  }
  __device__ static int column(u32 n) {
    return int((THREADS % CHUNKS == 0 ? threadIdx.x : n * THREADS + threadIdx.x) % u32(CHUNKS) * 8);
  }
  __device__ static bool exists(u32 n) { return EVEN || row(n) < ROWS; }
  // Which stretch of SIZE rows the row belongs to: known where a thread's copies lie far enough from one another.
  template <int SIZE> __device__ static int part(u32 n) {
    if constexpr (ROWS == SIZE) return 0;
    if constexpr (THREADS % CHUNKS == 0 && SIZE % (THREADS / CHUNKS) == 0) return int(n) * (THREADS / CHUNKS) / SIZE;
    return min(row(n), ROWS - 1) / SIZE;
  }

  template <class Find> __device__ static void stage(SharedAddress to, Find find) {
#pragma unroll
    for (int n = 0; n < COPIES; ++n) {
      if (!exists(n)) break;
      bool exists;
      const Value* from = find(n, exists);
      stage_16B(to + row(n) * ROW_BYTES + column(n) * 2, from + column(n), exists);
    }
  }
};

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

// Load this lane's part of 16 rows from memory: `first` and `second` are those of rows l / 4 and l / 4 + 8, or null for
// 0.
__device__ inline void load_rows(u32 (*rows)[4], const Value* first, const Value* second) {
  const int column = 2 * (lane() % 4);
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = step * 16 + half * 8 + column;
      rows[step][2 * half] = first ? *reinterpret_cast<const u32*>(first + at) : 0;
      rows[step][2 * half + 1] = second ? *reinterpret_cast<const u32*>(second + at) : 0;
    }
  }
}

// Use chunks one after another while later ones are on their way. `stage(buffer)` starts to copy the next chunk, or
// returns false where there is none; `use(buffer)` computes. All threads of a block together.
template <class Stage, class Use> __device__ inline void pipeline(Stage stage, Use use) {
  bool more = true;
  int staged = 0, into = 0, buffer = 0;
  // One copy of each step, so that the loop stays small: the first rounds only fill the stages.
  for (int chunk = 1 - STAGES; chunk < staged || chunk < 0; ++chunk) {
    if (chunk >= 0) {
      wait_for_stage<STAGES - 2>();
      __syncthreads();
    }
    more = more && stage(into);
    staged += more;
    commit_stage();
    into = into + 1 == STAGES ? 0 : into + 1;
    if (chunk < 0) continue;
    use(buffer);
    buffer = buffer + 1 == STAGES ? 0 : buffer + 1;
  }
}
