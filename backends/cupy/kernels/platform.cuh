// What differs between a GPU and the tests' host build stands here and nowhere else.
// ZETA_COORDINATE (float or double) and ZETA_DK are set when a kernel is compiled.
#pragma once

#ifdef ZETA_HOST
#include "cuda_host.hpp"
#endif

using i64 = long long;
using u64 = unsigned long long;
using u32 = unsigned int;
using Coordinate = ZETA_COORDINATE;

constexpr int DK = ZETA_DK;
constexpr u32 FULL = 0xffffffffu;  // all lanes of a warp

#ifdef ZETA_HOST
#define ZETA_KERNEL(name, ...) static void name(const Args a)
#else
// The arguments after the name are those of __launch_bounds__: threads of a block, and blocks of a multiprocessor at
// least.
#define ZETA_KERNEL(name, ...) \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Args a)
#endif

// Each operation rounded for itself, with subnormal numbers: these decide what is selected. As PTX, because CuPy
// compiles everything else such that subnormal floats count as 0. On the host: compiled with -ffp-contract=off.
#ifdef ZETA_HOST
__device__ inline float add_rounded(float a, float b) { return a + b; }
__device__ inline float subtract_rounded(float a, float b) { return a - b; }
__device__ inline float multiply_rounded(float a, float b) { return a * b; }
#else
#define ZETA_ROUNDED(name, operation)                                               \
  __device__ inline float name(float a, float b) {                                  \
    float result;                                                                   \
    asm(operation ".rn.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));           \
    return result;                                                                  \
  }
ZETA_ROUNDED(add_rounded, "add")
ZETA_ROUNDED(subtract_rounded, "sub")
ZETA_ROUNDED(multiply_rounded, "mul")
#undef ZETA_ROUNDED
#endif
#ifdef ZETA_HOST
__device__ inline double add_rounded(double a, double b) { return a + b; }
__device__ inline double subtract_rounded(double a, double b) { return a - b; }
__device__ inline double multiply_rounded(double a, double b) { return a * b; }
#else
__device__ inline double add_rounded(double a, double b) { return __dadd_rn(a, b); }
__device__ inline double subtract_rounded(double a, double b) { return __dsub_rn(a, b); }
__device__ inline double multiply_rounded(double a, double b) { return __dmul_rn(a, b); }
#endif

__device__ inline Coordinate infinity() { return __int_as_float(0x7f800000); }

// The logarithm of a number that is not tiny, in a few bits.
#ifdef ZETA_HOST
__device__ inline float log2_roughly(float x) { return std::log2(x); }
#else
__device__ inline float log2_roughly(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

// Load from global memory in this place among other such loads and barriers. For types of 4, 8 or a multiple of 16
// bytes, aligned to that or to 16.
template <class T> __device__ inline T load_here(const void* from) {
#ifdef ZETA_HOST
  return *static_cast<const T*>(from);
#else
  constexpr int WORDS = sizeof(T) / 4;
  union Whole {
    u32 words[WORDS];
    T value;
    __device__ Whole() {}
  } whole;
  u32* to = whole.words;
  if constexpr (WORDS == 1) asm volatile("ld.global.u32 %0, [%1];" : "=r"(to[0]) : "l"(from));
  if constexpr (WORDS == 2) asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(from));
  if constexpr (WORDS >= 4) {
#pragma unroll
    for (int n = 0; n < WORDS; n += 4)
      asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(to[n]), "=r"(to[n + 1]), "=r"(to[n + 2]), "=r"(to[n + 3])
                   : "l"(static_cast<const u32*>(from) + n));
  }
  return whole.value;
#endif
}

// Load what other blocks of the same launch have written: from where all of them see it.
template <class T> __device__ inline T load_shared_by_blocks(const T* from) {
#ifdef ZETA_HOST
  return *from;
#else
  return __ldcg(from);
#endif
}

// Count a job as done, and wait until so many are: what their blocks have written is then to be seen. All threads of a
// block together. On the host blocks run one after another.
__device__ inline void report_done(int* jobs) {
  __syncthreads();
  if (threadIdx.x > 0) return;
#ifndef ZETA_HOST
  __threadfence();
#endif
  atomicAdd(jobs, 1);
}
__device__ inline void await_done(const int* jobs, int wanted) {
#ifndef ZETA_HOST
  if (threadIdx.x == 0) {
    int done;
    do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(done) : "l"(jobs) : "memory");
    while (done < wanted);
  }
#endif
  __syncthreads();
}

// Ask for what is loaded soon: nothing waits for it.
__device__ inline void prefetch(const void* from) {
#ifndef ZETA_HOST
  asm volatile("prefetch.global.L1 [%0];" :: "l"(from));
#endif
}

// An address some steps on, as one instruction: left to itself, the compiler adds what is common to several.
template <int BYTES = 16> __device__ inline const void* steps_on(const void* from, int steps) {
#ifdef ZETA_HOST
  return static_cast<const unsigned char*>(from) + BYTES * i64(steps);
#else
  u64 to;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(to) : "r"(steps), "n"(BYTES), "l"(from));
  return reinterpret_cast<const void*>(to);
#endif
}

__device__ inline i64 warp_of_grid() { return (i64(blockIdx.x) * blockDim.x + threadIdx.x) / 32; }
__device__ inline int lane() { return threadIdx.x % 32; }

// How many of a vote's lanes are below this one.
__device__ inline int below_lane(u32 vote) { return __popc(vote & ((1u << lane()) - 1)); }

// A number that stays in its register: the compiler may otherwise work it out again wherever it is used.
__device__ inline void keep(int& value) {
#ifndef ZETA_HOST
  asm volatile("" : "+r"(value));
#endif
}
__device__ inline void keep(u32& value) {
#ifndef ZETA_HOST
  asm volatile("" : "+r"(value));
#endif
}

// The same numbers, exchanged between lanes, so that the compiler knows that all of them have the same: it then keeps
// what follows from them once for a warp. For all lanes together.
__device__ inline int uniform_warp_of_block() { return __shfl_sync(FULL, int(threadIdx.x / 32), 0); }
__device__ inline i64 uniform_warp_of_grid() { return i64(blockIdx.x) * (blockDim.x / 32) + uniform_warp_of_block(); }

// The least value of a warp's lanes, for all of them.
__device__ inline int warp_min(int value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = min(value, __shfl_xor_sync(FULL, value, offset));
  return value;
}

// The sum of the values of the lanes up to this one.
template <class T> __device__ inline T sum_to_lane(T value) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const T other = __shfl_up_sync(FULL, value, offset);
    if (lane() >= offset) value += other;
  }
  return value;
}

// 16-bit floats, which travel as their bits.
#ifndef ZETA_HOST
__device__ inline float half_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
__device__ inline unsigned short float_to_half(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
__device__ inline unsigned short float_to_bfloat16(float x) {
  u32 bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %1;" : "=r"(bits) : "f"(x));
  return (unsigned short)(bits & 0xffff);
}
#endif
