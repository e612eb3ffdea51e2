"""Ranges: for each query the entries [L, R) of its level in which the curve's window lies.

The window is what the definition calls so: the entries of the range at positions below t(i). Two integers a query say
all. One thread a slot: neighbours stand at neighbouring entries and walk over the same lines of memory, a block of 32
entries at a time, as bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from zeta_ops.backends.numba_cuda.arithmetic import comparable, count_bits, highest_bit, lowest_bit, squared_distance
from zeta_ops.backends.numba_cuda.compiling import Kernel, device, kernel
from zeta_ops.backends.numba_cuda.constants import (
    BATCH,
    BLOCK,
    ENTRIES,
    FIRST_ENTRY,
    GROUP,
    KEYS,
    KV_HEADS,
    LEVEL_ENTRY,
    LEVELS,
    Q_HEADS,
    Q_LEN,
    Q_STRIDES,
    WINDOW,
)
from zeta_ops.backends.numba_cuda.layout import (
    head_and_token,
    level_length,
    level_of,
    query_number,
    query_offset,
    row_of_slot,
    seen_by,
)

__all__ = ["ranges_kernel"]

LARGE = 1024  # times the weight of the nearer key beside a query: more, and weights are relative to the greatest one


@device
def seen_in_block(positions, block, seen, first, stop):
    """Which of a block's entries a query sees, of those in [first, stop): the first of the block is bit 0."""
    bits, at = np.uint32(0), block * BLOCK
    for n in range(BLOCK):
        if positions[at + n] < np.int32(seen):
            bits = np.uint32(bits | np.uint32(1 << n))
    if first > at:
        bits = np.uint32(bits & np.uint32(0xFFFFFFFF ^ ((1 << (first - at)) - 1)))
    if stop < at + BLOCK:
        bits = np.uint32(bits & np.uint32((1 << (stop - at)) - 1))
    return bits


@device
def walk_left(positions, fine, coarse, entry, first, seen, wanted):
    """Walk from `entry` down to `first` until `wanted` visible entries are found.

    Return where the last of these lies, how many they are, and the first of them: -1 if there is none.
    """
    found, last, nearest = 0, entry, -1
    block = (entry + BLOCK - 1) // BLOCK - 1
    while found < wanted and (block + 1) * BLOCK > first:
        if block % BLOCK == BLOCK - 1 and coarse[block // BLOCK] >= seen:
            block -= BLOCK
            continue
        if fine[block] < seen:
            bits = seen_in_block(positions, block, seen, first, entry)
            if bits != 0:
                if found == 0:
                    nearest = block * BLOCK + highest_bit(bits)
                found += count_bits(bits)
                while found > wanted:
                    bits = np.uint32(bits & (bits - 1))
                    found -= 1
                last = block * BLOCK + lowest_bit(bits)
        block -= 1
    return last, found, nearest


@device
def walk_right(positions, fine, coarse, entry, stop, seen, wanted):
    """Walk from `entry` up to `stop`; return the end of the last one in place of where it lies."""
    found, last, nearest = 0, entry, -1
    block = entry // BLOCK
    while found < wanted and block * BLOCK < stop:
        if block % BLOCK == 0 and coarse[block // BLOCK] >= seen:
            block += BLOCK
            continue
        if fine[block] < seen:
            bits = seen_in_block(positions, block, seen, entry, stop)
            if bits != 0:
                if found == 0:
                    nearest = block * BLOCK + lowest_bit(bits)
                found += count_bits(bits)
                while found > wanted:
                    bits = np.uint32(bits ^ (1 << highest_bit(bits)))
                    found -= 1
                last = block * BLOCK + highest_bit(bits) + 1
        block += 1
    return last, found, nearest


@cache
def ranges_kernel(dims: int, coordinate: Any) -> Kernel:
    """Make the kernel for points of `dims` coordinates of a dtype."""
    large = coordinate(LARGE)

    @kernel
    def ranges_kernel(table, q, gamma, slots, places, points, positions, fine, coarse,
                      left, right, visible, nearest, listed):  # fmt: skip
        slot = cuda.grid(1)
        if slot >= table[BATCH] * table[Q_HEADS] * table[Q_LEN]:
            return
        head_row, line = row_of_slot(table, slot)
        head, token = head_and_token(table, line, np.int64(slots[slot]))
        seen, keys = seen_by(table, line, token), table[line + KEYS]
        level = level_of(seen, keys, table[line + LEVELS])
        row = head_row * table[ENTRIES] + table[line + FIRST_ENTRY]
        first = row + table[line + LEVEL_ENTRY + level]
        stop = first + level_length(keys, level)
        middle = row + places[slot]
        window = table[WINDOW]
        half = (window + 1) >> 1
        begin, on_left, before = walk_left(positions, fine, coarse, middle, first, seen, half)
        end, on_right, behind = walk_right(positions, fine, coarse, middle, stop, seen, window - on_left)
        if on_left == half and on_left + on_right < window:
            begin, _, _ = walk_left(positions, fine, coarse, begin, first, seen, window - on_left - on_right)
        if listed:  # windows of several curves are united by query
            number = query_number(table, head_row, head, token)
            left[number] = begin - row
            right[number] = end - row
            return
        left[slot] = begin - row
        right[slot] = end - row
        visible[slot] = seen
        # Weights will be relative to that of the nearest key, or nearly so: the nearer of the keys on either side
        # serves, unless some weight could be large.
        x = cuda.local.array(dims, coordinate)
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        for c in range(dims):
            x[c] = q[at + c]
        least = coordinate(np.inf)
        if before >= 0:
            least = comparable(squared_distance(x, points, before * dims, dims), least)
        if behind >= 0:
            distance = squared_distance(x, points, behind * dims, dims)
            if distance < least:
                least = distance
        width = gamma[head_row % table[KV_HEADS] * table[GROUP] + head]
        if not least <= large * (width * width):
            for entry in range(begin, end):
                if positions[entry] < seen:
                    distance = squared_distance(x, points, entry * dims, dims)
                    if distance < least:
                        least = distance
        nearest[slot] = least

    return ranges_kernel
