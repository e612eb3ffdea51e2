// Attention to given keys, forward, on tensor cores: values of 16 bits, a multiple of 16 columns, float coordinates.
// The warp's lanes weigh 32 keys at once, then multiply their rows of values. A first look finds the least distance.
#include "gathered_queries.cuh"

// A query's mean value over keys that its warp names, 32 at a time.
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

// The distance of the key that the lane names by `index`; infinite where it names none.
__device__ inline float distance_to(const Args& a, const GivenQuery& query, int index) {
  if (!names_key(a, index)) return infinity();
  float key[DK];
  load_key(a, query, index, key);
  return comparable(squared_distance(query.x, key));
}

ZETA_KERNEL(tile_given_fwd_kernel, 32 * GATHERING_WARPS, DIM <= 64 ? 7 : 3) {
  __shared__ WeightedRows stages[GATHERING_WARPS];
  __shared__ GivenQuery looked_up[GATHERING_WARPS][GATHERING_TURNS];
  const GivenQuery* queries = looked_up[uniform_warp_of_block()];
  const int turns = look_up(a, looked_up[uniform_warp_of_block()]);
  int next = turns > 0 ? index_at(a, queries[0], lane()) : -1;
  for (int turn = 0; turn < turns; ++turn) {
    const GivenQuery& query = queries[turn];
    int index = next;
    if (turn + 1 < turns) next = index_at(a, queries[turn + 1], lane());  // on its way meanwhile
    float distance = distance_to(a, query, index), nearest = distance;
    for (int first = 32; first < a.width; first += 32)
      nearest = min(nearest, distance_to(a, query, index_at(a, query, first + lane())));
    MeanOfRows mean(a, static_cast<const Value*>(a.v) + query.values, query.square, warp_least(nearest));
    for (int first = 0;;) {
      mean.add(index, distance, names_key(a, index), stages[uniform_warp_of_block()]);
      first += 32;
      if (first >= a.width) break;
      index = index_at(a, query, first + lane());
      distance = distance_to(a, query, index);
    }
    mean.write(a, query.at);
  }
}
