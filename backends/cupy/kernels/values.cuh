// Values: of 16 bits, float or double. Sums of them are float, or double where a coordinate or a value is.
// ZETA_VALUE (Half, Bfloat16, float or double) and ZETA_LANE_COLUMNS are set when a kernel is compiled.
#pragma once
#include "platform.cuh"

struct Half { unsigned short bits; };
struct Bfloat16 { unsigned short bits; };

using Value = ZETA_VALUE;

template <class A, class B> struct Wider { using type = float; };
template <class B> struct Wider<double, B> { using type = double; };
template <class A> struct Wider<A, double> { using type = double; };
template <> struct Wider<double, double> { using type = double; };
using Sum = Wider<Coordinate, Value>::type;

__device__ inline float widened(Half x) { return half_to_float(x.bits); }
__device__ inline float widened(Bfloat16 x) { return __int_as_float(int(x.bits) << 16); }
__device__ inline float widened(float x) { return x; }
__device__ inline double widened(double x) { return x; }

// To the nearest value, ties to even.
template <class To> __device__ inline To narrowed(Sum x) { return To(x); }
template <> __device__ inline Half narrowed<Half>(Sum x) { return Half{float_to_half(float(x))}; }
template <> __device__ inline Bfloat16 narrowed<Bfloat16>(Sum x) { return Bfloat16{float_to_bfloat16(float(x))}; }

constexpr int LANE_COLUMNS = ZETA_LANE_COLUMNS;  // columns of a row that a lane holds
constexpr int PANEL = 32 * LANE_COLUMNS;         // columns that a warp holds: wider rows take several passes

// A panel of a row of values, spread over a warp: lane l has columns l, l + 32, ... from the first of the panel.
struct Columns {
  Sum x[LANE_COLUMNS];

  __device__ void clear() {
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) x[c] = 0;
  }
  template <class T> __device__ void load(const T* row, int first, int dim) {
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) {
      const int column = first + c * 32 + lane();
      x[c] = column < dim ? Sum(widened(row[column])) : Sum(0);
    }
  }
  template <class T> __device__ void store(T* row, int first, int dim) const {
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) {
      const int column = first + c * 32 + lane();
      if (column < dim) row[column] = narrowed<T>(x[c]);
    }
  }
  __device__ void load_double(const double* row, int first, int dim) {
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) {
      const int column = first + c * 32 + lane();
      x[c] = column < dim ? Sum(row[column]) : Sum(0);
    }
  }
  __device__ void store_double(double* row, int first, int dim) const {
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) {
      const int column = first + c * 32 + lane();
      if (column < dim) row[column] = double(x[c]);
    }
  }
  __device__ void add(const Columns& other, Sum factor) {
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) x[c] += factor * other.x[c];
  }
  __device__ void scale(Sum factor) {
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) x[c] *= factor;
  }
  // This lane's part of a product.
  __device__ Sum dot(const Columns& other) const {
    Sum sum = 0;
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; ++c) sum += x[c] * other.x[c];
    return sum;
  }
};
