"""Dyadic levels by stable compaction of sorted items: count, scan, fill.

Keys go to every level that holds them, queries to the slots of the one level that they use; a query stands behind the
keys of its level that come before it. A unit of sorted items has a thread for each level, which walks over the unit and
counts, or copies, what belongs to its level. Threads of a block look up what the items are first, each its own ones.
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
    GROUP,
    KEYS,
    KV_HEADS,
    LEVEL_COUNTS,
    LEVEL_ENTRY,
    LEVELS,
    LINE,
    MAX_LEVELS,
    NUMBER_BITS,
    NUMBERS,
    QUERIES,
    ROW_SHIFT,
    SEQUENCES,
    START,
    UNIT,
    UNITS,
    UNITS_OF_BLOCK,
)
from zeta_ops.backends.numba_cuda.layout import (
    find_line,
    first_slot,
    head_and_token_of_item,
    items_in_row,
    items_of_head,
    level_length,
    level_of,
    seen_by,
)

__all__ = ["SEGMENTS", "level_count_kernel", "level_fill_kernel", "level_scan_kernel"]

SEGMENTS = 32  # of a row's units: a block scans them at once
_STAGED = UNITS_OF_BLOCK * UNIT


@device
def find_unit(table, unit):
    """Key head, line and first item of a unit, counted over all heads; there is no item where there is no unit."""
    head_row = unit // table[UNITS]
    unit -= head_row * table[UNITS]
    line = find_line(table, FIRST_UNIT, unit)
    return head_row, line, (unit - table[line + FIRST_UNIT]) * UNIT


@device
def units_of_all(table):
    """Count the units of all heads."""
    return table[BATCH] * table[KV_HEADS] * table[UNITS]


@device
def item_at(table, sorted_items, sorted_numbers, head_row, line, place):
    """Say what the item at a place in its row's order is: a key's position, or -1 less a query's level; and its number.

    The number is a query's in its row, `head * QUERIES + i`.
    """
    at = head_row * items_of_head(table) + table[line + START] * (1 + table[GROUP]) + place
    if table[NUMBER_BITS] > 0:
        number = np.int64(sorted_items[at] & ((np.uint64(1) << np.uint64(table[NUMBER_BITS])) - np.uint64(1)))
    else:
        number = np.int64(sorted_numbers[at])
        if table[ROW_SHIFT] == 64:  # of an item among all, where they were sorted twice; else there is one head
            number -= head_row * items_of_head(table)
    head, token = head_and_token_of_item(table, number)
    position = token - table[line + START]
    if head < 0:
        return position, 0
    level = level_of(seen_by(table, line, token), table[line + KEYS], table[line + LEVELS])
    return -1 - level, head * table[line + QUERIES] + position


@device
def stage_items(table, sorted_items, sorted_numbers, kinds, numbers, first_unit, thread, threads):
    """Look up the items of a block's units."""
    for n in range(thread, _STAGED, threads):
        if first_unit + n // UNIT < units_of_all(table):
            head_row, line, first = find_unit(table, first_unit + n // UNIT)
            if first + n % UNIT < items_in_row(table, line):
                kinds[n], numbers[n] = item_at(table, sorted_items, sorted_numbers, head_row, line, first + n % UNIT)


@kernel
def level_count_kernel(table, sorted_items, sorted_numbers, level_counts):
    """Count the keys, and the queries, of each unit that belong to each level."""
    kinds = cuda.shared.array(_STAGED, np.int32)
    numbers = cuda.shared.array(_STAGED, np.int32)
    first_unit = cuda.blockIdx.x * UNITS_OF_BLOCK
    stage_items(table, sorted_items, sorted_numbers, kinds, numbers, first_unit, cuda.threadIdx.x, cuda.blockDim.x)
    cuda.syncthreads()
    for task in range(cuda.threadIdx.x, UNITS_OF_BLOCK * MAX_LEVELS, cuda.blockDim.x):
        unit, level = first_unit + task // MAX_LEVELS, task % MAX_LEVELS
        if unit < units_of_all(table):
            _, line, first = find_unit(table, unit)
            length = level_length(table[line + KEYS], level) if level < table[line + LEVELS] else 0
            keys, queries = 0, 0
            at = task // MAX_LEVELS * UNIT
            for n in range(at, at + min(UNIT, items_in_row(table, line) - first)):
                kind = kinds[n]
                keys += (kind >= 0) & (kind < length)
                queries += kind == -1 - level
            level_counts[unit * LEVEL_COUNTS + level] = keys
            level_counts[unit * LEVEL_COUNTS + MAX_LEVELS + level] = queries


@kernel
def level_scan_kernel(table, level_counts):
    """Replace the counts of a row by where what is counted begins. One block a row, threads for columns of segments."""
    sums = cuda.shared.array((SEGMENTS, LEVEL_COUNTS), np.int64)
    head_row = cuda.blockIdx.x // table[SEQUENCES]
    line = NUMBERS + (cuda.blockIdx.x - head_row * table[SEQUENCES]) * LINE
    units = (items_in_row(table, line) + UNIT - 1) // UNIT
    each = (units + SEGMENTS - 1) // SEGMENTS
    row = (head_row * table[UNITS] + table[line + FIRST_UNIT]) * LEVEL_COUNTS
    # The simulator is run with fewer threads.
    for task in range(cuda.threadIdx.x, SEGMENTS * LEVEL_COUNTS, cuda.blockDim.x):
        segment, column = task // LEVEL_COUNTS, task % LEVEL_COUNTS
        total = 0
        for unit in range(segment * each, min((segment + 1) * each, units)):
            total += level_counts[row + unit * LEVEL_COUNTS + column]
        sums[segment, column] = total
    cuda.syncthreads()
    for task in range(cuda.threadIdx.x, SEGMENTS * LEVEL_COUNTS, cuda.blockDim.x):
        segment, column = task // LEVEL_COUNTS, task % LEVEL_COUNTS
        running = 0
        if column < MAX_LEVELS:
            running = table[line + LEVEL_ENTRY + column]
        for level in range(MAX_LEVELS, column):  # slots are in the order of levels
            for before in range(SEGMENTS):
                running += sums[before, level]
        for before in range(segment):
            running += sums[before, column]
        for unit in range(segment * each, min((segment + 1) * each, units)):
            place = row + unit * LEVEL_COUNTS + column
            here = level_counts[place]
            level_counts[place] = running
            running += here


@kernel
def level_fill_kernel(table, sorted_items, sorted_numbers, level_counts, positions, slots, places, ranks):
    """Copy the keys and queries of each unit to their levels."""
    kinds = cuda.shared.array(_STAGED, np.int32)
    numbers = cuda.shared.array(_STAGED, np.int32)
    first_unit = cuda.blockIdx.x * UNITS_OF_BLOCK
    stage_items(table, sorted_items, sorted_numbers, kinds, numbers, first_unit, cuda.threadIdx.x, cuda.blockDim.x)
    cuda.syncthreads()
    for task in range(cuda.threadIdx.x, UNITS_OF_BLOCK * MAX_LEVELS, cuda.blockDim.x):
        unit, level = first_unit + task // MAX_LEVELS, task % MAX_LEVELS
        if unit < units_of_all(table):
            head_row, line, first = find_unit(table, unit)
            length = level_length(table[line + KEYS], level) if level < table[line + LEVELS] else 0
            row = head_row * table[ENTRIES] + table[line + FIRST_ENTRY]
            entry = np.int64(level_counts[unit * LEVEL_COUNTS + level])
            slot = first_slot(table, head_row, line) + level_counts[unit * LEVEL_COUNTS + MAX_LEVELS + level]
            rank = row + table[line + LEVEL_ENTRY + level]
            several = table[CURVES] > 1
            at = task // MAX_LEVELS * UNIT
            for n in range(at, at + min(UNIT, items_in_row(table, line) - first)):
                kind = kinds[n]
                if kind == -1 - level:
                    slots[slot] = numbers[n]
                    places[slot] = entry
                    slot += 1
                elif kind >= 0 and kind < length:
                    positions[row + entry] = kind
                    if several:  # where a key stands in a level, by its position
                        ranks[rank + kind] = entry
                    entry += 1
