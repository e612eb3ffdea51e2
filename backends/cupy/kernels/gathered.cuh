// Products with rows of values that a warp gathers from memory, 32 of them at once, on tensor cores. The rows go
// straight into registers: in one product their columns are what is summed over, and a lane's 16 bytes of a row are its
// part of the tile; in the other the rows are, and two rows' halves are swapped to make pairs. Columns of a tile may
// stand in any order, and stand so that the reads are 16 bytes.
#pragma once
#include "given.cuh"
#include "tensor.cuh"

struct alignas(16) Eight { u32 pairs[4]; };  // columns of values

constexpr int GATHERING_WARPS = 4;      // of a block
constexpr int GATHERING_TURNS = 8;      // queries of a warp, looked up together

// Rows that are summed: where they are, in steps of 16 bytes from some row, and their weights. In shared memory, a warp
// its own.
struct alignas(16) WeightedRows {
  int rows[32];
  Value weights[32];

  __device__ void set(int place, int row, float weight) {
    rows[place] = row;
    weights[place] = narrowed<Value>(weight);
  }
};

// A sum of weighted rows. Lane l has columns 8 (l / 4) to 8 (l / 4) + 7 of each 64; the four that have the same add
// different rows, and all get the sum.
struct RowSums {
  static constexpr int CHUNKS = (DIM + 63) / 64;
  float sums[CHUNKS][4][4];

  __device__ void clear() {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[chunk][n][j] = 0;
  }
  __device__ static int column(int chunk) { return chunk * 64 + lane() / 4 * 8; }
  __device__ static bool exists(int chunk) { return DIM % 64 == 0 || column(chunk) < DIM; }
  __device__ float get(int chunk, int n) const { return sums[chunk][n / 2][n % 2 * 2]; }

  // Add the first `count` of 32 rows, or somewhat more: those beyond have no weight.
  __device__ void add(const Value* base, const WeightedRows& weighted, int count) {
    int rows[2][4];
    u32 weights[2][2];
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const int first = step * 16 + lane() % 4 * 4;
#pragma unroll
      for (int n = 0; n < 4; ++n) rows[step][n] = weighted.rows[first + n];
#pragma unroll
      for (int n = 0; n < 2; ++n) weights[step][n] = *reinterpret_cast<const u32*>(weighted.weights + first + 2 * n);
    }
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      Eight values[2][4];
      load(values[0], base, rows[0], chunk);
      load(values[1], base, rows[1], chunk);  // both on their way at once
      multiply(sums[chunk], values[0], weights[0]);
      if (count > 16) multiply(sums[chunk], values[1], weights[1]);
    }
  }
  __device__ static void load(Eight* values, const Value* base, const int* rows, int chunk) {
#pragma unroll
    for (int n = 0; n < 4; ++n)
      values[n] = exists(chunk) ? load_here<Eight>(steps_on(base + column(chunk), rows[n])) : Eight{};
  }
  __device__ static void multiply(float (*sums)[4], const Eight* values, const u32* weights) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const u32 tile[4] = {lows(values[0].pairs[n], values[1].pairs[n]), highs(values[0].pairs[n], values[1].pairs[n]),
                           lows(values[2].pairs[n], values[3].pairs[n]), highs(values[2].pairs[n], values[3].pairs[n])};
      mma_16x8x16(sums[n], tile, weights[0], weights[1]);
    }
  }
  __device__ static u32 lows(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
  __device__ static u32 highs(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

  __device__ void add(const float* row) {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
      for (int n = 0; n < 8; ++n)
        if (exists(chunk)) sums[chunk][n / 2][n % 2 * 2] += row[column(chunk) + n];
  }
  __device__ void store(float* row) const {
    if (lane() % 4 != 0) return;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
      for (int n = 0; n < 8; ++n)
        if (exists(chunk)) row[column(chunk) + n] = get(chunk, n);
  }
  // Write values: `get(chunk, n)`, or others in their place.
  template <class Get> __device__ static void store(Value* row, Get get) {
    if (lane() % 4 != 0) return;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      if (!exists(chunk)) continue;
      Eight values;
#pragma unroll
      for (int n = 0; n < 4; ++n) values.pairs[n] = pack(get(chunk, 2 * n), get(chunk, 2 * n + 1));
      reinterpret_cast<Eight*>(row)[column(chunk) / 8] = values;
    }
  }
};

// The row that rows are multiplied with: lane l has columns 8 (l % 4) to 8 (l % 4) + 7 of each 32.
struct OneRow {
  static constexpr int CHUNKS = (DIM + 31) / 32;
  Eight values[CHUNKS];

  // Its part of a row, from what `first_part` makes of the row's address.
  __device__ static const Eight* first_part(const Value* row) {
    return reinterpret_cast<const Eight*>(row) + lane() % 4;
  }
  __device__ static Eight part(const Eight* row, int chunk) {
    return DIM % 32 == 0 || chunk * 32 + lane() % 4 * 8 < DIM ? load_here<Eight>(row + chunk * 4) : Eight{};
  }
  __device__ void load(const Value* row) {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) values[chunk] = part(first_part(row), chunk);
  }

  // Whose product each lane gets, so that it gives that row.
  __device__ static int place() { return lane() / 4 + lane() % 4 * 8; }

  // Products with the first `count` of 32 rows, or somewhat more; rows count from `base` in steps of 16 bytes.
  __device__ float product(const Value* base, int row, int count) const {
    float products[2][4] = {};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      if (tile * 16 >= count) break;
      const int owner = lane() / 4 * 4 + 2 * tile;
      const void* from = first_part(base);
      const Eight* first = static_cast<const Eight*>(steps_on(from, __shfl_sync(FULL, row, owner)));
      const Eight* second = static_cast<const Eight*>(steps_on(from, __shfl_sync(FULL, row, owner + 1)));
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        const Eight x = part(first, chunk), y = part(second, chunk);
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
          const u32 rows[4] = {x.pairs[n], y.pairs[n], x.pairs[n + 1], y.pairs[n + 1]};
          mma_16x8x16(products[tile], rows, values[chunk].pairs[n], values[chunk].pairs[n + 1]);
        }
      }
    }
    const int quarter = lane() % 4;
    const float upper = quarter < 2 ? products[0][0] : products[1][0];
    const float lower = quarter < 2 ? products[0][2] : products[1][2];
    return quarter % 2 == 0 ? upper : lower;
  }
};

// A query as the pass over keys reads it.
struct alignas(16) GivenRecord {
  Coordinate x[DK];
  float inverse;                        // 1 / Z; 0 for a query that gives no gradients
  float delta;                          // D
};

// The lane's row, or where it has none that of the first lane that has one: read, but without weight.
__device__ inline int row_of_some(int row, u32 has_row) {
  const int other = __shfl_sync(FULL, row, __ffs(int(has_row)) - 1);
  return has_row >> lane() & 1 ? row : other;
}
