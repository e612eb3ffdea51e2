// Attention to given keys, backward, at the keys: one warp a key, of those that nobody names too. The places that name
// it follow one another in the sorted pairs; 32 of them at once are weighed, then the gradients of their outputs are
// added in order. A key may be named by every query: where whole stretches of the pairs name one key, a warp each has
// summed them before. So every sum has a fixed order, no two warps write to one place, and no warp has more than a few
// stretches to do.
#include "given.cuh"

constexpr int STRETCH = 1024;           // pairs

// The first of `count` ascending keys that is not less than `key`; all lanes together, 32 probes a step.
__device__ inline i64 first_not_below(const u64* keys, i64 count, u64 key) {
  i64 lo = 0, hi = count;               // all before `lo` are less, none from `hi` on
  while (lo < hi) {
    const i64 step = (hi - lo + 31) / 32, probe = lo + (lane() + 1) * step - 1;
    const int below = __popc(__ballot_sync(FULL, probe < hi && keys[probe] < key));
    const i64 next = lo + below * step;
    hi = min(hi, next + step - 1);
    lo = min(hi, next);
  }
  return lo;
}

__device__ inline i64 count_places(const Args& a) { return i64(a.batch) * a.q_heads * a.q_len * a.width; }

// Whether a stretch, which begins at pair `first`, names `key` alone.
__device__ inline bool is_whole(const Args& a, i64 first, u64 key) {
  const u64* keys = static_cast<const u64*>(a.sorted_pair_keys);
  return first + STRETCH <= count_places(a) && keys[first] == key && keys[first + STRETCH - 1] == key;
}

// Sums of one key, a panel of its values after the other. A lane's parts of the key's gradient become one at the end.
struct KeySums {
  u64 key;                              // its number among all (batch, kv_heads, k_len)
  int head_row, token;
  Coordinate x[DK];
  Columns values, grad_v;
  Sum grad_k[DK];

  __device__ KeySums(const Args& a, u64 key) : key(key), head_row(int(key / a.k_len)), token(int(key % a.k_len)) {
    const Coordinate* from = key_point(a, head_row, token);
#pragma unroll
    for (int c = 0; c < DK; ++c) x[c] = from[c], grad_k[c] = 0;
  }

  __device__ void begin_panel(const Args& a, int first) {
    values.load(value_row(a, head_row, token), first, a.value_dim);
    grad_v.clear();
  }

  // Add those of 32 pairs that name the key, and say which they are.
  __device__ u32 add(const Args& a, i64 pairs, int first) {
    const i64 pair = pairs + lane();
    const bool names = pair < count_places(a) && static_cast<const u64*>(a.sorted_pair_keys)[pair] == key;
    const Value* grad_out = static_cast<const Value*>(a.grad_out);
    i64 row = 0;                        // of grad_out
    Sum p = 0, slope[DK] = {}, mean = 0;
    if (names) {
      const Query query = query_with_number(a, static_cast<const int*>(a.sorted_pair_places)[pair] / a.width);
      const Coordinate* other = query_point(a, query);
      const Sum u = 1 / (Sum(comparable(squared_distance(other, x))) + squared_gamma(a, head_of(a, query)));
      p = u * inverse_normalizer(a, query.at);
      row = grad_row(a, query) - grad_out;
      if (first == 0) mean = static_cast<const Sum*>(a.delta)[query.at];
#pragma unroll
      for (int c = 0; c < DK; ++c) slope[c] = 2 * u * p * (Sum(other[c]) - Sum(x[c]));
    }
    Sum product = 0;
    const bool has_weight = p != 0;
    for (u32 left = __ballot_sync(FULL, has_weight); left; left &= left - 1) {
      const int owner = __ffs(int(left)) - 1;
      Columns g;
      g.load(grad_out + __shfl_sync(FULL, row, owner), first, a.value_dim);
      grad_v.add(g, __shfl_sync(FULL, p, owner));
      const Sum sum = warp_sum(g.dot(values));
      if (lane() == owner) product = sum;
    }
    if (has_weight) {
#pragma unroll
      for (int c = 0; c < DK; ++c) grad_k[c] += slope[c] * (product - mean);
    }
    return __ballot_sync(FULL, names);
  }
};

ZETA_KERNEL(given_bwd_stretches_kernel, 256, BLOCKS) {
  const i64 stretch = warp_of_grid(), from = stretch * STRETCH;
  if (from + STRETCH > count_places(a)) return;
  const u64 key = static_cast<const u64*>(a.sorted_pair_keys)[from];
  if (key == u64(a.batch) * a.kv_heads * a.k_len || !is_whole(a, from, key)) return;
  KeySums sums(a, key);
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    sums.begin_panel(a, first);
    for (int pairs = 0; pairs < STRETCH; pairs += 32) sums.add(a, from + pairs, first);
    sums.grad_v.store(static_cast<Sum*>(a.stretch_v) + stretch * a.value_dim, first, a.value_dim);
  }
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    const Sum sum = warp_sum(sums.grad_k[c]);
    if (lane() == 0) static_cast<Sum*>(a.stretch_k)[stretch * DK + c] = sum;
  }
}

ZETA_KERNEL(given_bwd_keys_kernel, 256, BLOCKS) {
  const i64 key = warp_of_grid();
  if (key >= i64(a.batch) * a.kv_heads * a.k_len) return;
  KeySums sums(a, u64(key));
  const i64 start = first_not_below(static_cast<const u64*>(a.sorted_pair_keys), count_places(a), u64(key));
  for (int first = 0; first < max(a.value_dim, 1); first += PANEL) {
    sums.begin_panel(a, first);
    i64 pairs = start / 32 * 32;
    for (u32 named = FULL; named >> 31;) {  // the last of 32 names the key, so that the next may
      if (pairs % STRETCH != 0 || !is_whole(a, pairs, u64(key))) {
        named = sums.add(a, pairs, first);
        pairs += 32;
        continue;
      }
      const i64 stretch = pairs / STRETCH;
      Columns others;
      others.load(static_cast<const Sum*>(a.stretch_v) + stretch * a.value_dim, first, a.value_dim);
      sums.grad_v.add(others, 1);
      if (first == 0 && lane() < DK) {
        const Sum part = static_cast<const Sum*>(a.stretch_k)[stretch * DK + lane()];
#pragma unroll
        for (int c = 0; c < DK; ++c) sums.grad_k[c] += c == lane() ? part : Sum(0);
      }
      pairs += STRETCH;
    }
    if (a.carried) {
      Columns before;
      before.load(static_cast<const Sum*>(a.sum_v) + key * a.value_dim, first, a.value_dim);
      sums.grad_v.add(before, 1);
    }
    sums.grad_v.store(static_cast<Value*>(a.grad_v) + key * a.value_dim, first, a.value_dim);
  }
#pragma unroll
  for (int c = 0; c < DK; ++c) {
    Sum sum = warp_sum(sums.grad_k[c]);
    if (lane() != 0) continue;
    if (a.carried) sum += static_cast<const Sum*>(a.sum_k)[key * DK + c];
    static_cast<Coordinate*>(a.grad_k)[key * DK + c] = Coordinate(sum);
  }
}
