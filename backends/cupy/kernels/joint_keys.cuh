// 16 queries that are neighbours in code order, with the keys that they name: neighbours name many of the same, so that
// a warp makes a table of them, each key once, reads their rows once, and multiplies tiles of these on tensor cores.
// Lanes 2 n and 2 n + 1 serve query n, half of its places each; they know a key by its number in the table.
//
// The table is made by hashing. All lanes look for a place together, and of several that want a vacant one the greatest
// key gets it: so the order of the keys, in which sums are made, is the same every time.
#pragma once
#include "tile_pairs.cuh"

constexpr int LANE_PLACES = JOINED / 2; // of a query that a lane has
constexpr int MOST_KEYS = TILE * JOINED;
constexpr int TABLE_BITS = 10, TABLE = 1 << TABLE_BITS;  // at least MOST_KEYS
constexpr int BESIDE = 64;              // columns of a matrix of weights
constexpr int RING = DIM <= 64 ? 3 : 2; // tiles of staged rows: one is multiplied while others are on their way
constexpr int TILE_BYTES = TILE * ROW_BYTES;
constexpr int STAGED_BYTES = RING * TILE_BYTES < 6144 ? 6144 : RING * TILE_BYTES;
constexpr int POINTS = STAGED_BYTES / (4 * DK) < MOST_KEYS ? STAGED_BYTES / (4 * DK) / 32 * 32 : MOST_KEYS;
constexpr int PRODUCTS = DIM <= 64 ? 32 : 16;  // columns of a matrix of products

// What a warp keeps in shared memory, part of it after another.
struct JointMemory {
  union {
    struct {
      u32 found[MOST_KEYS];             // the table's keys in order, plus 1
      int places[LANE_PLACES][32];      // keys that lanes name, then where in the table they are
    };
    struct {                            // when pairs are written:
      u32 masks[MOST_KEYS];             // which queries name each key
      u32 groups[MOST_KEYS];            // table of the groups of keys, plus 1; then numbers of keys in order
      u32 members[MOST_KEYS];           // which keys of each group there are, above that the first one's place
    };
    float points[DK][POINTS];
    alignas(16) unsigned char rows[STAGED_BYTES];
  };
  union {
    alignas(16) u32 table[TABLE];       // keys, plus 1
    struct {
      int keys[MOST_KEYS];
      union {
        alignas(16) Value weights[TILE][BESIDE + 8];
        float products[TILE][PRODUCTS + 4];
        u32 slots[MOST_KEYS];           // where in their table the groups of keys are
      };
    };
  };
};
static_assert(STAGED_BYTES >= 12 * MOST_KEYS, "rows have the most room");

// The lane's query.
struct JointQuery {
  Query query;
  int head_row;                         // of the warp
  bool exists;
  const int* indices;
  Coordinate x[DK];
  float square;                         // gamma^2

  // False where the warp has no queries. Those of a warp read the same keys.
  __device__ bool find(const Args& a) {
    const u32 queries = u32(group_size(a)) * u32(a.q_len), tiles = (queries + TILE - 1) / TILE;
    const u32 warp = u32(uniform_warp_of_grid()), row = warp / tiles, number = (warp - row * tiles) * TILE + lane() / 2;
    head_row = int(row);
    if (head_row >= a.batch * a.kv_heads) return false;
    exists = number < queries;
    const int of_row = int(min(number, queries - 1));
    const i64 slot = i64(head_row) * queries + of_row;
    if (a.query_order) {
      const int sequence = a.cu_seqlens ? sequence_of_token(a, of_row / group_size(a)) : 0;
      query = query_of(a, head_row, sequence, static_cast<const int*>(a.query_order)[slot]);
    } else {
      query = query_with_number(a, slot);
    }
    indices = static_cast<const int*>(a.indices) + query.at * a.width;
    const Coordinate* from = query_point(a, query);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = from[c];
    square = squared_gamma(a, head_of(a, query));
    return true;
  }
  // What a row of the query has in the lane's places from `first` on, `none` where there is nothing.
  template <class T>
  __device__ void read(const Args& a, const T* row, int first, T none, T (&of_lane)[LANE_PLACES]) const {
    struct alignas(16) Four { T x, y, z, w; };
    const bool whole = (reinterpret_cast<u64>(row) & 15) == 0;
    first += lane() % 2 * LANE_PLACES;
#pragma unroll
    for (int n = 0; n < LANE_PLACES; n += 4) {
      Four four = {none, none, none, none};
      const int place = exists ? first + n : a.width;
      if (whole && place + 4 <= a.width) {
        four = *reinterpret_cast<const Four*>(row + place);
      } else {
        if (place < a.width) four.x = row[place];
        if (place + 1 < a.width) four.y = row[place + 1];
        if (place + 2 < a.width) four.z = row[place + 2];
        if (place + 3 < a.width) four.w = row[place + 3];
      }
      of_lane[n] = four.x;
      of_lane[n + 1] = four.y;
      of_lane[n + 2] = four.z;
      of_lane[n + 3] = four.w;
    }
  }
  // The keys in the lane's places from `first` on, -1 for none.
  __device__ void read(const Args& a, int first, int (&tokens)[LANE_PLACES]) const {
    read(a, indices, first, -1, tokens);
#pragma unroll
    for (int n = 0; n < LANE_PLACES; ++n) tokens[n] = names_key(a, tokens[n]) ? tokens[n] : -1;
  }
  // Distances of the keys that the list names, where `a` has them.
  __device__ const float* distances(const Args& a) const {
    return static_cast<const float*>(a.distances) + query.at * a.width;
  }
  // gamma^2 plus the squared distance of a key; infinite if that is NaN.
  __device__ float denominator(const float* difference) const { return not_nan(squared_length(difference, square)); }
  __device__ float denominator(float distance) const { return not_nan(square + distance); }
  static __device__ float not_nan(float sum) { return sum == sum ? sum : infinity(); }
};

// Where a search for a key begins in a table of 2^BITS places.
template <int BITS> __device__ inline u32 first_slot_of(u32 key) { return key * 2654435769u >> (32 - BITS); }

// Find places in the table for the keys that lanes name; `slots` become those of the lane's keys. All lanes together.
__device__ inline void find_slots(JointMemory& memory, const int (&tokens)[LANE_PLACES], u32 (&slots)[LANE_PLACES]) {
  constexpr int TOGETHER = 4;
  u32 late = 0;                         // places whose keys were not met with in the first slot
#pragma unroll
  for (int first = 0; first < LANE_PLACES; first += TOGETHER) {
    bool vacant[TOGETHER];
#pragma unroll
    for (int n = 0; n < TOGETHER; ++n) {
      const u32 slot = slots[first + n] = first_slot_of<TABLE_BITS>(u32(tokens[first + n] + 1));
      vacant[n] = tokens[first + n] >= 0 && memory.table[slot] == 0;
    }
    __syncwarp();                       // all have looked
#pragma unroll
    for (int n = 0; n < TOGETHER; ++n)
      if (vacant[n]) atomicMax(&memory.table[slots[first + n]], u32(tokens[first + n] + 1));
    __syncwarp();
#pragma unroll
    for (int n = 0; n < TOGETHER; ++n) {
      const int token = tokens[first + n];
      const bool is_late = token >= 0 && memory.table[slots[first + n]] != u32(token + 1);
      if (is_late) memory.places[first + n][lane()] = token;
      late |= u32(is_late) << (first + n);
    }
  }
  if (!__ballot_sync(FULL, late != 0)) return;
  const u32 moved = late;
  u32 key = 0, slot = 0;
  int* place = nullptr;
  for (;;) {
    if (key == 0 && late) {
      place = &memory.places[__ffs(int(late)) - 1][lane()];
      late &= late - 1;
      key = u32(*place + 1);
      slot = (first_slot_of<TABLE_BITS>(key) + 1) % TABLE;
    }
    if (!__ballot_sync(FULL, key != 0)) break;
    const bool vacant = key != 0 && memory.table[slot] == 0;
    __syncwarp();                       // all have looked
    if (vacant) atomicMax(&memory.table[slot], key);
    __syncwarp();
    const bool met = memory.table[slot] == key;
    if (key != 0 && met) *place = int(slot), key = 0;
    slot = (slot + 1) % TABLE;
  }
#pragma unroll
  for (int n = 0; n < LANE_PLACES; ++n)
    if (moved >> n & 1) slots[n] = u32(memory.places[n][lane()]);
}

// Make the table of the keys that lanes name; `numbers` are those of the lane's places, -1 for none. Returns how many
// there are; behind the last key it stands again, to a whole tile. All lanes together.
__device__ inline int join(JointMemory& memory, const int (&tokens)[LANE_PLACES], int (&numbers)[LANE_PLACES]) {
  constexpr int QUARTERS = TABLE / 128;
  int4* quarters = reinterpret_cast<int4*>(memory.table);
#pragma unroll
  for (int n = 0; n < QUARTERS; ++n) quarters[n * 32 + lane()] = int4{0, 0, 0, 0};
  __syncwarp();
  u32 slots[LANE_PLACES], named = 0;
  find_slots(memory, tokens, slots);
#pragma unroll
  for (int n = 0; n < LANE_PLACES; ++n) named |= u32(tokens[n] >= 0) << n;
  __syncwarp();
  int4 entries[QUARTERS];
  int count = 0;
#pragma unroll
  for (int n = 0; n < QUARTERS; ++n) {
    entries[n] = quarters[n * 32 + lane()];
    count += min(entries[n].x, 1) + min(entries[n].y, 1) + min(entries[n].z, 1) + min(entries[n].w, 1);
  }
  const int last = sum_to_lane(count);
  int number = last - count;
#pragma unroll
  for (int n = 0; n < QUARTERS; ++n) {
    int* of_quarter[4] = {&entries[n].x, &entries[n].y, &entries[n].z, &entries[n].w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int entry = *of_quarter[j];
      *of_quarter[j] = number;
      if (entry != 0) memory.found[number] = u32(entry);
      number += min(entry, 1);
    }
    quarters[n * 32 + lane()] = entries[n];
  }
  __syncwarp();
#pragma unroll
  for (int n = 0; n < LANE_PLACES; ++n) {
    const int found = int(memory.table[slots[n]]);
    numbers[n] = named >> n & 1 ? found : -1;
  }
  __syncwarp();                         // the table is not used any more
  count = __shfl_sync(FULL, last, 31);
#pragma unroll 4
  for (int n = lane(); n < (count + TILE - 1) / TILE * TILE; n += 32)
    memory.keys[n] = int(memory.found[min(n, count - 1)] - 1);
  __syncwarp();
  return count;
}

// Let `use(n, named, point)` see the point of the key in each of the lane's places, where `point[c]` is a coordinate.
// `again` if nothing else has been in their memory since the same call.
template <class Use>
__device__ inline void visit_points(const Args& a, JointMemory& memory, const Coordinate* base, int count,
                                    const int (&numbers)[LANE_PLACES], bool again, Use use) {
  constexpr int TOGETHER = 128;         // whose points are on their way at once
  for (int first = 0; first < count; first += POINTS) {
    const int stop = min(count - first, POINTS);
#pragma unroll 1
    for (int some = 0; some < stop && !(again && count <= POINTS); some += TOGETHER) {
      float points[TOGETHER / 32][DK];
#pragma unroll
      for (int n = 0; n < TOGETHER / 32; ++n) {
        const int place = min(some + n * 32 + lane(), stop - 1);
        const Coordinate* from = base + i64(memory.keys[first + place]) * a.k_stride;
#pragma unroll
        for (int c = 0; c < DK; ++c) points[n][c] = from[c];
      }
#pragma unroll
      for (int n = 0; n < TOGETHER / 32; ++n) {
        const int place = some + n * 32 + lane();
#pragma unroll
        for (int c = 0; c < DK; ++c)
          if (place < stop) memory.points[c][place] = points[n][c];
      }
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < LANE_PLACES; ++n) {
      const int place = numbers[n] - first;
      const bool here = u32(place) < u32(stop);
      float point[DK];
#pragma unroll
      for (int c = 0; c < DK; ++c) point[c] = memory.points[c][here ? place : 0];
      use(n, here, point);
    }
    __syncwarp();
  }
}

// Where the tile of rows of the keys from number `first` on is staged.
__device__ inline SharedAddress tile_of_ring(JointMemory& memory, int first) {
  return shared_address(memory.rows) + u32(first) / TILE % RING * TILE_BYTES;
}

// Start to stage this tile, if there is one.
__device__ inline void stage_keys(const Args& a, JointMemory& memory, const Value* base, int first, int count) {
  constexpr int CHUNKS = DIM / 8;       // of 16 bytes in a row
  constexpr int STEPS = TILE * CHUNKS / 32;
  constexpr bool EVEN = 32 % CHUNKS == 0;  // then a lane's chunks stand below one another
  const auto row = [](int n) { return EVEN ? lane() / CHUNKS + n * 32 / CHUNKS : (n * 32 + lane()) / CHUNKS; };
  const auto byte = [](int n) { return (EVEN ? lane() : n * 32 + lane()) % CHUNKS * 16; };
  if (first < count) {
    const SharedAddress ring = tile_of_ring(memory, first);
    int keys[STEPS];                    // read before the first copy, which nothing is moved across
#pragma unroll
    for (int n = 0; n < STEPS; ++n) keys[n] = memory.keys[first + row(n)];
#pragma unroll
    for (int n = 0; n < STEPS; ++n) {
      const char* from = strided(reinterpret_cast<const char*>(base) + byte(n), keys[n], int(a.v_stride * 2));
      stage_16B(ring + row(n) * ROW_BYTES + byte(n), from, true);
    }
  }
  end_stage_group();
}

// Start to stage the first tiles.
__device__ inline void stage_first_keys(const Args& a, JointMemory& memory, const Value* base, int count) {
#pragma unroll
  for (int tile = 0; tile < RING - 1; ++tile) stage_keys(a, memory, base, tile * TILE, count);
}

// Wait for a tile, and start to stage the next one that is not on its way; returns where the tile is.
__device__ inline SharedAddress staged_keys(const Args& a, JointMemory& memory, const Value* base, int first,
                                            int count) {
  wait_for_groups<RING - 2>();
  __syncwarp();                         // all lanes have read the tile before: the next one takes its place
  stage_keys(a, memory, base, first + (RING - 1) * TILE, count);
  return tile_of_ring(memory, first);
}
