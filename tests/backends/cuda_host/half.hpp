// 16-bit floats as their bits, rounded to the nearest with ties to even.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

inline uint32_t bits_of_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline unsigned short float_to_bfloat16(float x) {
  const uint32_t bits = bits_of_float(x);
  if (x != x) return 0x7fff;
  return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float half_to_float(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(float(fraction), -24);
  return sign * std::ldexp(float(1024 + fraction), exponent - 25);
}

inline unsigned short float_to_half(float x) {
  const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000;
  const float magnitude = std::fabs(x);
  if (x != x) return 0x7fff;
  if (magnitude >= 65520.0f) return (unsigned short)(sign | 0x7c00);  // nearer to 65536 than to the largest one
  if (magnitude < 6.103515625e-05f) return (unsigned short)(sign | uint32_t(std::nearbyint(std::ldexp(magnitude, 24))));
  const uint32_t rounded = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
  return (unsigned short)(sign | ((rounded >> 13) - (112 << 10)));
}
