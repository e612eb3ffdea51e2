// 16-bit floats as their bits, rounded to the nearest with ties to even.
#pragma once
#include <cstdint>
#include <cstring>

inline unsigned short float_to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fff;
  return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float half_to_float(unsigned short bits) {
  _Float16 x;
  std::memcpy(&x, &bits, 2);
  return float(x);
}

inline unsigned short float_to_half(float x) {
  const _Float16 half = _Float16(x);
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
