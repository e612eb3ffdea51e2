// A query's mean value over keys that its warp names, 32 at a time.
#pragma once
#include "gathered.cuh"

struct MeanOfRows {
  float square;                         // gamma^2
  float inverse;                        // the largest weight, as in `Weights`
  const Value* base;                    // first row of the key head
  int stride;                           // of its rows, in steps of 16 bytes
  float total = 0;                      // this lane's part
  RowSums sums;

  __device__ MeanOfRows(const Args& a, const Value* base, float square, float nearest)
      : square(square), base(base), stride(int(a.v_stride / 8)) {
    const float denominator = nearest + square;
    inverse = denominator < infinity() ? reciprocal(denominator) : infinity();
    sums.clear();
  }

  // Add the keys that the lanes name by their tokens.
  __device__ void add(int token, float distance, bool named, WeightedRows& weighted) {
    const u32 vote = __ballot_sync(FULL, named);
    if (!vote) return;
    const float weight = named ? reciprocal((distance + square) * inverse) : 0.0f;
    total += weight;
    weighted.set(lane(), row_of_some(token * stride, vote), weight);
    __syncwarp();
    sums.add(base, weighted, 32 - __clz(int(vote)));
    __syncwarp();
  }

  // Write the query's part of the forward pass, as `write_part` does.
  __device__ void write(const Args& a, i64 at) {
    const float all = warp_sum(total), weight = all == 0 ? 0.0f : all * inverse;
    float* normalizer = static_cast<float*>(a.normalizer) + at;
    Value* out = static_cast<Value*>(a.out) + at * DIM;
    float own = all == 0 ? 0.0f : reciprocal(all), others = 0, together = weight;
    if (a.prior) {
      const float before = *normalizer;
      together += before;
      own = weight == 0 ? 0.0f : weight / together / all;
      others = before == 0 ? 0.0f : before / together;
    }
    RowSums::store(out, [&](int chunk, int n) {
      float x = own == 0 ? 0.0f : own * sums.get(chunk, n);  // a value that is not finite has no weight either
      if (others != 0) x += others * float(widened(out[RowSums::column(chunk) + n]));
      return x;
    });
    __syncwarp();                       // all lanes have read the normalizer
    if (lane() == 0) *normalizer = together;
  }
};

// Attend to the keys that the query's row of indices names. A first visit finds the least distance.
__device__ __noinline__ void attend_to_given(const Args& a, i64 at, WeightedRows& weighted) {
  const Given given(a, at);
  Coordinate nearest = infinity();
  given.visit(a, lane(), [&](int, const Coordinate*, Coordinate distance, bool named) {
    if (named && distance < nearest) nearest = distance;
  });
  const Value* base = value_row(a, given.query.head_row, 0);
  MeanOfRows mean(a, base, squared_gamma(a, head_of(a, given.query)), warp_least(nearest));
  given.visit(a, lane(), [&](int index, const Coordinate*, Coordinate distance, bool named) {
    mean.add(index, distance, named, weighted);
  });
  mean.write(a, at);
}
