// Morton codes of points: quantise each coordinate to 27 bits, shift by the curve, keep the top bits, interleave.
#pragma once
#include "rows.cuh"

constexpr int CURVE_SHIFT = 44739242;   // a third of the range of 2^27 cells
constexpr int HALF = 1 << 26;
constexpr int U_MAX = (1 << 27) - 1;
constexpr int ONE_BITS = 0x3f800000;    // float 1.0

__device__ inline int quantise(const Args& a, float x) {
  if (x != x) return U_MAX;
  if (a.linear) {
    const float cell = floorf(multiply_rounded(subtract_rounded(x, a.lo), a.scale));
    if (cell != cell) return 0;         // an infinity minus an infinity: the definition clips it from below
    return cell >= 134217728.0f ? U_MAX : cell < 0.0f ? 0 : int(cell);
  }
  const float magnitude = add_rounded(1.0f, multiply_rounded(4.0f, fabsf(x)));
  const int m = min(__float_as_int(magnitude) - ONE_BITS, HALF - 1);
  const int bits = __float_as_int(x);   // a comparison might take a subnormal number for 0
  return bits < 0 && u32(bits) << 1 != 0 ? HALF - 1 - m : HALF + m;
}

__device__ inline u64 encode(const Args& a, const Coordinate* point, int curve) {
  const int shift = a.num_curves == 1 ? 0 : curve * CURVE_SHIFT, drop = (a.num_curves == 1 ? 27 : 28) - a.bits;
  int cells[DK];
#pragma unroll
  for (int c = 0; c < DK; ++c) cells[c] = (quantise(a, float(point[c])) + shift) >> drop;
  u64 code = 0;
  for (int bit = a.bits - 1; bit >= 0; --bit) {
#pragma unroll
    for (int c = 0; c < DK; ++c) code = code << 1 | (cells[c] >> bit & 1);
  }
  return code;
}

// A code with its row above it, where there is room. Codes of one row keep their order.
__device__ inline u64 with_row(const Args& a, u64 code, i64 row) {
  return a.row_shift < 64 ? code | u64(row) << a.row_shift : code;
}
