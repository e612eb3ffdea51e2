// Morton codes of points: quantise each coordinate to 27 bits, shift by the curve, keep the top bits, interleave.
#pragma once
#include "rows.cuh"

constexpr int CURVE_SHIFT = 44739242;   // a third of the range of 2^27 cells
constexpr int HALF = 1 << 26;
constexpr int U_MAX = (1 << 27) - 1;
constexpr int ONE_BITS = 0x3f800000;    // float 1.0

__device__ inline int quantise(const Args& a, float x) {
  if (a.linear) {
    if (x != x) return U_MAX;
    const float cell = floorf(multiply_rounded(subtract_rounded(x, a.lo), a.scale));
    if (cell != cell) return 0;         // an infinity minus an infinity: the definition clips it from below
    return cell >= 134217728.0f ? U_MAX : cell < 0.0f ? 0 : int(cell);
  }
  const float magnitude = add_rounded(1.0f, multiply_rounded(4.0f, fabsf(x)));
  const int m = min((__float_as_int(magnitude) & 0x7fffffff) - ONE_BITS, HALF - 1);  // a NaN is above all
  // By its bits, which no comparison takes for 0: from the negative number next to 0 to minus infinity, and no NaN.
  const bool negative = u32(__float_as_int(x)) - 0x80000001u < 0x7f800000u;
  return negative ? HALF - 1 - m : HALF + m;
}

// Put zeros between the bits of a cell: DK - 1 of them. For up to 10 bits of three coordinates 32 bits are enough.
__device__ inline u64 spread_by_two(u64 x) {
  x = (x | x << 16) & 0x0000ffff0000ffffull;
  x = (x | x << 8) & 0x00ff00ff00ff00ffull;
  x = (x | x << 4) & 0x0f0f0f0f0f0f0f0full;
  x = (x | x << 2) & 0x3333333333333333ull;
  return (x | x << 1) & 0x5555555555555555ull;
}
__device__ inline u32 spread_by_three(u32 x) {
  x = (x | x << 16) & 0x030000ff;
  x = (x | x << 8) & 0x0300f00f;
  x = (x | x << 4) & 0x030c30c3;
  return (x | x << 2) & 0x09249249;
}

__device__ inline u64 interleave(const int* cells, int bits) {
  u64 code = 0;
  if (DK == 1) return u64(cells[0]);
  if (DK == 2) return spread_by_two(u64(cells[0])) << 1 | spread_by_two(u64(cells[1]));
  if (DK == 3) {
    for (int from = 0;;) {
      u32 part = 0;
#pragma unroll
      for (int c = 0; c < DK; ++c) part = part << 1 | spread_by_three(u32(cells[c]) >> from & 0x3ff);
      code |= u64(part) << 3 * from;
      from += 10;
      if (from >= bits) return code;
    }
  }
  for (int bit = bits - 1; bit >= 0; --bit) {
#pragma unroll
    for (int c = 0; c < DK; ++c) code = code << 1 | (cells[c] >> bit & 1);
  }
  return code;
}

// A point in cells, which has a code on each curve.
struct Cells {
  int cells[DK];

  __device__ Cells(const Args& a, const Coordinate* point) {
#pragma unroll
    for (int c = 0; c < DK; ++c) cells[c] = quantise(a, float(point[c]));
  }
  __device__ u64 code(const Args& a, int curve) const {
    const int shift = a.num_curves == 1 ? 0 : curve * CURVE_SHIFT, drop = (a.num_curves == 1 ? 27 : 28) - a.bits;
    int kept[DK];
#pragma unroll
    for (int c = 0; c < DK; ++c) kept[c] = (cells[c] + shift) >> drop;
    return interleave(kept, a.bits);
  }
};
