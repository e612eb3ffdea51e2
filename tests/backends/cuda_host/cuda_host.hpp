// Runs CUDA C++ kernels on the CPU: every thread of a block is a fiber, blocks run one after another.
// Barriers and warp functions hand control to the next fiber until all have arrived. A barrier that some thread never
// reaches ends the program with a message, and so does a block of threads that all wait.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "half.hpp"

#define __global__
#define __device__
#define __grid_constant__
#define __noinline__
#define __launch_bounds__(...)
// One block at a time, on one thread of the system. All shared memory lies together, so that each block finds NaN there.
#define __shared__ static __attribute__((section("zeta_shared")))
extern "C" __attribute__((visibility("hidden"))) char __start_zeta_shared[], __stop_zeta_shared[];

using std::max;
using std::min;

struct uint3 { unsigned x, y, z; };
struct int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };

namespace host {

struct Barrier { int arrived = 0; long generation = 0; };

struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<char[]> stack;
  uint3 thread;
  int number;
  bool started, done;
};

constexpr size_t STACK = 64 << 10;
inline std::vector<Fiber> fibers;
inline Fiber* current;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline std::vector<Barrier> warp_barriers;
inline std::vector<int> warp_threads;
inline std::vector<uint64_t> exchanged;
inline Barrier block_barrier;
inline int block_threads;
inline long progress;
inline uint3 block, block_size;

inline void yield() {
  if (!_setjmp(current->place)) _longjmp(scheduler, 1);
}

inline void resume(Fiber& fiber) {
  current = &fiber;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

// Threads that have returned no longer count, so that `threads` may fall while others wait.
inline void wait(Barrier& barrier, const int& threads) {
  const long generation = barrier.generation;
  ++barrier.arrived;
  for (;;) {
    if (barrier.generation != generation) return;
    if (barrier.arrived >= threads) {
      barrier.arrived = 0;
      ++barrier.generation;
      ++progress;
      return;
    }
    yield();
  }
}

inline int warp() { return current->number / 32; }
inline int lane_number() { return current->number % 32; }
inline void wait_for_warp() { wait(warp_barriers[warp()], warp_threads[warp()]); }

inline void run_thread() {
  body();
  current->done = true;
  --block_threads;
  --warp_threads[warp()];
  ++progress;
  yield();
}

// Every lane gives a value and takes that of lane `from`.
template <class T> T exchange(T value, int from) {
  uint64_t raw = 0;
  std::memcpy(&raw, &value, sizeof value);
  exchanged[current->number] = raw;
  wait_for_warp();
  raw = exchanged[warp() * 32 + from];
  wait_for_warp();
  std::memcpy(&value, &raw, sizeof value);
  return value;
}

template <class Kernel, class Arguments>
void launch(Kernel kernel, unsigned blocks, unsigned threads, const Arguments& arguments) {
  if (fibers.size() < threads) fibers.resize(threads);
  body = [&] { kernel(arguments); };
  block_size = {threads, 1, 1};
  for (unsigned b = 0; b < blocks; ++b) {
    block = {b, 0, 0};
    std::memset(__start_zeta_shared, 0xFF, size_t(__stop_zeta_shared - __start_zeta_shared));
    block_threads = int(threads);
    block_barrier = {};
    exchanged.assign(threads, 0);
    warp_barriers.assign(threads / 32, {});
    warp_threads.assign(threads / 32, 32);
    for (unsigned n = 0; n < threads; ++n) {
      Fiber& fiber = fibers[n];
      if (!fiber.stack) fiber.stack.reset(new char[STACK]);
      fiber.number = int(n);
      fiber.thread = {n, 0, 0};
      fiber.started = fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = STACK;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, run_thread, 0);
    }
    while (block_threads > 0) {
      const long before = progress;
      for (unsigned n = 0; n < threads; ++n)
        if (!fibers[n].done) resume(fibers[n]);
      if (progress == before) {
        std::fprintf(stderr, "deadlock: not all threads reach a barrier\n");
        std::abort();
      }
    }
  }
}

}  // namespace host

#define blockIdx host::block
#define blockDim host::block_size
#define threadIdx (host::current->thread)

inline void __syncthreads() { host::wait(host::block_barrier, host::block_threads); }
inline void __syncwarp() { host::wait_for_warp(); }
template <class T> T __shfl_sync(unsigned, T value, int from) { return host::exchange(value, from & 31); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
  return host::exchange(value, host::lane_number() ^ mask);
}
template <class T> T __shfl_up_sync(unsigned, T value, int by) {
  return host::exchange(value, max(host::lane_number() - by, 0));
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  host::exchanged[host::current->number] = vote;
  host::wait_for_warp();
  unsigned votes = 0;
  for (int n = 0; n < 32; ++n) votes |= unsigned(host::exchanged[host::warp() * 32 + n]) << n;
  host::wait_for_warp();
  return votes;
}
inline unsigned __match_any_sync(unsigned, int value) {
  host::exchanged[host::current->number] = unsigned(value);
  host::wait_for_warp();
  unsigned same = 0;
  for (int n = 0; n < 32; ++n) same |= unsigned(host::exchanged[host::warp() * 32 + n] == unsigned(value)) << n;
  host::wait_for_warp();
  return same;
}
inline int __reduce_add_sync(unsigned, int value) {
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(~0u, value, mask);
  return value;
}
inline unsigned __reduce_min_sync(unsigned, unsigned value) {
  for (int mask = 16; mask > 0; mask /= 2) value = min(value, __shfl_xor_sync(~0u, value, mask));
  return value;
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  for (int mask = 16; mask > 0; mask /= 2) value = max(value, __shfl_xor_sync(~0u, value, mask));
  return value;
}
inline bool __any_sync(unsigned, bool value) { return __ballot_sync(~0u, value) != 0; }
inline int atomicAdd(int* at, int value) { return (*at += value) - value; }
inline unsigned atomicMax(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at = max(before, value);
  return before;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  unsigned result = 0;
  for (int n = 0; n < 4; ++n) result |= unsigned(bytes >> 8 * (selector >> 4 * n & 7) & 255) << 8 * n;
  return result;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return by ? high << by | low >> (32 - by) : high;
}
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }

namespace host {

template <class To, class From> To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace host

inline int __float_as_int(float x) { return host::same_bits<int>(x); }
inline float __int_as_float(int bits) { return host::same_bits<float>(bits); }
inline long long __double_as_longlong(double x) { return host::same_bits<long long>(x); }
inline double __longlong_as_double(long long bits) { return host::same_bits<double>(bits); }
