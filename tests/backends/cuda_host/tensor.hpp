// What tensor.cuh takes from a GPU, in plain C++: products of tiles over all lanes of a warp, and copies that are done at once.
#pragma once

struct alignas(8) float2 { float x, y; };

namespace boards {

using namespace ::host;
constexpr int WORDS = 8;

struct Board { uint64_t words[32][WORDS]; };

// Every lane shows WORDS words; all of them see all.
template <class Read> void with_all_lanes(const uint64_t* mine, int count, Read read) {
  static std::vector<Board> boards;
  if (boards.size() < warp_barriers.size()) boards.resize(warp_barriers.size());
  Board& board = boards[warp()];
  for (int n = 0; n < count; ++n) board.words[lane_number()][n] = mine[n];
  wait_for_warp();
  read(const_cast<const Board&>(board));
  wait_for_warp();
}

inline float half_of(uint64_t pair, int which) {
  return widened(Value{(unsigned short)(pair >> 16 * which & 0xffff)});
}

}  // namespace boards

inline u32 pack(float low, float high) {
  return u32(narrowed<Value>(low).bits) | u32(narrowed<Value>(high).bits) << 16;
}

inline void mma_16x8x16(float* c, const u32* a, u32 b0, u32 b1) {
  const uint64_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  boards::with_all_lanes(mine, 6, [&](const boards::Board& board) {
    const int row = host::lane_number() / 4, column = host::lane_number() % 4 * 2;
    for (int n = 0; n < 4; ++n) {
      double sum = 0;
      for (int k = 0; k < 16; ++k) {
        const int lane_k = k % 8 / 2, upper = k / 8;
        const uint64_t left = board.words[row * 4 + lane_k][n / 2 + 2 * upper];
        const uint64_t right = board.words[(column + n % 2) * 4 + lane_k][4 + upper];
        sum += double(boards::half_of(left, k % 2)) * boards::half_of(right, k % 2);
      }
      c[n] = float(c[n] + sum);
    }
  });
}

using SharedAddress = unsigned char*;
inline SharedAddress shared_address(const void* at) { return static_cast<SharedAddress>(const_cast<void*>(at)); }

template <bool TRANSPOSED> void ldmatrix_x4(u32* to, SharedAddress row) {
  const uint64_t mine = reinterpret_cast<uint64_t>(row);
  boards::with_all_lanes(&mine, 1, [&](const boards::Board& board) {
    const int high = host::lane_number() / 4, low = host::lane_number() % 4 * 2;
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto at = [&](int r, int c) {
        return u32(reinterpret_cast<const unsigned short*>(board.words[matrix * 8 + r][0])[c]);
      };
      to[matrix] = TRANSPOSED ? at(low, high) | at(low + 1, high) << 16 : at(high, low) | at(high, low + 1) << 16;
    }
  });
}

inline void stage_16B(SharedAddress to, const void* from, bool exists) {
  if (exists) std::memcpy(to, from, 16); else std::memset(to, 0, 16);
}
inline void wait_for_stage() {}
inline void end_stage_group() {}
template <int GROUPS> void wait_for_groups() {}
inline void fetch_ahead(const void*) {}
template <class T> void keep(const T*&) {}
inline const char* strided(const char* base, int n, int stride) { return base + i64(n) * stride; }
inline int __ldg(const int* at) { return *at; }
inline float reciprocal(float x) { return 1 / x; }
inline int least_of_warp(int x) { return warp_min(x); }
inline u32 atomicOr(u32* at, u32 bits) {
  const u32 before = *at;
  *at |= bits;
  return before;
}
inline u32 atomicCAS(u32* at, u32 expected, u32 value) {
  const u32 before = *at;
  if (before == expected) *at = value;
  return before;
}
