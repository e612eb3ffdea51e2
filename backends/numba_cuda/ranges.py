"""Ranges: for each query the entries [L, R) of its level in which the curve's window lies.

The window is what the definition calls so: the entries of the range at positions below t(i). Two integers a query say
all. One thread a slot: neighbours insert at neighbouring entries and walk over the same lines of memory.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from zeta_ops.backends.numba_cuda.arithmetic import squared_distance
from zeta_ops.backends.numba_cuda.compiling import Kernel, device, kernel
from zeta_ops.backends.numba_cuda.constants import (
    BATCH,
    BITS,
    BLOCK,
    COARSE,
    CURVES,
    ENTRIES,
    FIRST_ENTRY,
    KEYS,
    LEVEL_ENTRY,
    LEVELS,
    LINEAR,
    Q_HEADS,
    Q_LEN,
    Q_STRIDES,
    SEQUENCES,
    WINDOW,
)
from zeta_ops.backends.numba_cuda.encode import encoded, with_row
from zeta_ops.backends.numba_cuda.layout import (
    head_and_token,
    level_length,
    level_of,
    query_number,
    query_offset,
    row_of_slot,
    seen_by,
    sequence_of,
)

__all__ = ["next_visible", "ranges_kernel"]


@device
def insertion_point(codes, first, stop, code):
    """Find the first entry of [first, stop) whose code is greater: equal codes count as before the query."""
    while first < stop:
        middle = (first + stop) >> 1
        if codes[middle] <= code:
            first = middle + 1
        else:
            stop = middle
    return first


@device
def walk_left(positions, fine, coarse, entry, first, visible, wanted):
    """Walk from `entry` down to `first`; return where the last of `wanted` visible entries lies, and how many."""
    found, last = 0, entry
    while entry > first and found < wanted:
        if entry % BLOCK == 0 and fine[entry // BLOCK - 1] >= visible:
            whole = entry % COARSE == 0 and coarse[entry // COARSE - 1] >= visible
            entry = max(entry - (COARSE if whole else BLOCK), first)
            continue
        entry -= 1
        if positions[entry] < visible:
            found += 1
            last = entry
    return last, found


@device
def walk_right(positions, fine, coarse, entry, stop, visible, wanted):
    """Walk from `entry` up to `stop`; return the end of the last of `wanted` visible entries, and how many."""
    found, last = 0, entry
    while entry < stop and found < wanted:
        if entry % BLOCK == 0 and fine[entry // BLOCK] >= visible:
            whole = entry % COARSE == 0 and coarse[entry // COARSE] >= visible
            entry = min(entry + (COARSE if whole else BLOCK), stop)
            continue
        if positions[entry] < visible:
            found += 1
            last = entry + 1
        entry += 1
    return last, found


@device
def next_visible(positions, fine, entry, end, visible):
    """Find the first visible entry from `entry` on; it is not below `end` if there is none.

    Threads of a warp look for theirs together and then work on them together: a loop over entries in which each of them
    skips what it does not see would take as long as if all saw all.
    """
    while entry < end and positions[entry] >= visible:
        entry += 1
        while entry & (BLOCK - 1) == 0 and entry < end and fine[entry // BLOCK] >= visible:
            entry += BLOCK
    return entry


@cache
def ranges_kernel(dims: int, coordinate: Any) -> Kernel:
    """Make the kernel for points of `dims` coordinates of a dtype."""

    @kernel
    def ranges_kernel(table, q, slots, points, positions, entry_codes, fine, coarse,
                      left, right, visible, nearest, curve, lo, scale, listed):  # fmt: skip
        slot = cuda.grid(1)
        if slot >= table[BATCH] * table[Q_HEADS] * table[Q_LEN]:
            return
        head_row, line = row_of_slot(table, slot)
        head, token = head_and_token(table, line, np.int64(slots[slot]))
        seen, keys = seen_by(table, line, token), table[line + KEYS]
        cells = cuda.local.array(dims, np.int64)
        x = cuda.local.array(dims, coordinate)
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        for c in range(dims):
            x[c] = q[at + c]
        code = encoded(x, 0, dims, table[BITS], table[LINEAR], table[CURVES], curve, lo, scale, cells)
        code = with_row(table, code, head_row * table[SEQUENCES] + sequence_of(line))
        level = level_of(seen, keys, table[line + LEVELS])
        row = head_row * table[ENTRIES] + table[line + FIRST_ENTRY]
        first = row + table[line + LEVEL_ENTRY + level]
        stop = first + level_length(keys, level)
        middle = insertion_point(entry_codes, first, stop, code)
        window = table[WINDOW]
        half = (window + 1) >> 1
        begin, on_left = walk_left(positions, fine, coarse, middle, first, seen, half)
        end, on_right = walk_right(positions, fine, coarse, middle, stop, seen, window - on_left)
        if on_left == half and on_left + on_right < window:
            begin, _ = walk_left(positions, fine, coarse, begin, first, seen, window - on_left - on_right)
        if listed:  # windows of several curves are united by query
            number = query_number(table, head_row, head, token)
            left[number] = begin - row
            right[number] = end - row
            return
        left[slot] = begin - row
        right[slot] = end - row
        visible[slot] = seen
        # Weights will be relative to that of the nearest key.
        least = coordinate(np.inf)
        for entry in range(begin, end):
            if positions[entry] < seen:
                distance = squared_distance(x, points, entry * dims, dims)
                if distance < least:
                    least = distance
        nearest[slot] = least

    return ranges_kernel
