"""The half of the backward pass that stands at the keys: gradients of keys and values from ranges.

A unit of work is a tile of 64 entries of one level. It visits the queries whose ranges meet the tile, keeps
the sums of its keys in its own memory and adds them to the gradients once. Within a level every key stands in
one tile, and levels follow one after another: no two units ever write to the same key, so there are no atomic
additions and the order of every sum is fixed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zeta_ops.backends.numba.attention import AHEAD, row_address, value_address
from zeta_ops.backends.numba.compiling import before_cut, compiled, level_length
from zeta_ops.backends.numba.gather import distances_to, on_earlier_curve, query_address
from zeta_ops.backends.numba.layout import (
    BLOCK,
    ENTRY,
    HEAD,
    KEY,
    LEVELS,
    NUM_KEYS,
    NUM_QUERIES,
    SLOT,
    SLOT_BLOCK,
)
from zeta_ops.backends.numba.memory import Gradients, Inputs
from zeta_ops.backends.numba.parallel import next_unit, run
from zeta_ops.backends.numba.ranges import visible_to
from zeta_ops.backends.numba.selection import Selection
from zeta_ops.backends.numba.sums import add_to_all, dots, prefetch, scaled_add
from zeta_ops.options import Problem

__all__ = ["grad_at_keys"]

Array = npt.NDArray[Any]

TILE = 64  # entries per unit of work; 64 value rows of 64 floats and their sums fill half of a level-1 cache
BLOCKS = 32  # slot blocks per unit of work where they are summarised


def grad_at_keys(problem: Problem, selection: Selection, inputs: Inputs, gradients: Gradients) -> None:
    """Add what the selected keys and their values receive."""
    layout = selection.layout
    most_levels = int(layout.rows[:, LEVELS].max(initial=0))
    tables = layout, selection.entries, selection.slots
    for curve in range(problem.options.num_curves):
        extents = _slot_extents(selection, curve)
        for level in range(most_levels):
            units = layout.tile_units(level, TILE)
            arguments = extents, curve, level, inputs, gradients, problem.key_dim, problem.value_dim
            run(keys_bwd_kernel, len(units.row), units, *tables, *arguments)


def _slot_extents(selection: Selection, curve: int) -> Array:
    """Smallest L, largest R and largest t of each 32 slots of a row, `(blocks, 3)` int32."""
    layout, _, slots, _ = selection
    extents = np.empty((layout.slot_blocks, 3), np.int32)
    units = layout.slot_units(BLOCKS * BLOCK)
    run(extents_kernel, len(units.row), units, layout, slots, curve, extents)
    return extents


@compiled
def extents_kernel(counter, units, unit_table, layout, slots, curve, extents):
    """Summarise blocks of 32 slots."""
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        start = unit_table.start[unit]
        for s in range(start, min(start + BLOCKS * BLOCK, layout.group * row[NUM_QUERIES])):
            slot = row[SLOT] + s
            block = row[SLOT_BLOCK] + s // BLOCK
            left, right = slots.ranges[slot, curve, 0], slots.ranges[slot, curve, 1]
            visible = visible_to(layout, row, slots.query[slot])
            if s % BLOCK == 0:
                extents[block, 0], extents[block, 1], extents[block, 2] = left, right, visible
            else:
                extents[block, 0] = min(extents[block, 0], left)
                extents[block, 1] = max(extents[block, 1], right)
                extents[block, 2] = max(extents[block, 2], visible)
        unit = next_unit(counter)


@compiled
def keys_bwd_kernel(
    counter, units, unit_table, layout, entries, slots, extents, curve, level, inputs, gradients, dims, dim
):
    """For each tile of entries: visit the queries that select some of them, and add up gradients."""
    sum_type = inputs.v.dtype.type
    tile_v = np.empty(TILE * dim, inputs.v.dtype)
    sum_v = np.empty(TILE * dim, inputs.v.dtype)
    sum_k = np.empty(TILE * dims, inputs.v.dtype)
    scratch = np.empty(TILE, inputs.q.dtype)
    members = np.empty(TILE, np.int64)
    distances = np.empty(TILE, inputs.q.dtype)
    offsets = np.empty(TILE, np.uint64)
    products = np.empty(TILE, inputs.v.dtype)
    cuts = len(slots.cut_position) > 0
    unit = next_unit(counter)
    while unit < units:
        r = unit_table.row[unit]
        row = layout.rows[r]
        base = layout.level_entry[r, level]
        first = unit_table.start[unit]
        stop = min(first + TILE, base + level_length(row[NUM_KEYS], level))
        least = entries.fine[curve, (row[ENTRY] + first) // BLOCK]
        if stop - first > BLOCK:
            least = min(least, entries.fine[curve, (row[ENTRY] + first) // BLOCK + 1])
        values = np.uint64(value_address(layout, row, inputs.v_strides))
        stride = np.uint64(inputs.v_strides[2])
        sum_v[:] = 0
        sum_k[:] = 0
        for e in range(np.uint64(stop - first)):
            position = entries.position[curve, np.uint64(row[ENTRY] + first) + e]
            value = values + np.uint64(position) * stride
            for c in range(np.uint64(dim)):
                tile_v[e * np.uint64(dim) + c] = inputs.v[value + c]
        slot_start, slot_stop = layout.level_slot[r, level], layout.level_slot[r, level + 1]
        touched = False
        for block in range(slot_start // BLOCK, (slot_stop + BLOCK - 1) // BLOCK):
            extent = extents[row[SLOT_BLOCK] + block]
            if extent[0] >= stop or extent[1] <= first or extent[2] <= least:
                continue
            for s in range(max(block * BLOCK, slot_start), min((block + 1) * BLOCK, slot_stop)):
                slot = row[SLOT] + s
                left = max(slots.ranges[slot, curve, 0], first)
                right = min(slots.ranges[slot, curve, 1], stop)
                if left >= right:
                    continue
                query = slots.query[slot]
                if s + AHEAD < slot_stop:
                    later = row_address(layout, row, slots.query[slot + AHEAD], inputs.grad_strides)
                    prefetch(inputs.grad_out, later, dim)
                visible = visible_to(layout, row, query)
                if visible <= least:
                    continue
                at = query_address(layout, row, query)
                if inputs.normalizer[at] == 0:
                    continue
                distances_to(
                    inputs.q,
                    at * dims,
                    entries.coordinates,
                    curve,
                    row[ENTRY] + left,
                    row[ENTRY] + right,
                    dims,
                    scratch,
                )
                count = 0
                for e in range(left, right):
                    position = entries.position[curve, row[ENTRY] + e]
                    if (
                        position < visible
                        and not on_earlier_curve(entries, slots, slot, curve, base, row[ENTRY], position)
                        and (
                            not cuts
                            or before_cut(
                                scratch[e - left], position, slots.cut_distance[slot], slots.cut_position[slot]
                            )
                        )
                    ):
                        members[count] = e - first
                        distances[count] = scratch[e - left]
                        offsets[count] = np.uint64((e - first) * dim)
                        count += 1
                if count == 0:
                    continue
                touched = True
                g_at = row_address(layout, row, query, inputs.grad_strides)
                dots(inputs.grad_out, g_at, tile_v, offsets, count, dim, products)
                width = sum_type(inputs.gamma[row[HEAD] + query // row[NUM_QUERIES]])
                square = width * width
                inverse = sum_type(1) / inputs.normalizer[at]
                mean = gradients.delta[at]
                for n in range(count):
                    u = sum_type(1) / (sum_type(distances[n]) + square)
                    slope = -u * u * (products[n] - mean) * inverse
                    entry = row[ENTRY] + first + members[n]
                    for c in range(dims):
                        difference = sum_type(inputs.q[at * dims + c]) - sum_type(entries.coordinates[curve, c, entry])
                        sum_k[members[n] * dims + c] -= sum_type(2) * slope * difference
                    products[n] = u * inverse
                add_to_all(sum_v, offsets, products, count, inputs.grad_out, g_at, dim)
        if touched:
            for e in range(stop - first):
                key = row[KEY] + entries.position[curve, row[ENTRY] + first + e]
                for c in range(dims):
                    gradients.k[key * dims + c] += sum_k[e * dims + c]
                scaled_add(gradients.v, key * dim, sum_v, e * dim, sum_type(1), dim)
        unit = next_unit(counter)
