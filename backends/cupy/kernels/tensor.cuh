// Tensor-core products of 16-bit values, and copies that run ahead of them, behind a few functions with a version for
// the host. A warp multiplies tiles of 16 x 16; lane l holds rows l / 4 and l / 4 + 8 and columns 2 (l % 4), + 1, + 8,
// + 9. ZETA_TILE_DIM, the width of values, a multiple of 16, is set when a kernel is compiled.
#pragma once
#include "values.cuh"

constexpr int TILE = 16;                // queries or entries on each side
constexpr int DIM = ZETA_TILE_DIM;
constexpr int ROW_BYTES = 2 * DIM + 16; // of a staged row: the padding spreads the rows of a tile over all banks
constexpr int STAGED_ROWS = TILE * ROW_BYTES;  // what else is staged begins after them
constexpr int STAGES = 3;
constexpr int WARPS = DIM <= 64 ? 4 : DIM <= 128 ? 2 : 1;  // of a block: their stages share 48 KiB
constexpr int RESIDENT = DIM <= 64 ? 4 : 1;  // blocks of a multiprocessor at least: 128 registers a thread, or 255

template <class T> struct IsHalf { static constexpr bool value = false; };
template <> struct IsHalf<Half> { static constexpr bool value = true; };
constexpr bool IS_HALF = IsHalf<Value>::value;

#ifdef ZETA_HOST
#include "tensor.hpp"
#else
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

// Stage 16 rows of values. `find(row, from)` sets a row's address and says whether it exists: else zeros stand there.
template <class Find> __device__ inline void stage_rows(SharedAddress to, Find find) {
  constexpr u32 CHUNKS = DIM / 8;       // of 16 bytes in a row
#pragma unroll
  for (u32 n = 0; n < TILE * CHUNKS / 32; ++n) {
    const u32 chunk = n * 32 + u32(lane()), row = chunk / CHUNKS, column = chunk % CHUNKS;
    const Value* from;
    const bool exists = find(int(row), from);
    stage_16B(to + row * ROW_BYTES + column * 16, from + column * 8, exists);
  }
}

// Stage a stretch of memory of a multiple of 16 bytes.
template <int BYTES> __device__ inline void stage_bytes(SharedAddress to, const void* from) {
#pragma unroll
  for (int n = 0; n < (BYTES / 16 + 31) / 32; ++n) {
    const int at = (n * 32 + lane()) * 16;
    if (at < BYTES) stage_16B(to + at, static_cast<const unsigned char*>(from) + at, true);
  }
}

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

// Use blocks one after another while later ones are on their way. `next()` gives the next block or -1; `look_up(block)`
// starts to find out where its rows are, `stage(buffer, block)` starts to copy what was looked up last, and
// `use(buffer, block)` computes. All lanes together.
template <class Next, class LookUp, class Stage, class Use>
__device__ inline void pipeline(Next next, LookUp look_up, Stage stage, Use use) {
  int now = -1, soon = -1, last = next();  // the block used now, the one after it, and the one looked up last
  if (last >= 0) look_up(last);
  // One copy of each step, so that the loop stays small: the first rounds only fill the stages.
  for (int buffer = 0; now >= 0 || soon >= 0 || last >= 0; buffer = buffer + 1 == STAGES ? 0 : buffer + 1) {
    if (last >= 0) stage(buffer, last);
    commit_stage();
    const int later = last >= 0 ? next() : -1;
    if (later >= 0) look_up(later);
    if (now >= 0) {
      wait_for_stage<STAGES - 1>();
      __syncwarp();
      use(buffer + 1 == STAGES ? 0 : buffer + 1, now);
      __syncwarp();
    }
    now = soon;
    soon = last;
    last = later;
  }
}
