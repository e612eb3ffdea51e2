"""From queries and keys to ranges: encode, sort, levels, ranges, cut; and lists of selected positions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.numba.compiling import compiled
from zeta_ops.backends.numba.gather import STRETCH, cut_to_nearest, gather_selected, list_length, query_address
from zeta_ops.backends.numba.layout import (
    KEY,
    NUM_KEYS,
    NUM_QUERIES,
    SLOT,
    START,
    Layout,
)
from zeta_ops.backends.numba.levels import Entries, fill_levels, index_entries
from zeta_ops.backends.numba.morton import encode
from zeta_ops.backends.numba.parallel import next_unit, run
from zeta_ops.backends.numba.ranges import SLOTS, Slots, fill_slots, find_ranges
from zeta_ops.backends.numba.sorting import sort_rows
from zeta_ops.options import Problem

__all__ = ["Selection", "list_selected", "recall", "select", "selection_specs"]

Array = npt.NDArray[Any]


class Selection(NamedTuple):
    """What is known of all queries' selections."""

    layout: Layout
    entries: Entries
    slots: Slots
    longest_list: int


def selection_specs(problem: Problem) -> tuple[ArraySpec, ...]:
    """List the arrays from which `recall` rebuilds a selection: the keys' places in code order, and the slots."""
    curves, queries = problem.options.num_curves, problem.normalizer_shape
    cuts = queries if problem.options.reranks else (*queries[:-1], 0)
    return (
        ArraySpec((*problem.k_shape[:-1], curves), "int32"),
        ArraySpec(queries, "int32"),
        ArraySpec((*queries, curves, 2), "int32"),
        ArraySpec(cuts, problem.coordinate_dtype),
        ArraySpec(cuts, "int32"),
    )


def select(problem: Problem, layout: Layout, q: Array, k: Array, arrays: tuple[Array, ...]) -> Selection:
    """Select for all queries; `q` and `k` flat in the coordinate dtype, `arrays` as `selection_specs` says."""
    options, dims = problem.options, problem.key_dim
    sorted_keys, slots = _split(problem, arrays)
    code_dtype = np.uint32 if dims * options.bits <= 32 else np.uint64
    row_keys, row_queries = layout.rows[:, KEY], layout.rows[:, SLOT]
    query_counts = layout.group * layout.rows[:, NUM_QUERIES]
    position = np.empty((options.num_curves, layout.entries), np.int32)
    entry_codes, query_codes = [], []
    for curve in range(options.num_curves):
        codes = np.empty(len(k) // dims, code_dtype)
        encode(k, dims, options.bits, options.bounds, options.num_curves, curve, codes)
        in_order, places = sort_rows(codes, row_keys, layout.rows[:, NUM_KEYS])
        sorted_keys[:, curve] = places
        position[curve], level_codes = fill_levels(layout, in_order, places)
        entry_codes.append(level_codes)
        codes = np.empty(len(q) // dims, code_dtype)
        encode(q, dims, options.bits, options.bounds, options.num_curves, curve, codes)
        query_codes.append(_by_row(layout, codes, packed=problem.num_sequences is not None))
    _, places = sort_rows(query_codes[0], row_queries, query_counts)
    fill_slots(layout, places, slots.query)
    entries = index_entries(layout, position, k, dims)
    for curve in range(options.num_curves):
        find_ranges(layout, entries, curve, entry_codes[curve], query_codes[curve], options.window, slots)
    selection = _join(problem, layout, entries, slots)
    if options.reranks:
        cut_to_nearest(layout, entries, slots, q, dims, options.top_k, selection.longest_list)
    return selection


def recall(problem: Problem, layout: Layout, k: Array, arrays: tuple[Array, ...]) -> Selection:
    """Rebuild the selection that `select` left in `arrays`."""
    sorted_keys, slots = _split(problem, arrays)
    no_codes = np.zeros(0, np.uint32)
    by_curve = np.ascontiguousarray(sorted_keys.T)
    position = np.stack([fill_levels(layout, no_codes, places)[0] for places in by_curve])
    return _join(problem, layout, index_entries(layout, position, k, problem.key_dim), slots)


def _split(problem: Problem, arrays: tuple[Array, ...]) -> tuple[Array, Slots]:
    """View the arrays of `selection_specs` as sorted keys `(keys, curves)` and slots."""
    sorted_keys, query, ranges, cut_distance, cut_position = arrays
    curves = problem.options.num_curves
    slots = Slots(query.reshape(-1), ranges.reshape(-1, curves, 2), cut_distance.reshape(-1), cut_position.reshape(-1))
    return sorted_keys.reshape(-1, curves), slots


def _join(problem: Problem, layout: Layout, entries: Entries, slots: Slots) -> Selection:
    options = problem.options
    length = list_length(options.num_curves, options.window, options.local_window, problem.k_len)
    return Selection(layout, entries, slots, length)


def _by_row(layout: Layout, codes: Array, *, packed: bool) -> Array:
    """Bring the queries' codes in the order of rows: packed sequences have several rows a head."""
    if not packed:
        return codes
    in_rows = np.empty(len(codes), codes.dtype)
    units = layout.slot_units(SLOTS)
    run(by_row_kernel, len(units.row), units, layout, codes, in_rows)
    return in_rows


@compiled
def by_row_kernel(counter, units, unit_table, layout, codes, in_rows):
    """Copy each query's code to its place in its row."""
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        start = unit_table.start[unit]
        for query in range(start, min(start + SLOTS, layout.group * row[NUM_QUERIES])):
            in_rows[row[SLOT] + query] = codes[query_address(layout, row, query)]
        unit = next_unit(counter)


def list_selected(problem: Problem, selection: Selection, q: Array, indices: Array) -> None:
    """Write the selected positions along N into `indices` (flat, filled with -1), ascending."""
    layout, entries, slots, length = selection
    units = layout.slot_units(SLOTS)
    arguments = layout, entries, slots, q, problem.key_dim, problem.options.top_k, length, indices
    run(list_kernel, len(units.row), units, *arguments)


@compiled
def list_kernel(counter, units, unit_table, layout, entries, slots, q, dims, top_k, length, indices):
    """List the selected keys of each slot's query in order of position."""
    positions = np.empty(length, np.int32)
    distances = np.empty(length, q.dtype)
    scratch = np.empty(STRETCH, q.dtype)
    unit = next_unit(counter)
    while unit < units:
        r = unit_table.row[unit]
        row = layout.rows[r]
        start = unit_table.start[unit]
        level = 0
        for s in range(start, min(start + SLOTS, layout.group * row[NUM_QUERIES])):
            while s >= layout.level_slot[r, level + 1]:
                level += 1
            slot = row[SLOT] + s
            count = gather_selected(layout, entries, slots, r, level, slot, q, dims, positions, distances, scratch)
            positions[:count].sort()
            at = query_address(layout, row, slots.query[slot]) * top_k
            for e in range(count):
                indices[at + e] = row[START] + positions[e]
        unit = next_unit(counter)
