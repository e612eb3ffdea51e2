// Attention to given keys, forward, on tensor cores: values of 16 bits, a multiple of 16 columns, float coordinates. A
// warp takes 16 queries. A product multiplies every row with every weight, those that are 0 too: where that gives NaN
// or infinity, because of a value that may be none of the query's, the queries are done again one by one.
#include "attend_given.cuh"
#include "joint_keys.cuh"

// The least denominator of the lane's query, where it names more keys than are joined at a time.
__device__ __noinline__ float least_of_many(const Args& a, const JointQuery& own) {
  float least = infinity();
  for (int place = lane() % 2; own.exists && place < a.width; place += 2) {
    const int index = own.indices[place];
    if (!names_key(a, index)) continue;
    if (a.distances) {
      least = min(least, own.denominator(own.distances(a)[place]));
      continue;
    }
    const Coordinate* key = key_point(a, own.query.head_row, index);
    float difference[DK];
#pragma unroll
    for (int c = 0; c < DK; ++c) difference[c] = own.x[c] - key[c];
    least = min(least, own.denominator(difference));
  }
  return least;
}

ZETA_KERNEL(tile_given_fwd_kernel, 32 * GIVEN_WARPS, DIM <= 64 ? 8 : DIM <= 128 ? 6 : 4) {
  __shared__ JointMemory memories[GIVEN_WARPS];
  __shared__ i64 queries[GIVEN_WARPS][TILE];
  JointMemory& memory = memories[uniform_warp_of_block()];
  i64* at = queries[uniform_warp_of_block()];
  JointQuery own;
  if (!own.find(a)) return;
  if (lane() % 2 == 0) at[lane() / 2] = own.exists ? own.query.at : -1;
  const Value* base = value_row(a, own.head_row, 0);
  const Coordinate* keys = key_point(a, own.head_row, 0);
  const bool many = a.width > JOINED;
  float total = 0, inverse = 0, sums[DIM / 8][4] = {};
  if (many) inverse = least_of_many(a, own);
  for (int first = 0; first < a.width; first += JOINED) {
    int tokens[LANE_PLACES], numbers[LANE_PLACES];
    float weights[LANE_PLACES] = {};    // denominators at first
    own.read(a, first, tokens);
    const int half = first + lane() % 2 * LANE_PLACES;
    if (a.distances && half < a.width) prefetch(own.distances(a) + half);
    const int count = join(memory, tokens, numbers);
    float least = many ? inverse : infinity();
    const auto see = [&](int n, bool here, float denominator) {
      weights[n] = here ? denominator : weights[n];
      least = here ? min(least, denominator) : least;
    };
    if (!a.distances) {
      visit_points(a, memory, keys, count, numbers, false, [&](int n, bool here, const float* point) {
        float difference[DK];
#pragma unroll
        for (int c = 0; c < DK; ++c) difference[c] = own.x[c] - point[c];
        see(n, here, own.denominator(difference));
      });
    }
    stage_first_keys(a, memory, base, count);
    if (a.distances) {
      own.read(a, own.distances(a), first, 0.0f, weights);
#pragma unroll
      for (int n = 0; n < LANE_PLACES; ++n) see(n, numbers[n] >= 0, own.denominator(weights[n]));
    }
    if (first == 0) {
      least = min(least, __shfl_xor_sync(FULL, least, 1));
      inverse = least < infinity() ? reciprocal(least) : infinity();
    }
#pragma unroll
    for (int n = 0; n < LANE_PLACES; ++n) {
      weights[n] = numbers[n] >= 0 ? reciprocal(weights[n] * inverse) : 0.0f;
      total += weights[n];
    }
    for (int beside = 0; beside < count; beside += BESIDE) {
      constexpr int ROW = (BESIDE + 8) / 8;  // of 16 bytes
      Packed* clear = reinterpret_cast<Packed*>(memory.weights);
#pragma unroll
      for (int n = 0; n < TILE * ROW; n += 32)
        if (n + 32 <= TILE * ROW || n + lane() < TILE * ROW) clear[n + lane()] = Packed{};
      __syncwarp();
      if (a.query_order) {
#pragma unroll
        for (int n = 0; n < LANE_PLACES; ++n) {
          const int place = numbers[n] - beside;
          if (u32(place) < u32(BESIDE)) memory.weights[lane() / 2][place] = narrowed<Value>(weights[n]);
        }
        __syncwarp();
      } else {                          // a key that a query names twice counts twice; a searched list has none
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int n = 0; n < LANE_PLACES; ++n) {
            const int place = numbers[n] - beside;
            if (u32(place) >= u32(BESIDE) || lane() % 2 != half) continue;
            Value& weight = memory.weights[lane() / 2][place];
            weight = narrowed<Value>(float(widened(weight)) + weights[n]);
          }
          __syncwarp();
        }
      }
#pragma unroll 1
      for (int tile = beside; tile < min(beside + BESIDE, count); tile += TILE) {
        const SharedAddress rows = staged_keys(a, memory, base, tile, count);
        u32 packed[4];
        ldmatrix_x4<false>(packed, shared_address(&memory.weights[lane() % TILE][tile - beside]) + lane() / TILE * 16);
        add_rows(sums, packed, rows);
      }
      __syncwarp();                     // all lanes have read weights and rows
    }
  }
  bool finite = true;
#pragma unroll
  for (int c = 0; c < DIM / 8; ++c)
#pragma unroll
    for (int j = 0; j < 4; ++j) finite = finite && fabsf(sums[c][j]) < infinity();
  if (__ballot_sync(FULL, !finite)) {
    for (int n = 0; n < TILE; ++n)
      if (at[n] >= 0) attend_to_given(a, at[n]);
    return;
  }
  total = warp_sum<2>(total);
  float* normalizers = static_cast<float*>(a.normalizer);
  const float weight = total == 0 ? 0.0f : total * inverse;
  const float before = a.prior && own.exists ? normalizers[own.query.at] : 0.0f, together = before + weight;
  float of_sums = weight == 0 ? 0.0f : reciprocal(total), of_others = 0;
  if (before != 0) of_sums *= weight / together, of_others = before / together;
  __syncwarp();                         // all lanes have read the normalizers
  if (lane() % 2 == 0 && own.exists) normalizers[own.query.at] = together;
  const int column = 2 * (lane() % 4);
  Value* out = static_cast<Value*>(a.out);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int row = lane() / 4 + 8 * n;
    const float factor = __shfl_sync(FULL, of_sums, 2 * row), others = __shfl_sync(FULL, of_others, 2 * row);
    u32* staged = reinterpret_cast<u32*>(memory.rows + row * ROW_BYTES + 2 * column);
    const u32* earlier = reinterpret_cast<const u32*>(out + at[row] * DIM + column);
#pragma unroll
    for (int c = 0; c < DIM / 8; ++c) {
      float x = sums[c][2 * n] * factor, y = sums[c][2 * n + 1] * factor;
      if (others != 0) x += others * low(earlier[c * 4]), y += others * high(earlier[c * 4]);
      staged[c * 4] = pack(x, y);
    }
  }
  __syncwarp();
  constexpr int CHUNKS = DIM / 8;       // of a row
#pragma unroll
  for (int n = 0; n < TILE * CHUNKS; n += 32) {
    const int chunk = n + lane(), row = chunk / CHUNKS, place = chunk % CHUNKS;
    if (at[row] < 0) continue;
    const Packed mean = *reinterpret_cast<const Packed*>(memory.rows + row * ROW_BYTES + place * 16);
    *reinterpret_cast<Packed*>(out + at[row] * DIM + place * 8) = mean;
  }
}
