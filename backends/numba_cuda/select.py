"""Selections as lists: `indices (batch, q_heads, q_len, top_k)`, ascending, padded with -1. One thread a query.

Where several curves' windows are united, or cut to the nearest, keys are listed once and attention follows the list.
An exact search lists the nearest of all visible keys. Both offer candidates to the list one after another; a full list
gives up the last of its keys for one that comes before it: nearer, or as near and more recent.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda

from zeta_ops.backends.numba_cuda.arithmetic import comparable, squared_distance
from zeta_ops.backends.numba_cuda.compiling import Kernel, device, kernel
from zeta_ops.backends.numba_cuda.constants import (
    BATCH,
    BLOCK,
    CURVES,
    ENTRIES,
    FIRST_ENTRY,
    K_STRIDES,
    KEYS,
    KV_HEADS,
    LEVEL_ENTRY,
    LEVELS,
    MOST_CURVES,
    Q_HEADS,
    Q_LEN,
    Q_STRIDES,
    START,
    WIDTH,
)
from zeta_ops.backends.numba_cuda.given import query_with
from zeta_ops.backends.numba_cuda.layout import (
    head_and_token,
    key_offset,
    level_of,
    line_of_token,
    query_number,
    query_offset,
    row_of_slot,
    seen_by,
)

__all__ = ["exact_kernel", "select_kernel"]


@device
def comes_after(distance, token, other_distance, other_token):
    """Whether a key is farther away than another, or as far and less recent."""
    return distance > other_distance or (distance == other_distance and token < other_token)


@device
def last_of_list(indices, distances, start, width):
    """Find the place of the key that a full list gives up first."""
    last = start
    for place in range(start + 1, start + width):
        if comes_after(distances[place], indices[place], distances[last], indices[last]):
            last = place
    return last


@device
def offer(indices, distances, start, width, count, last, token, distance):
    """Offer a key to a list; return how many keys it holds, and the place of the last one once it is full."""
    if count < width:
        indices[start + count] = token
        distances[start + count] = distance
        count += 1
        if count == width:
            last = last_of_list(indices, distances, start, width)
    elif comes_after(distances[last], indices[last], distance, token):
        indices[last] = token
        distances[last] = distance
        last = last_of_list(indices, distances, start, width)
    return count, last


@device
def finish_list(indices, start, width, count):
    """Put a list in order and pad it."""
    for place in range(start + 1, start + count):
        token = indices[place]
        to = place
        while to > start and indices[to - 1] > token:
            indices[to] = indices[to - 1]
            to -= 1
        indices[to] = token
    for place in range(start + count, start + width):
        indices[place] = -1


@cache
def select_kernel(dims: int, coordinate: type) -> Kernel:
    """Make the kernel that unites the windows of all curves."""
    far = coordinate("inf")

    @kernel
    def select_kernel(table, q, slots, window_left, window_right, points, positions, fine, ranks, indices, distances):
        # Arrays of all curves follow one another; windows are by query. The order of slots is for locality alone.
        slot = cuda.grid(1)
        queries = table[BATCH] * table[Q_HEADS] * table[Q_LEN]
        if slot >= queries:
            return
        head_row, line = row_of_slot(table, slot)
        head, token = head_and_token(table, line, np.int64(slots[slot]))
        number = query_number(table, head_row, head, token)
        seen, start = seen_by(table, line, token), table[line + START]
        level = level_of(seen, table[line + KEYS], table[line + LEVELS])
        level_entry = table[line + LEVEL_ENTRY + level]
        x = cuda.local.array(dims, coordinate)
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        for c in range(dims):
            x[c] = q[at + c]
        begins = cuda.local.array(MOST_CURVES, np.int64)
        ends = cuda.local.array(MOST_CURVES, np.int64)
        of_curve = table[BATCH] * table[KV_HEADS] * table[ENTRIES]
        row = head_row * table[ENTRIES] + table[line + FIRST_ENTRY]
        width = table[WIDTH]
        first, count, last = number * width, 0, np.int64(0)
        for curve in range(table[CURVES]):
            begins[curve] = window_left[curve * queries + number]
            ends[curve] = window_right[curve * queries + number]
            base = curve * of_curve + row
            entry = begins[curve]
            while entry < ends[curve]:
                stop = min(entry - entry % BLOCK + BLOCK, ends[curve])
                if fine[(base + entry) // BLOCK] < seen:
                    for e in range(entry, stop):
                        position = np.int64(positions[base + e])
                        new = position < seen
                        for before in range(curve if new else 0):
                            rank = ranks[before * of_curve + row + level_entry + position]
                            if rank >= begins[before] and rank < ends[before]:
                                new = False
                        if new:
                            distance = comparable(squared_distance(x, points, (base + e) * dims, dims), far)
                            count, last = offer(
                                indices, distances, first, width, count, last, start + position, distance
                            )
                entry = stop
        finish_list(indices, first, width, count)

    return select_kernel


@cache
def exact_kernel(dims: int, coordinate: type) -> Kernel:
    """Make the kernel that finds the nearest of all visible keys."""
    far = coordinate("inf")

    @kernel
    def exact_kernel(table, q, k, indices, distances):
        number = cuda.grid(1)
        if number >= table[BATCH] * table[Q_HEADS] * table[Q_LEN]:
            return
        head_row, head, token = query_with(table, number)
        line = line_of_token(table, token)
        seen, start = seen_by(table, line, token), table[line + START]
        x = cuda.local.array(dims, coordinate)
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        for c in range(dims):
            x[c] = q[at + c]
        keys, stride = key_offset(table, K_STRIDES, head_row, start), table[K_STRIDES + 2]
        width = table[WIDTH]
        first, count, last = number * width, 0, np.int64(0)
        for position in range(seen):
            distance = comparable(squared_distance(x, k, keys + position * stride, dims), far)
            count, last = offer(indices, distances, first, width, count, last, start + position, distance)
        finish_list(indices, first, width, count)

    return exact_kernel
