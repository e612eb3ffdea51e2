// The nearest of candidates that a warp has gathered in shared memory. It looks for a distance up to which there are
// hardly more than wanted: it counts how many are at most so far, and moves on by that count. The rest are sorted.
#pragma once
#include "selected.cuh"

// A factor of 2 in the bits of a distance, and how much farther than the last query's nearest keys one's own may be:
// nearly twice as many are expected up to there, if they are spread evenly.
constexpr Bits OCTAVE = Bits(1) << (sizeof(Bits) == 8 ? 52 : 23) % (8 * sizeof(Bits));
constexpr Bits REACH = Bits(2.0f / DK * 0.5f * float(OCTAVE));
constexpr Bits FARTHEST = Bits(sizeof(Bits) == 8 ? 0x7ff0000000000000ull : 0x7f800000ull);  // infinity
template <int BYTES> struct SignedOf { using type = int; };
template <> struct SignedOf<8> { using type = i64; };
using Signed = SignedOf<sizeof(Bits)>::type;

struct Candidate {
  Bits distance;                        // as an integer
  int position;
};

template <class T> __device__ inline T warp_greatest(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(FULL, value, offset));
  return value;
}

__device__ inline int below_lane(u32 vote) { return __popc(vote & ((1u << lane()) - 1)); }

// Where the nearest end: values below it are chosen, and of those equal to it some.
template <class T> struct Border {
  T value;
  int up_to;                            // how many values are not greater, or, where these were too many, how many less
};

// Find a border with `wanted` to `most` of a warp's values, of which `count`, more than `most`, are not greater than
// `top`; there is none where too many are equal. All are above 0 and, with `top`, below half of what T holds. The first
// steps, from `pivot` or, where that is 0, from one of the values, are as long as they should be if these are squared
// distances to points spread evenly.
template <int N, class T>
__device__ inline Border<T> border_after(int wanted, int most, int count, const T (&values)[N], T top, T pivot) {
  constexpr int FREE_STEPS = 8;         // after them brackets are halved
  constexpr float SCALE = 2.0f / DK * float(OCTAVE);
  const float aim = SCALE * log2_roughly(0.5f * float(wanted + most) + 0.5f);
  T lo = 0, hi = top;
  int up_to_lo = 0;
  if (pivot == 0) {                     // the first value up to which each lane has one
    T least = values[0];
#pragma unroll
    for (int n = 1; n < N; ++n) least = min(least, values[n]);
    pivot = warp_greatest(least > top ? T(0) : least);
  }
  for (int round = 0;; ++round) {
    int mine = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) mine += int(T(values[n] - pivot - 1) >> (8 * sizeof(T) - 1));  // 1 if not greater
    const int up_to = __reduce_add_sync(FULL, mine);
    if (up_to >= wanted && up_to <= most) return {pivot, up_to};
    if (up_to < wanted) lo = pivot, up_to_lo = up_to;
    else hi = pivot;
    if (hi - lo == 1) return {hi, up_to_lo};
    const T moved = pivot + T(Signed(aim - SCALE * log2_roughly(float(up_to) + 0.5f)));
    const bool inside = moved > lo && moved < hi && round < FREE_STEPS;
    pivot = inside ? moved : lo + (hi - lo) / 2;
  }
}

// The lesser or the greater of a lane's number and that of the lane a distance away.
__device__ inline u32 exchanged(u32 own, int distance, bool takes_least) {
  const u32 other = __shfl_xor_sync(FULL, own, distance);
  return (other < own) == takes_least ? other : own;
}

// Sort two numbers of each lane, such that all first ones are not greater than the second ones, and ascend.
__device__ inline void sort_least(u32& least, u32& rest) {
#pragma unroll
  for (int size = 2; size <= 32; size *= 2) {
#pragma unroll
    for (int distance = size / 2; distance > 0; distance /= 2) {
      const bool takes_least = ((lane() & distance) == 0) == ((lane() & size) == 0);
      least = exchanged(least, distance, takes_least);
      rest = exchanged(rest, distance, !takes_least);
    }
  }
  const u32 lower = min(least, rest);
  rest = max(least, rest);
  least = lower;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    least = exchanged(least, distance, (lane() & distance) == 0);
}

constexpr int FEW_LEFT = 64;            // candidates that are sorted
constexpr bool SORTS = sizeof(Bits) == 4;

// Sort a few candidates, at least top_k, by their distances but for the last bits, and move the chosen ones to the
// front. False if the last bits decide which these are; then nothing is moved.
__device__ inline bool choose_sorted(const Args& a, Candidate* candidates, int count, Bits& end) {
  const u32 low = u32(FEW_LEFT - 1);
  u32 keys[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int place = n * 32 + lane();
    keys[n] = place < count ? (u32(candidates[place].distance) & ~low) | u32(place) : ~0u;
  }
  sort_least(keys[0], keys[1]);
  const u32 next = a.top_k < 32 ? __shfl_sync(FULL, keys[0], a.top_k) : __reduce_min_sync(FULL, keys[1]);
  const u32 last = __shfl_sync(FULL, keys[0], a.top_k - 1);
  if ((last | low) == (next | low)) return false;
  end = last | low;
  const Candidate own = candidates[keys[0] & low];
  __syncwarp();                         // all lanes have read what is written over now
  if (lane() < a.top_k) candidates[lane()] = own;
  __syncwarp();
  return true;
}

// Choose among `count` gathered candidates, more than top_k, and move the chosen ones to the front. `end` becomes where
// they end; until then it is where those of another query do, or 0.
template <int N> __device__ inline void choose_gathered(const Args& a, Candidate* candidates, int count, Bits& end) {
  Bits values[N];                       // distances, plus 1; what is not a number is infinite
  int positions[N];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int place = n * 32 + lane();
    const Candidate candidate = candidates[place];
    values[n] = place < count ? min(candidate.distance, FARTHEST) + 1 : FARTHEST + 2;
    positions[n] = candidate.position;
  }
  const bool sorts = SORTS && a.top_k <= 32;
  Border<Bits> border = {FARTHEST + 1, count};
  if (!sorts || count > FEW_LEFT)
    border = border_after(a.top_k, sorts ? FEW_LEFT : a.top_k, count, values, FARTHEST + 1,
                          end == 0 ? 0 : min(end + REACH, FARTHEST + 1));
  if (sorts && border.up_to >= a.top_k) {
    __syncwarp();                       // all lanes have read what is written over now
    int left = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const bool is = values[n] <= border.value;
      const u32 vote = __ballot_sync(FULL, is);
      if (is) candidates[left + below_lane(vote)] = Candidate{values[n] - 1, positions[n]};
      left += __popc(vote);
    }
    __syncwarp();
    if (choose_sorted(a, candidates, left, end)) return;
    border = border_after(a.top_k, a.top_k, left, values, border.value, border.value);
  }
  end = border.value;
  u32 oldest = ~0u;                     // of those at the border
  if (border.up_to < a.top_k) {         // not all of them are chosen: the most recent
    u32 ages[N];
    int equal = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const bool is = values[n] == border.value;
      ages[n] = u32(NO_KEY) + !is - (is ? positions[n] : 0);
      equal += is;
    }
    equal = __reduce_add_sync(FULL, equal);
    const int missing = a.top_k - border.up_to;
    if (equal > missing) oldest = border_after(missing, missing, equal, ages, u32(NO_KEY), 0u).value;
  }
  __syncwarp();                         // all lanes have read what is written over now
  int chosen = 0;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const bool is = values[n] < border.value || (values[n] == border.value && u32(NO_KEY - positions[n]) <= oldest);
    const u32 vote = __ballot_sync(FULL, is);
    if (is) candidates[chosen + below_lane(vote)] = Candidate{values[n] - 1, positions[n]};
    chosen += __popc(vote);
  }
  __syncwarp();
}
