// Attention to given keys, backward, at the queries, on tensor cores: products of grad_out's rows with those of values.
// D comes first: what follows needs no products that cancel.
#include "joint_keys.cuh"

constexpr i64 NO_GRADIENT = i64(1) << 62;  // strides may be negative, and a row before the first

// What a key pulls at a query.
struct KeyPart {
  float p, slope;                       // u / Z and u p; 0 where there is no key
  float difference[DK];

  __device__ KeyPart(const JointQuery& own, const float* point, bool here, float inverse) {
#pragma unroll
    for (int c = 0; c < DK; ++c) difference[c] = here ? own.x[c] - point[c] : 0.0f;
    const float u = reciprocal(own.denominator(difference));
    p = here ? u * inverse : 0.0f;
    slope = u * p;
  }
};

// Stage the queries' rows of grad_out and load the lane's part of them; zeros for those that give no gradients.
__device__ inline void load_gradients(const Args& a, JointMemory& memory, const i64* rows, u32 (*grad)[4]) {
  constexpr int CHUNKS = DIM / 8;       // of 16 bytes in a row
  const SharedAddress to = shared_address(memory.rows);
#pragma unroll
  for (int n = 0; n < TILE * CHUNKS; n += 32) {
    const int chunk = n + lane(), row = chunk / CHUNKS, column = chunk % CHUNKS * 8;
    const bool exists = rows[row] != NO_GRADIENT;
    const Value* from = static_cast<const Value*>(a.grad_out) + (exists ? rows[row] : 0) + column;
    stage_16B(to + row * ROW_BYTES + column * 2, from, exists);
  }
  wait_for_stage();
  __syncwarp();
  load_rows(grad, to);
  __syncwarp();
}

// Products of the lane's query with the keys in its places.
__device__ inline void multiply_keys(const Args& a, JointMemory& memory, const i64* rows, const Value* base, int count,
                                     const int (&numbers)[LANE_PLACES], float (&products)[LANE_PLACES]) {
  u32 grad[DIM / 16][4];
  load_gradients(a, memory, rows, grad);
  stage_first_keys(a, memory, base, count);
  for (int first = 0; first < count; first += PRODUCTS) {
#pragma unroll 1
    for (int tile = 0; tile < PRODUCTS && first + tile < count; tile += TILE) {
      float of_tile[2][4];
      multiply_rows(of_tile, grad, staged_keys(a, memory, base, first + tile, count));
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          memory.products[lane() / 4 + j / 2 * 8][tile + n * 8 + lane() % 4 * 2 + j % 2] = of_tile[n][j];
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < LANE_PLACES; ++n) {
      const int place = numbers[n] - first;
      if (u32(place) < u32(PRODUCTS)) products[n] = memory.products[lane() / 2][place];
    }
    __syncwarp();
  }
}

// Bring the keys that some query names, by their masks, into the order of their groups; returns how many there are.
// Keys are known by their places in code order. The groups' runs are counted. All lanes together.
__device__ inline int order_by_group(JointMemory& memory, GroupCounts* counts, int count) {
  constexpr int QUARTERS = MOST_KEYS / 128;
  int4* groups = reinterpret_cast<int4*>(memory.groups);
  int4* members = reinterpret_cast<int4*>(memory.members);
#pragma unroll
  for (int n = 0; n < QUARTERS; ++n) groups[n * 32 + lane()] = members[n * 32 + lane()] = int4{0, 0, 0, 0};
  __syncwarp();
  for (int n = lane(); n < count; n += 32) {
    if (!memory.masks[n]) continue;
    const u32 key = u32(memory.keys[n]), group = key / TILE + 1;
    u32 slot = first_slot_of<TABLE_BITS - 1>(group);
    for (;; slot = (slot + 1) % MOST_KEYS) {
      const u32 found = atomicCAS(&memory.groups[slot], 0u, group);
      if (found == 0 || found == group) break;
    }
    atomicOr(&memory.members[slot], 1u << key % TILE);
    memory.slots[n] = slot;
  }
  __syncwarp();
  int4 own[QUARTERS];
  int sum = 0;
#pragma unroll
  for (int n = 0; n < QUARTERS; ++n) {
    own[n] = members[n * 32 + lane()];
    sum += __popc(own[n].x) + __popc(own[n].y) + __popc(own[n].z) + __popc(own[n].w);
  }
  const int last = sum_to_lane(sum);
  int place = last - sum;
#pragma unroll
  for (int n = 0; n < QUARTERS; ++n) {
    int* of_quarter[4] = {&own[n].x, &own[n].y, &own[n].z, &own[n].w};
    const int4 quarter = groups[n * 32 + lane()];
    const int of_groups[4] = {quarter.x, quarter.y, quarter.z, quarter.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (of_groups[j]) atomicAdd(&counts[of_groups[j] - 1].runs, 1);
      const int size = __popc(*of_quarter[j]);
      *of_quarter[j] |= place << 16;
      place += size;
    }
    members[n * 32 + lane()] = own[n];
  }
  __syncwarp();
  for (int n = lane(); n < count; n += 32) {
    if (!memory.masks[n]) continue;
    const u32 found = memory.members[memory.slots[n]], below = (1u << memory.keys[n] % TILE) - 1;
    memory.groups[(found >> 16) + __popc(found & below)] = u32(n);
  }
  __syncwarp();
  return __shfl_sync(FULL, last, 31);
}

// Write the pairs of the warp's tile, after `written` others; returns how many there are then. All lanes together.
__device__ inline int write_pairs(const Args& a, JointMemory& memory, int head_row, int count, int round, int written,
                                  const int (&numbers)[LANE_PLACES]) {
  TilePair* pairs = static_cast<TilePair*>(a.tile_pairs) + uniform_warp_of_grid() * TILE * a.width;
  GroupCounts* counts = static_cast<GroupCounts*>(a.group_counts) + i64(head_row) * groups_of_head(a);
  const u32 first_key = u32(head_row) * groups_of_head(a) * TILE;
  if (a.key_places) {
    const int* places = static_cast<const int*>(a.key_places) + i64(head_row) * a.k_len;
#pragma unroll 4
    for (int n = lane(); n < count; n += 32) memory.keys[n] = places[memory.keys[n]];
  }
  u32 pending = 0;
#pragma unroll
  for (int n = 0; n < LANE_PLACES; ++n) pending |= u32(numbers[n] >= 0) << n;
  for (int copy = 0; __ballot_sync(FULL, pending != 0); ++copy) {
    for (int n = lane(); n < count; n += 32) memory.masks[n] = 0;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < LANE_PLACES; ++n) {
      if (!(pending >> n & 1)) continue;
      const u32 bit = 1u << lane() / 2;
      if (!(atomicOr(&memory.masks[numbers[n]], bit) & bit)) pending &= ~(1u << n);
    }
    __syncwarp();
    const int named = order_by_group(memory, counts, count);
    for (int n = lane(); n < named; n += 32) {
      const u32 number = memory.groups[n];
      pairs[written + n] = TilePair{first_key + u32(memory.keys[number]),
                                    memory.masks[number] | u32(copy) << 16 | u32(round) << 21};
    }
    written += named;
    __syncwarp();
  }
  return written;
}

ZETA_KERNEL(tile_given_bwd_queries_kernel, 32 * GIVEN_WARPS, DIM <= 64 ? 8 : DIM <= 128 ? 6 : 4) {
  __shared__ JointMemory memories[GIVEN_WARPS];
  __shared__ i64 starts[GIVEN_WARPS][TILE];
  JointMemory& memory = memories[uniform_warp_of_block()];
  i64* rows = starts[uniform_warp_of_block()];
  JointQuery own;
  if (!own.find(a)) return;
  const float inverse = own.exists ? inverse_normalizer(a, own.query.at) : 0.0f;
  if (lane() % 2 == 0)
    rows[lane() / 2] = inverse == 0 ? NO_GRADIENT : grad_row(a, own.query) - static_cast<const Value*>(a.grad_out);
  __syncwarp();
  const Value* base = value_row(a, own.head_row, 0);
  const Coordinate* keys = key_point(a, own.head_row, 0);
  Pull before;
  before.clear();
  float mean = 0, square = 0, point[DK] = {};
  int written = 0;
  // Twice, first for D, then for what follows from it; once for both where all keys are joined at a time.
  const int rounds = rounds_of(a), steps = rounds > 1 ? 2 * rounds : rounds;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int round = step < rounds ? step : step - rounds;
    int tokens[LANE_PLACES], numbers[LANE_PLACES];
    own.read(a, round * JOINED, tokens);
#pragma unroll
    for (int n = 0; n < LANE_PLACES; ++n) tokens[n] = inverse == 0 ? -1 : tokens[n];
    const int count = join(memory, tokens, numbers);
    float products[LANE_PLACES] = {};
    multiply_keys(a, memory, rows, base, count, numbers, products);
    const auto visit = [&](bool again, auto use) {
      visit_points(a, memory, keys, count, numbers, again, [&](int n, bool here, const float* at) {
        use(KeyPart(own, at, here, inverse), here ? products[n] : 0.0f);
      });
    };
    if (step < rounds) visit(false, [&](const KeyPart& part, float product) { mean += part.p * product; });
    if (step + 1 == rounds) {
      mean = warp_sum<2>(mean);
      if (a.prior) before = static_cast<const Pull*>(a.pulls)[own.query.at];
      mean += before.mean;
    }
    if (step >= steps - rounds) {
      visit(rounds == 1, [&](const KeyPart& part, float product) {
        const float slope = part.slope * (mean - product);
        square += slope;
#pragma unroll
        for (int c = 0; c < DK; ++c) point[c] += slope * part.difference[c];
      });
    }
    if (step < rounds) written = write_pairs(a, memory, own.head_row, count, round, written, numbers);
  }
  square = warp_sum<2>(square);
#pragma unroll
  for (int c = 0; c < DK; ++c) point[c] = warp_sum<2>(point[c]);
  if (lane() == 0) static_cast<int*>(a.tile_counts)[uniform_warp_of_grid()] = written;
  if (lane() % 2 != 0) return;
  GivenRecord record = {};
  if (own.exists) {
    const i64 at = own.query.at;
    static_cast<float*>(a.delta)[at] = mean;
    static_cast<float*>(a.squares)[at] = square + mean * before.square[1] - before.square[0];
#pragma unroll
    for (int c = 0; c < DK; ++c) {
      const float rest = mean * before.point[1][c] - before.point[0][c];
      static_cast<Coordinate*>(a.grad_q)[at * DK + c] = 2 * (point[c] + rest);
      record.x[c] = own.x[c];
    }
    record.square = own.square;
    record.inverse = inverse;
    record.delta = mean;
    record.row = int((own.query.head * a.g_head_stride + own.query.token * a.g_stride) / 8);
  }
  static_cast<GivenRecord*>(a.records)[uniform_warp_of_grid() * TILE + lane() / 2] = record;
}
