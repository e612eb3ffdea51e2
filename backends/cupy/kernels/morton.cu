// Morton codes alone, and back. One thread a code; `entries` of them, of `width` bytes each.
#include "codes.cuh"

ZETA_KERNEL(morton_encode_kernel, 256) {
  const i64 n = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= a.entries) return;
  const u64 code = Cells(a, static_cast<const Coordinate*>(a.q) + n * DK).code(a, a.curve);
  if (a.width == 8) static_cast<u64*>(a.codes)[n] = code;
  else static_cast<u32*>(a.codes)[n] = u32(code);
}

// Bit `b` of coordinate `c` stands at bit b * DK + DK - 1 - c of a code.
ZETA_KERNEL(morton_decode_kernel, 256) {
  const i64 n = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= a.entries) return;
  const u64 code = a.width == 8 ? static_cast<const u64*>(a.codes)[n] : u64(static_cast<const u32*>(a.codes)[n]);
  u32* cells = static_cast<u32*>(a.out) + n * DK;
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    u32 cell = 0;
    for (int bit = 0; bit < a.bits; ++bit) cell |= u32(code >> (bit * DK + DK - 1 - c) & 1) << bit;
    cells[c] = cell;
  }
}
