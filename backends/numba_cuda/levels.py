"""Dyadic levels by stable compaction of sorted keys: count, scan, fill.

A unit of 64 sorted keys has a thread for each level, which walks over the unit and counts, or copies, the keys that
belong to its level. The threads of a unit are a warp and read the same position at the same time, which costs as much
as one read.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from zeta_ops.backends.numba_cuda.compiling import device, kernel
from zeta_ops.backends.numba_cuda.constants import (
    BATCH,
    CURVES,
    ENTRIES,
    FIRST_ENTRY,
    FIRST_UNIT,
    K_LEN,
    KEYS,
    KV_HEADS,
    LEVEL_ENTRY,
    LEVELS,
    LINE,
    MAX_LEVELS,
    NUMBERS,
    SEQUENCES,
    START,
    UNIT,
    UNITS,
)
from zeta_ops.backends.numba_cuda.layout import find_line, level_length

__all__ = ["SEGMENTS", "level_count_kernel", "level_fill_kernel", "level_scan_kernel"]

SEGMENTS = 32  # of a row's units: a block scans them at once


@device
def unit_of_thread(table, n):
    """Key head, line and first sorted key of a thread's unit; the first key is beyond all where there is no unit."""
    warp = n // MAX_LEVELS
    head_row = warp // table[UNITS]
    unit = warp - head_row * table[UNITS]
    line = find_line(table, FIRST_UNIT, unit)
    return head_row, line, (unit - table[line + FIRST_UNIT]) * UNIT


@kernel
def level_count_kernel(table, sorted_places, level_counts):
    """Count the keys of each unit that belong to each level."""
    n = cuda.grid(1)
    if n >= table[BATCH] * table[KV_HEADS] * table[UNITS] * MAX_LEVELS:
        return
    head_row, line, first = unit_of_thread(table, n)
    keys, level = table[line + KEYS], n % MAX_LEVELS
    if first >= keys:
        return
    length = level_length(keys, level) if level < table[line + LEVELS] else 0
    places = head_row * table[K_LEN] + table[line + START]
    count = 0
    for key in range(places + first, places + min(first + UNIT, keys)):
        count += sorted_places[key] < length
    level_counts[n] = count


@kernel
def level_scan_kernel(table, level_counts):
    """Replace the counts of a row by the sums before them. One block a row, a thread for each level of a segment."""
    sums = cuda.shared.array((SEGMENTS, MAX_LEVELS), np.int64)
    head_row = cuda.blockIdx.x // table[SEQUENCES]
    line = NUMBERS + (cuda.blockIdx.x - head_row * table[SEQUENCES]) * LINE
    units = (table[line + KEYS] + UNIT - 1) // UNIT
    each = (units + SEGMENTS - 1) // SEGMENTS
    row = (head_row * table[UNITS] + table[line + FIRST_UNIT]) * MAX_LEVELS
    # The simulator is run with fewer threads.
    for task in range(cuda.threadIdx.x, SEGMENTS * MAX_LEVELS, cuda.blockDim.x):
        segment, level = task // MAX_LEVELS, task % MAX_LEVELS
        total = 0
        for unit in range(segment * each, min((segment + 1) * each, units)):
            total += level_counts[row + unit * MAX_LEVELS + level]
        sums[segment, level] = total
    cuda.syncthreads()
    for task in range(cuda.threadIdx.x, SEGMENTS * MAX_LEVELS, cuda.blockDim.x):
        segment, level = task // MAX_LEVELS, task % MAX_LEVELS
        running = 0
        for before in range(segment):
            running += sums[before, level]
        for unit in range(segment * each, min((segment + 1) * each, units)):
            place = row + unit * MAX_LEVELS + level
            here = level_counts[place]
            level_counts[place] = running
            running += here


@kernel
def level_fill_kernel(table, sorted_places, sorted_codes, level_counts, positions, entry_codes, ranks):
    """Copy the keys of each unit to their levels."""
    n = cuda.grid(1)
    if n >= table[BATCH] * table[KV_HEADS] * table[UNITS] * MAX_LEVELS:
        return
    head_row, line, first = unit_of_thread(table, n)
    keys, level = table[line + KEYS], n % MAX_LEVELS
    if first >= keys or level >= table[line + LEVELS]:
        return
    length = level_length(keys, level)
    places = head_row * table[K_LEN] + table[line + START]
    row = head_row * table[ENTRIES] + table[line + FIRST_ENTRY]
    level_entry = table[line + LEVEL_ENTRY + level]
    entry = level_entry + level_counts[n]
    several = table[CURVES] > 1
    for key in range(places + first, places + min(first + UNIT, keys)):
        position = sorted_places[key]
        if position < length:
            positions[row + entry] = position
            entry_codes[row + entry] = sorted_codes[key]
            if several:  # where a key stands in a level, by its position
                ranks[row + level_entry + position] = entry
            entry += 1
