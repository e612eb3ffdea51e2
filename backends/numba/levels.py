"""Dyadic levels of the keys in code order, and the skip index over them.

Level l holds the keys at positions below `ceil(N / 2**l)`, in (code, position) order. All levels come from
one sort by stable compaction; together they have fewer than two entries a key. A query that sees t keys
uses the smallest level with at least t, where at least half the entries are visible to it, so that a window
of visible keys is a short stretch of entries whatever N is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zeta_ops.backends.numba.compiling import compiled, level_length
from zeta_ops.backends.numba.layout import BLOCK, ENTRY, KEY, LEVELS, MAX_LEVELS, NUM_KEYS, Layout
from zeta_ops.backends.numba.parallel import next_unit, run

__all__ = ["NO_KEY", "Entries", "fill_levels", "index_entries"]

Array = npt.NDArray[Any]

NO_KEY = np.int32(2**31 - 1)  # position of a padding entry: visible to nobody
KEYS = 4096  # sorted keys per unit of work
COARSE = BLOCK * BLOCK


class Entries(NamedTuple):
    """Entries of all levels and rows, for each curve.

    Attributes
    ----------
    position : ndarray (curves, E) int32
        Position of the entry's key in its sequence.
    coordinates : ndarray (curves, dk, E)
    rank : ndarray (curves, E) int32
        The inverse of `position`: where a key stands in a level, at the level's first entry plus the key's
        position. Only filled where several curves have to know of each other.
    fine, coarse : ndarray (curves, E / 32), (curves, E / 1024) int32
        Skip index: the smallest position among 32 and among 1024 entries. A walk steps over stretches that
        a query sees nothing of. A coarse value may reach across a border of levels; it is then smaller than
        it could be, and skips less.
    """

    position: Array
    coordinates: Array
    rank: Array
    fine: Array
    coarse: Array


def fill_levels(layout: Layout, codes: Array, places: Array) -> tuple[Array, Array]:
    """Compact one curve's sorted keys into levels.

    Parameters
    ----------
    codes, places : ndarray (keys,)
        Of all rows, as `sort_rows` leaves them. `codes` may be empty where only positions are wanted.

    Returns
    -------
    position : ndarray (E,) int32
    codes : ndarray (E,), or (0,) without codes
    """
    position = np.full(layout.entries, NO_KEY, np.int32)
    entry_codes = np.empty(layout.entries if len(codes) else 0, codes.dtype)
    units = layout.key_units(KEYS)
    counts = np.zeros((len(units.row), MAX_LEVELS), np.int64)
    run(count_kernel, len(units.row), units, layout, places, counts)
    starts = _starts_in_levels(layout, units.row, counts)
    run(compact_kernel, len(units.row), units, layout, codes, places, starts, position, entry_codes)
    return position, entry_codes


def _starts_in_levels(layout: Layout, unit_rows: Array, counts: Array) -> Array:
    """Entry at which each unit begins to write in each level: a sum over the units before it in its row."""
    before = np.cumsum(counts, axis=0) - counts
    first_unit = np.searchsorted(unit_rows, unit_rows)
    in_row = before - before[first_unit]
    return np.asarray(in_row + layout.level_entry[unit_rows, :MAX_LEVELS] + layout.rows[unit_rows, ENTRY, None])


@compiled
def count_kernel(counter, units, unit_table, layout, places, counts):
    """Count for each unit of sorted keys how many belong to each level."""
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        start = unit_table.start[unit]
        for s in range(start, min(start + KEYS, row[NUM_KEYS])):
            place = places[row[KEY] + s]
            level = 0
            while level < row[LEVELS] and place < level_length(row[NUM_KEYS], level):
                counts[unit, level] += 1
                level += 1
        unit = next_unit(counter)


@compiled
def compact_kernel(counter, units, unit_table, layout, codes, places, starts, position, entry_codes):
    """Copy each sorted key to every level that it belongs to, in order."""
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        start = unit_table.start[unit]
        end = starts[unit].copy()
        for s in range(start, min(start + KEYS, row[NUM_KEYS])):
            place = places[row[KEY] + s]
            level = 0
            while level < row[LEVELS] and place < level_length(row[NUM_KEYS], level):
                position[end[level]] = place
                if len(codes) > 0:
                    entry_codes[end[level]] = codes[row[KEY] + s]
                end[level] += 1
                level += 1
        unit = next_unit(counter)


def index_entries(layout: Layout, position: Array, k: Array, dims: int) -> Entries:
    """Derive all else about the entries from their positions `(curves, E)` and the keys `k` (flat)."""
    curves, entries = position.shape
    coordinates = np.empty((curves, dims, entries), k.dtype)
    rank = np.empty((curves, entries if curves > 1 else 0), np.int32)
    fine = np.full((curves, -(-entries // BLOCK)), NO_KEY, np.int32)
    coarse = np.full((curves, -(-entries // COARSE)), NO_KEY, np.int32)
    used = Entries(position, coordinates, rank, fine, coarse)
    units = layout.entry_units(COARSE)
    run(index_kernel, len(units.row), units, layout, used, k, dims)
    run(coarse_kernel, coarse.shape[1], fine, coarse)
    return used


@compiled
def index_kernel(counter, units, unit_table, layout, entries, k, dims):
    """Gather coordinates and ranks of up to 1024 entries of a row, and the fine skip index."""
    curves = len(entries.position)
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        bases = layout.level_entry[unit_table.row[unit]]
        start = unit_table.start[unit]
        stop = min(start + COARSE, bases[row[LEVELS]])
        for curve in range(curves):
            level = 0
            least = NO_KEY
            for e in range(start, stop):
                while e >= bases[level + 1]:
                    level += 1
                entry = row[ENTRY] + e
                place = entries.position[curve, entry]
                least = min(least, place)
                if (e + 1) % BLOCK == 0:
                    entries.fine[curve, entry // BLOCK] = least
                    least = NO_KEY
                if place == NO_KEY:
                    for c in range(dims):
                        entries.coordinates[curve, c, entry] = 0
                else:
                    for c in range(dims):
                        entries.coordinates[curve, c, entry] = k[(row[KEY] + place) * dims + c]
                    if curves > 1:
                        entries.rank[curve, row[ENTRY] + bases[level] + place] = e
        unit = next_unit(counter)


@compiled
def coarse_kernel(counter, units, fine, coarse):
    """Take the least of 32 fine values."""
    unit = next_unit(counter)
    while unit < units:
        for curve in range(len(fine)):
            for block in range(unit * BLOCK, min((unit + 1) * BLOCK, fine.shape[1])):
                coarse[curve, unit] = min(coarse[curve, unit], fine[curve, block])
        unit = next_unit(counter)
