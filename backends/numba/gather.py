"""The keys that one query attends to, as a list: what every pass over queries begins with.

The list is in a fixed order (curve, then code and position, then the local window) that depends on the
visible keys alone. So sums over it are the same bits whatever follows in the sequence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zeta_ops.backends.numba.compiling import before_cut, compiled
from zeta_ops.backends.numba.layout import (
    BLOCK,
    ENTRY,
    KEY,
    NUM_KEYS,
    NUM_QUERIES,
    QUERY,
    SLOT,
    Layout,
)
from zeta_ops.backends.numba.levels import COARSE, Entries
from zeta_ops.backends.numba.parallel import next_unit, run
from zeta_ops.backends.numba.ranges import SLOTS, Slots, visible_to

__all__ = ["cut_to_nearest", "distance_between", "gather_local", "gather_selected", "list_length", "query_address"]

Array = npt.NDArray[Any]

STRETCH = 64  # entries whose distances are computed together


def list_length(num_curves: int, window: int, local_window: int, longest: int) -> int:
    """Bound the keys that a query attends to; one more, because lists are written one place ahead."""
    return num_curves * min(window, longest) + min(local_window, longest) + 1


@compiled
def query_address(layout, row, query):
    """Where a query of a row stands among all queries."""
    length = row[NUM_QUERIES]
    if query < length:  # the row's first head, its only one without grouped heads: no division
        return row[QUERY] + query
    return row[QUERY] + query // length * layout.query_stride + query % length


@compiled
def distance_between(q, query_at, k, key_at, dims):
    """Squared distance of a query and a key, from the first coordinate to the last, each step rounded."""
    total = q.dtype.type(0)
    for c in range(dims):
        difference = q[query_at + c] - k[key_at + c]
        total += difference * difference
    return total


@compiled
def distances_to(q, query_at, coordinates, curve, start, stop, dims, distances):
    """Squared distances of a query to consecutive entries."""
    first = np.uint64(start)
    count = np.uint64(stop - start)
    for e in range(count):
        distances[e] = 0
    for c in range(dims):
        x = q[query_at + c]
        for e in range(count):
            difference = x - coordinates[curve, c, first + e]
            distances[e] += difference * difference


@compiled
def first_visible_block(entries, curve, entry, stop, visible):
    """Step over blocks, from `entry` on, of which a query sees nothing."""
    while entry < stop:
        if entry % COARSE == 0 and entries.coarse[curve, entry // COARSE] >= visible:
            entry += COARSE
        elif entries.fine[curve, entry // BLOCK] >= visible:
            entry = (entry // BLOCK + 1) * BLOCK
        else:
            return entry
    return stop


@compiled
def on_earlier_curve(entries, slots, slot, curve, base, first_entry, position):
    """Whether an earlier curve's range has the key too. `base` is where the query's level begins in its row."""
    for earlier in range(curve):
        rank = entries.rank[earlier, first_entry + base + position]
        if slots.ranges[slot, earlier, 0] <= rank < slots.ranges[slot, earlier, 1]:
            return True
    return False


@compiled
def append_visible(position, start, stop, visible, scratch, positions, distances, count):
    """Append the visible of some entries to a list; return its new length.

    Each is written, and stays if it is visible: there is no branch to mispredict.
    """
    first = np.uint64(start)
    end = np.uint64(count)
    for e in range(np.uint64(stop - start)):
        place = position[first + e]
        positions[end] = place
        distances[end] = scratch[e]
        end += np.uint64(place < visible)
    return np.int64(end)


@compiled
def append_selected(
    entries, slots, slot, curve, base, first_entry, start, stop, visible, scratch, positions, distances, count
):
    """Append the visible entries that no earlier curve has and that are not cut; return the new length."""
    cuts = len(slots.cut_position) > 0
    first = np.uint64(start)
    for e in range(np.uint64(stop - start)):
        place = entries.position[curve, first + e]
        if (
            place < visible
            and (not cuts or before_cut(scratch[e], place, slots.cut_distance[slot], slots.cut_position[slot]))
            and not on_earlier_curve(entries, slots, slot, curve, base, first_entry, place)
        ):
            positions[count] = place
            distances[count] = scratch[e]
            count += 1
    return count


@compiled
def gather_selected(layout, entries, slots, r, level, slot, q, dims, positions, distances, scratch):
    """List the selected keys of a slot's query: their positions and squared distances.

    Returns the length of the list.
    """
    row = layout.rows[r]
    query = slots.query[slot]
    visible = visible_to(layout, row, query)
    at = query_address(layout, row, query) * dims
    base = layout.level_entry[r, level]
    cuts = len(slots.cut_position) > 0
    count = 0
    for curve in range(len(entries.position)):
        entry = row[ENTRY] + slots.ranges[slot, curve, 0]
        stop = row[ENTRY] + slots.ranges[slot, curve, 1]
        far = stop - entry > 2 * COARSE // BLOCK + 4 * STRETCH
        while entry < stop:
            end = min(entry + STRETCH, stop)
            if far:
                entry = first_visible_block(entries, curve, entry, stop, visible)
                end = min((entry // BLOCK + 1) * BLOCK, stop)
                if entry >= stop:
                    break
            distances_to(q, at, entries.coordinates, curve, entry, end, dims, scratch)
            if curve == 0 and not cuts:
                count = append_visible(entries.position[0], entry, end, visible, scratch, positions, distances, count)
            else:
                count = append_selected(
                    entries,
                    slots,
                    slot,
                    curve,
                    base,
                    row[ENTRY],
                    entry,
                    end,
                    visible,
                    scratch,
                    positions,
                    distances,
                    count,
                )
            entry = end
    return count


@compiled
def gather_local(layout, r, query, q, k, dims, q_offset, local_window, positions, distances, count):
    """Append the local window of a query to a list of `count` keys; return the new length."""
    row = layout.rows[r]
    end = q_offset + query % row[NUM_QUERIES] + 1
    at = query_address(layout, row, query) * dims
    for position in range(max(0, end - local_window), min(end, row[NUM_KEYS])):
        positions[count] = position
        distances[count] = distance_between(q, at, k, (row[KEY] + position) * dims, dims)
        count += 1
    return count


def cut_to_nearest(
    layout: Layout, entries: Entries, slots: Slots, q: Array, dims: int, top_k: int, length: int
) -> None:
    """Find for every slot the last candidate that is kept when its union of windows is cut to `top_k`."""
    slots.cut_distance.fill(np.inf)
    slots.cut_position.fill(-1)
    no_cut = slots._replace(cut_distance=slots.cut_distance[:0], cut_position=slots.cut_position[:0])
    units = layout.slot_units(SLOTS)
    run(cut_kernel, len(units.row), units, layout, entries, no_cut, slots, q, dims, top_k, length)


@compiled
def cut_kernel(counter, units, unit_table, layout, entries, no_cut, slots, q, dims, top_k, length):
    """Keep the `top_k` nearest of each list in a heap, the first to go on top."""
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
            count = gather_selected(layout, entries, no_cut, r, level, slot, q, dims, positions, distances, scratch)
            if count > top_k:
                nearest_on_top(distances, positions, count, top_k)
                slots.cut_distance[slot] = distances[0]
                slots.cut_position[slot] = positions[0]
        unit = next_unit(counter)


@compiled
def sooner_cut(distances, positions, a, b):
    """Whether candidate a is cut sooner than b: farther, or as far and less recent."""
    return distances[a] > distances[b] or (distances[a] == distances[b] and positions[a] < positions[b])


@compiled
def sift_down(distances, positions, size, parent):
    """Restore a heap whose element `parent` may be cut later than its children."""
    while True:
        child = 2 * parent + 1
        if child >= size:
            return
        if child + 1 < size and sooner_cut(distances, positions, child + 1, child):
            child += 1
        if not sooner_cut(distances, positions, child, parent):
            return
        distances[parent], distances[child] = distances[child], distances[parent]
        positions[parent], positions[child] = positions[child], positions[parent]
        parent = child


@compiled
def nearest_on_top(distances, positions, count, top_k):
    """Reorder candidates so that the first `top_k` are the nearest, as a heap with the farthest first."""
    for e in range(count):
        if np.isnan(distances[e]):
            distances[e] = np.inf
    for parent in range(top_k // 2 - 1, -1, -1):
        sift_down(distances, positions, top_k, parent)
    for e in range(top_k, count):
        if sooner_cut(distances, positions, 0, e):
            distances[0] = distances[e]
            positions[0] = positions[e]
            sift_down(distances, positions, top_k, 0)
