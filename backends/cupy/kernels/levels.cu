// Dyadic levels by stable compaction of sorted keys. A warp takes a unit of 512 keys, 32 at a time; lane l counts for
// level l. Counts of all units are scanned along each row, then every unit copies its keys to their places.
#include "rows.cuh"

// The sequence and the first sorted key of a warp's unit; false beyond the last one.
__device__ inline bool unit_of_warp(const Args& a, i64& head_row, int& sequence, int& first) {
  const i64 warp = warp_of_grid();
  head_row = warp / a.units;
  if (head_row >= i64(a.batch) * a.kv_heads) return false;
  const int unit = int(warp % a.units);
  sequence = sequence_with<&Sequence::unit>(a, unit);
  first = (unit - sequences_of(a)[sequence].unit) * UNIT;
  return first < sequences_of(a)[sequence].keys;
}

// Which lanes' keys belong to a level; the vote of all lanes.
__device__ inline u32 members(const Sequence& s, int level, int place) {
  return __ballot_sync(FULL, place < level_length(s.keys, level));
}

ZETA_KERNEL(level_count_kernel, 256) {
  i64 head_row; int sequence, first;
  if (!unit_of_warp(a, head_row, sequence, first)) return;
  const Sequence& s = sequences_of(a)[sequence];
  const int* places = static_cast<const int*>(a.sorted_places) + head_row * a.k_len + s.start;
  int count = 0;
  for (int n = first; n < min(first + UNIT, s.keys); n += 32) {
    const int place = n + lane() < s.keys ? places[n + lane()] : NO_KEY;
    for (int level = 0; level < s.levels; ++level) {
      const u32 vote = members(s, level, place);
      if (!vote) break;
      if (lane() == level) count += __popc(vote);
    }
  }
  int* counts = static_cast<int*>(a.level_counts);
  counts[(head_row * a.units + s.unit + first / UNIT) * MAX_LEVELS + lane()] = count;
}

// One warp a row: lane l walks over the counts of level l.
ZETA_KERNEL(level_scan_kernel, 256) {
  const i64 row = warp_of_grid();
  if (row >= i64(a.batch) * a.kv_heads * a.num_sequences) return;
  const Sequence& s = sequences_of(a)[row % a.num_sequences];
  const i64 head_row = row / a.num_sequences;
  int* counts = static_cast<int*>(a.level_counts) + (head_row * a.units + s.unit) * MAX_LEVELS + lane();
  const int units = (s.keys + UNIT - 1) / UNIT;
  int running = 0;
  constexpr int AHEAD = 8;              // independent loads in flight
  for (int unit = 0; unit < units; unit += AHEAD) {
    int here[AHEAD];
#pragma unroll
    for (int n = 0; n < AHEAD; ++n) here[n] = unit + n < units ? counts[i64(unit + n) * MAX_LEVELS] : 0;
#pragma unroll
    for (int n = 0; n < AHEAD; ++n) {
      if (unit + n < units) counts[i64(unit + n) * MAX_LEVELS] = running;
      running += here[n];
    }
  }
}

ZETA_KERNEL(level_fill_kernel, 256) {
  i64 head_row; int sequence, first;
  if (!unit_of_warp(a, head_row, sequence, first)) return;
  const Sequence& s = sequences_of(a)[sequence];
  const i64 keys = head_row * a.k_len + s.start, entries = head_row * a.entries + s.entry;
  const int* places = static_cast<const int*>(a.sorted_places) + keys;
  const u64* codes = static_cast<const u64*>(a.sorted_codes) + keys;
  int* positions = static_cast<int*>(a.entry_positions) + entries;
  u64* entry_codes = static_cast<u64*>(a.entry_codes) + entries;
  const i64 unit = head_row * a.units + s.unit + first / UNIT;
  int start = static_cast<const int*>(a.level_counts)[unit * MAX_LEVELS + lane()];
  const u32 before = (1u << lane()) - 1;
  for (int n = first; n < min(first + UNIT, s.keys); n += 32) {
    const bool exists = n + lane() < s.keys;
    const int place = exists ? places[n + lane()] : NO_KEY;
    const u64 code = exists ? codes[n + lane()] : 0;
    for (int level = 0; level < s.levels; ++level) {
      const u32 vote = members(s, level, place);
      if (!vote) break;
      const int level_start = __shfl_sync(FULL, start, level);
      if (vote >> lane() & 1) {
        const i64 entry = s.level_entry[level] + level_start + __popc(vote & before);
        positions[entry] = place;
        entry_codes[entry] = code;
      }
      if (lane() == level) start += __popc(vote);
    }
  }
}
