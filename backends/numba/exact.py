"""Exact search: the true nearest visible keys, by boxes around the keys in code order.

The entries of the smallest level that holds a query's visible keys are the leaves, 32 to a box; every 8 boxes
have a box around them, and so on up. A query's own window gives a first bound; then only boxes that are near
enough and hold a visible key are opened. Distances to boxes are computed by the same roundings as those to
keys, which keeps them lower bounds to the last bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zeta_ops.backends.numba.compiling import compiled
from zeta_ops.backends.numba.gather import STRETCH, distances_to, nearest_on_top, query_address, sift_down
from zeta_ops.backends.numba.layout import BLOCK, ENTRY, NUM_QUERIES, SLOT, START, Layout
from zeta_ops.backends.numba.levels import Entries
from zeta_ops.backends.numba.parallel import next_unit, run
from zeta_ops.backends.numba.ranges import Slots, visible_to
from zeta_ops.options import Problem

__all__ = ["list_nearest", "search_options"]

Array = npt.NDArray[Any]

FAN_OUT = 8
MAX_DEPTH = 12  # 32 * 8**11 entries
SLOTS = 64  # per unit of work


class Boxes(NamedTuple):
    """Boxes around entries, all depths in one array, the leaves first.

    Attributes
    ----------
    lowest, highest : ndarray (dk, boxes)
        Bounds of the keys' coordinates; NaN coordinates are left out.
    least : ndarray (boxes,) int32
        Smallest position.
    first : ndarray (depths + 1,) int64
        First box of each depth.
    """

    lowest: Array
    highest: Array
    least: Array
    first: Array


def search_options(problem: Problem) -> Problem:
    """Give the problem of the one-curve search that an exact one starts from."""
    options = problem.options
    return replace(problem, options=replace(options, search="zorder", num_curves=1, window=options.top_k))


def list_nearest(problem: Problem, layout: Layout, entries: Entries, slots: Slots, q: Array, indices: Array) -> None:
    """Write the positions along N of the `top_k` nearest keys into `indices` (flat, filled with -1), ascending."""
    boxes = _build_boxes(entries, problem.key_dim)
    units = layout.slot_units(SLOTS)
    arguments = layout, entries, slots, boxes, q, problem.key_dim, problem.options.top_k, indices
    run(nearest_kernel, len(units.row), units, *arguments)


def _build_boxes(entries: Entries, dims: int) -> Boxes:
    counts = [entries.fine.shape[1]]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // FAN_OUT))
    first = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=first[1:])
    dtype = entries.coordinates.dtype
    boxes = Boxes(
        np.empty((dims, first[-1]), dtype), np.empty((dims, first[-1]), dtype), np.empty(first[-1], np.int32), first
    )
    run(leaf_boxes_kernel, -(-counts[0] // BLOCK), entries, boxes, dims)
    for depth in range(1, len(counts)):
        run(inner_boxes_kernel, -(-counts[depth] // BLOCK), boxes, depth, dims)
    return boxes


@compiled
def leaf_boxes_kernel(counter, units, entries, boxes, dims):
    """Bound every 32 entries."""
    unit = next_unit(counter)
    while unit < units:
        for box in range(unit * BLOCK, min((unit + 1) * BLOCK, entries.fine.shape[1])):
            boxes.least[box] = entries.fine[0, box]
            for c in range(dims):
                boxes.lowest[c, box] = np.inf
                boxes.highest[c, box] = -np.inf
                for e in range(box * BLOCK, min((box + 1) * BLOCK, entries.coordinates.shape[2])):
                    x = entries.coordinates[0, c, e]
                    if x < boxes.lowest[c, box]:
                        boxes.lowest[c, box] = x
                    if x > boxes.highest[c, box]:
                        boxes.highest[c, box] = x
        unit = next_unit(counter)


@compiled
def inner_boxes_kernel(counter, units, boxes, depth, dims):
    """Bound every 8 boxes of the depth below."""
    unit = next_unit(counter)
    below = boxes.first[depth - 1]
    while unit < units:
        for n in range(unit * BLOCK, min((unit + 1) * BLOCK, boxes.first[depth + 1] - boxes.first[depth])):
            box = boxes.first[depth] + n
            children = range(below + n * FAN_OUT, min(below + (n + 1) * FAN_OUT, boxes.first[depth]))
            boxes.least[box] = boxes.least[below + n * FAN_OUT]
            for child in children:
                boxes.least[box] = min(boxes.least[box], boxes.least[child])
            for c in range(dims):
                boxes.lowest[c, box] = np.inf
                boxes.highest[c, box] = -np.inf
                for child in children:
                    boxes.lowest[c, box] = min(boxes.lowest[c, box], boxes.lowest[c, child])
                    boxes.highest[c, box] = max(boxes.highest[c, box], boxes.highest[c, child])
        unit = next_unit(counter)


@compiled
def distance_to_box(q, query_at, boxes, box, dims):
    """Bound from below the squared distance of a query to any key in a box, NaN if the query has NaN."""
    total = q.dtype.type(0)
    for c in range(dims):
        x = q[query_at + c]
        below = boxes.lowest[c, box] - x
        above = x - boxes.highest[c, box]
        outside = max(below, above, q.dtype.type(0)) if x == x else x
        total += outside * outside
    return total


@compiled
def offer(distances, positions, count, top_k, distance, position):
    """Offer a candidate to the list of the nearest so far; return its new length.

    Once the list is full it is a heap with the first to be cut on top.
    """
    if np.isnan(distance):
        distance = distances.dtype.type(np.inf)
    if count < top_k:
        distances[count] = distance
        positions[count] = position
        count += 1
        if count == top_k:
            nearest_on_top(distances, positions, count, top_k)
    elif distance < distances[0] or (distance == distances[0] and position > positions[0]):
        distances[0] = distance
        positions[0] = position
        sift_down(distances, positions, top_k, 0)
    return count


@compiled
def nearest_kernel(counter, units, unit_table, layout, entries, slots, boxes, q, dims, top_k, indices):
    """For each query: its window first, then all boxes of its level that may hold something nearer."""
    distances = np.empty(top_k, q.dtype)
    positions = np.empty(top_k, np.int32)
    scratch = np.empty(STRETCH, q.dtype)
    stack = np.empty((MAX_DEPTH * FAN_OUT, 2), np.int64)
    depths = len(boxes.first) - 1
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
            query = slots.query[slot]
            visible = visible_to(layout, row, query)
            at = query_address(layout, row, query)
            first = row[ENTRY] + layout.level_entry[r, level]
            stop = row[ENTRY] + layout.level_entry[r, level + 1]
            # The window's blocks of 32 go first, whole, so that no key is offered twice.
            near_first = (row[ENTRY] + slots.ranges[slot, 0, 0]) // BLOCK
            near_stop = (row[ENTRY] + slots.ranges[slot, 0, 1] + BLOCK - 1) // BLOCK
            count = 0
            for block in range(near_first, near_stop):
                count = offer_block(
                    entries, block, visible, q, at * dims, dims, distances, positions, count, top_k, scratch
                )
            size = 1
            stack[0, 0], stack[0, 1] = depths - 1, boxes.first[depths - 1]
            while size > 0:
                size -= 1
                depth, box = stack[size, 0], stack[size, 1]
                span = BLOCK
                for _ in range(depth):
                    span *= FAN_OUT
                here = (box - boxes.first[depth]) * span
                if here >= stop or here + span <= first or boxes.least[box] >= visible:
                    continue
                if count == top_k and distance_to_box(q, at * dims, boxes, box, dims) > distances[0]:
                    continue
                if depth == 0:
                    block = here // BLOCK
                    if block < near_first or block >= near_stop:
                        count = offer_block(
                            entries, block, visible, q, at * dims, dims, distances, positions, count, top_k, scratch
                        )
                    continue
                child = boxes.first[depth - 1] + (box - boxes.first[depth]) * FAN_OUT
                for n in range(min(FAN_OUT, boxes.first[depth] - child) - 1, -1, -1):
                    stack[size, 0], stack[size, 1] = depth - 1, child + n
                    size += 1
            positions[:count].sort()
            for e in range(count):
                indices[at * top_k + e] = row[START] + positions[e]
        unit = next_unit(counter)


@compiled
def offer_block(entries, block, visible, q, query_at, dims, distances, positions, count, top_k, scratch):
    """Offer the visible entries of a block of 32."""
    if entries.fine[0, block] >= visible:
        return count
    first = block * BLOCK
    distances_to(q, query_at, entries.coordinates, 0, first, first + BLOCK, dims, scratch)
    for e in range(BLOCK):
        position = entries.position[0, first + e]
        if position < visible:
            count = offer(distances, positions, count, top_k, scratch[e], position)
    return count
