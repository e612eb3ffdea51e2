"""Ranges: for each query and curve the stretch of entries [L, R) in which its window lies.

The window is what the definition calls so: the entries of the stretch at positions below t(i). Two integers
a query say all; the attention kernels and the backward pass find the keys from them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zeta_ops.backends.numba.compiling import compiled, level_length, level_of
from zeta_ops.backends.numba.layout import (
    BLOCK,
    ENTRY,
    LEVELS,
    MAX_LEVELS,
    NUM_KEYS,
    NUM_QUERIES,
    SLOT,
    START,
    Layout,
)
from zeta_ops.backends.numba.levels import COARSE, Entries
from zeta_ops.backends.numba.parallel import next_unit, run

__all__ = ["Slots", "fill_slots", "find_ranges"]

Array = npt.NDArray[Any]

QUERIES = 4096  # sorted queries per unit of work, where they are put in slots
SLOTS = 256  # slots per unit of work, where ranges are found


class Slots(NamedTuple):
    """Queries by level, and by the code of the first curve within a level.

    Attributes
    ----------
    query : ndarray (slots,) int32
        The slot's query in its row: `head in group * NUM_QUERIES + i`.
    ranges : ndarray (slots, curves, 2) int32
        L and R, counted from the row's first entry.
    cut_distance, cut_position : ndarray (slots,), or (0,) where nothing is cut
        The last candidate that is kept: those farther away, or as far and less recent, are not selected.
    """

    query: Array
    ranges: Array
    cut_distance: Array
    cut_position: Array


def fill_slots(layout: Layout, places: Array, query: Array) -> None:
    """Put queries, sorted by code in each row (`places`), in slots: by level, still in code order."""
    units = layout.slot_units(QUERIES)
    counts = np.zeros((len(units.row), MAX_LEVELS), np.int64)
    run(count_queries_kernel, len(units.row), units, layout, places, counts)
    before = np.cumsum(counts, axis=0) - counts
    in_row = before - before[np.searchsorted(units.row, units.row)]
    starts = in_row + layout.level_slot[units.row, :MAX_LEVELS] + layout.rows[units.row, SLOT, None]
    run(fill_slots_kernel, len(units.row), units, layout, places, starts, query)


@compiled
def visible_to(layout, row, query):
    """Look up t(i) of a query of a row."""
    place = query if query < row[NUM_QUERIES] else query % row[NUM_QUERIES]
    return layout.seen[row[START] + place]


@compiled
def count_queries_kernel(counter, units, unit_table, layout, places, counts):
    """Count for each unit of sorted queries how many use each level."""
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        start = unit_table.start[unit]
        for s in range(start, min(start + QUERIES, layout.group * row[NUM_QUERIES])):
            visible = visible_to(layout, row, places[row[SLOT] + s])
            counts[unit, level_of(visible, row[NUM_KEYS], row[LEVELS])] += 1
        unit = next_unit(counter)


@compiled
def fill_slots_kernel(counter, units, unit_table, layout, places, starts, query):
    """Write each sorted query to the next slot of its level."""
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        start = unit_table.start[unit]
        end = starts[unit].copy()
        for s in range(start, min(start + QUERIES, layout.group * row[NUM_QUERIES])):
            place = places[row[SLOT] + s]
            level = level_of(visible_to(layout, row, place), row[NUM_KEYS], row[LEVELS])
            query[end[level]] = place
            end[level] += 1
        unit = next_unit(counter)


def find_ranges(
    layout: Layout, entries: Entries, curve: int, entry_codes: Array, query_codes: Array, window: int, slots: Slots
) -> None:
    """Find the range of every slot on one curve, from the codes of entries and (by query) of queries."""
    units = layout.slot_units(SLOTS)
    run(
        ranges_kernel,
        len(units.row),
        units,
        layout,
        entries,
        curve,
        entry_codes,
        query_codes,
        window,
        slots,
    )


@compiled
def insertion_point(entry_codes, first, stop, guess, code):
    """First entry of [first, stop) whose code is greater than `code`: gallop from a guess, then bisect."""
    lo, hi, step = first, stop, 1
    if guess < stop and entry_codes[guess] <= code:
        lo = guess + 1
        while lo + step < stop and entry_codes[lo + step] <= code:
            lo += step + 1
            step *= 2
        hi = min(lo + step, stop)
    else:
        hi = guess
        while hi - step >= first and entry_codes[hi - step] > code:
            hi -= step
            step *= 2
        lo = max(hi - step, first)
    while lo < hi:
        middle = (lo + hi) >> 1
        if entry_codes[middle] <= code:
            lo = middle + 1
        else:
            hi = middle
    return lo


@compiled
def walk_left(entries, curve, entry, first, visible, wanted):
    """Walk from `entry` down to `first`; return where the last of `wanted` visible entries lies, and how many."""
    found, last = 0, entry
    while entry > first and found < wanted:
        if entry % BLOCK == 0 and entries.fine[curve, entry // BLOCK - 1] >= visible:
            whole = entry % COARSE == 0 and entries.coarse[curve, entry // COARSE - 1] >= visible
            entry = max(entry - (COARSE if whole else BLOCK), first)
            continue
        stop = max((entry - 1) // BLOCK * BLOCK, first)
        while entry > stop and found < wanted:
            entry -= 1
            if entries.position[curve, np.uint64(entry)] < visible:
                found += 1
                last = entry
    return last, found


@compiled
def walk_right(entries, curve, entry, stop, visible, wanted):
    """Walk from `entry` up to `stop`; return the end of the last of `wanted` visible entries, and how many."""
    found, last = 0, entry
    while entry < stop and found < wanted:
        if entry % BLOCK == 0 and entries.fine[curve, entry // BLOCK] >= visible:
            whole = entry % COARSE == 0 and entries.coarse[curve, entry // COARSE] >= visible
            entry = min(entry + (COARSE if whole else BLOCK), stop)
            continue
        end = min((entry // BLOCK + 1) * BLOCK, stop)
        while entry < end and found < wanted:
            if entries.position[curve, np.uint64(entry)] < visible:
                found += 1
                last = entry + 1
            entry += 1
    return last, found


@compiled
def ranges_kernel(counter, units, unit_table, layout, entries, curve, entry_codes, query_codes, window, slots):
    """Find ranges: half a window of visible entries on either side, more on one side where the other ends."""
    half = (window + 1) // 2
    unit = next_unit(counter)
    while unit < units:
        r = unit_table.row[unit]
        row = layout.rows[r]
        start = unit_table.start[unit]
        level = 0
        guess = row[ENTRY]
        for s in range(start, min(start + SLOTS, layout.group * row[NUM_QUERIES])):
            while s >= layout.level_slot[r, level + 1]:
                level += 1
                guess = row[ENTRY] + layout.level_entry[r, level]
            slot = row[SLOT] + s
            query = slots.query[slot]
            visible = visible_to(layout, row, query)
            first = row[ENTRY] + layout.level_entry[r, level]
            stop = first + level_length(row[NUM_KEYS], level)
            middle = insertion_point(entry_codes, first, stop, guess, query_codes[row[SLOT] + query])
            guess = middle
            left, on_left = walk_left(entries, curve, middle, first, visible, half)
            right, on_right = walk_right(entries, curve, middle, stop, visible, window - on_left)
            if on_left == half and on_left + on_right < window:
                left, _ = walk_left(entries, curve, left, first, visible, window - on_left - on_right)
            slots.ranges[slot, curve, 0] = left - row[ENTRY]
            slots.ranges[slot, curve, 1] = right - row[ENTRY]
        unit = next_unit(counter)
