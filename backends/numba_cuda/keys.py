"""Attention to the windows of one curve, backward, at the keys. A team has an entry: a key on one level.

A block has neighbouring entries of one level. It finds the stretch of the row's slots that may select some of them;
each team lists those that select its entry, and keeps the sums of its key. Launched first for all levels above 0, which
leave their sums in rows of their own, then for level 0, which adds them to its own. So no two teams ever add to one
place, levels do not wait for one another, and every sum has one order.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda

from zeta_ops.backends.numba_cuda.arithmetic import count_bits, lowest_bit
from zeta_ops.backends.numba_cuda.compiling import Kernel, device, kernel, kernel_within
from zeta_ops.backends.numba_cuda.constants import (
    COLUMNS,
    ENTRIES,
    EXTENT,
    FIRST_ENTRY,
    FIRST_LOWER,
    FIRST_UPPER,
    GROUP,
    K_LEN,
    KEYS,
    LEAST_LEFT,
    LEFT,
    LEVEL_ENTRY,
    LEVELS,
    LOWER_ENTRIES,
    MAX_LEVELS,
    MOST_RIGHT,
    NO_KEY,
    PULL,
    QUERIES,
    RIGHT,
    START,
    TILE,
    UPPER_ENTRIES,
    V_STRIDES,
    VALUE_DIM,
    VISIBLE,
)
from zeta_ops.backends.numba_cuda.extents import first_tile, tiles_in_row
from zeta_ops.backends.numba_cuda.layout import (
    find_line,
    first_slot,
    key_offset,
    level_length,
)
from zeta_ops.backends.numba_cuda.lists import ALIGNED, add_rows, list_room, places_in_list, tests_for, weigh_query
from zeta_ops.backends.numba_cuda.parts import THREADS, Made, add_up_team, blocks_of, clear, leave_for_team, panels_of
from zeta_ops.backends.numba_cuda.values import load_columns, store_columns

__all__ = ["attend_bwd_keys_kernel", "clear_keys_kernel"]


@device
def first_beyond(extents, first, count, column, entry):
    """Find the first of a row's tiles whose MOST_RIGHT or LEAST_LEFT is greater than `entry`."""
    lo, hi = 0, count
    while lo < hi:
        middle = (lo + hi) >> 1
        if extents[(first + middle) * EXTENT + column] > entry:
            hi = middle
        else:
            lo = middle + 1
    return lo


@device
def skip_tiles(extents, first, slot, end, entry, position):
    """Skip tiles of a row's slots, from `slot` on, none of which selects an entry."""
    while slot & (TILE - 1) == 0 and slot < end:
        extent = (first + slot // TILE) * EXTENT
        meets = (extents[extent + LEFT] <= entry) & (extents[extent + RIGHT] > entry)
        if meets & (extents[extent + VISIBLE] > position):
            break
        slot += TILE
    return slot


@device
def row_of_level(table, head_row, line, level, position):
    """Row in which an entry above level 0 leaves what it adds to its key."""
    level_entry = table[line + LEVEL_ENTRY + level] - table[line + LEVEL_ENTRY + 1]
    return head_row * table[UPPER_ENTRIES] + table[line + FIRST_UPPER] + level_entry + position


@device
def row_of_entry(table, head_row, line, entry, position):
    """Row of an entry above level 0 by its number."""
    level = 1
    while level + 1 < table[line + LEVELS] and table[line + LEVEL_ENTRY + level + 1] <= entry:
        level += 1
    return row_of_level(table, head_row, line, level, position)


@device
def entries_of_block(table, n, upper):
    """Key head, line, number of the n-th entry of level 0 or of those above it, and the level before which they end."""
    per_head = table[UPPER_ENTRIES] if upper else table[LOWER_ENTRIES]
    head_row = n // per_head
    n -= head_row * per_head
    if upper:
        line = find_line(table, FIRST_UPPER, n)
        return head_row, line, n - table[line + FIRST_UPPER] + table[line + LEVEL_ENTRY + 1], MAX_LEVELS
    line = find_line(table, FIRST_LOWER, n)
    return head_row, line, n - table[line + FIRST_LOWER], 1


@cache
def attend_bwd_keys_kernel(made: Made) -> Kernel:
    """Make the kernel for entries of level 0, or for all above it."""
    dims, _, sums, kind, team = made
    far = sums("inf")
    tests = tests_for(made, 1 + dims)
    room, room_of_block = list_room(made, tests)
    room_of_numbers = max(room_of_block * (1 + dims), THREADS * dims)

    @kernel_within(THREADS, blocks_of(made, 8))
    def attend_bwd_keys_kernel(table, v, grad_out, gradients, left, right, reach, records, extents, points, positions,
                               level_k, level_v, sum_k, sum_v, grad_k, grad_v, upper, carried):  # fmt: skip
        span = cuda.shared.array(2, np.int64)
        counts = cuda.shared.array(THREADS, np.int32)
        rows = cuda.shared.array(room_of_block, np.int64)  # of `grad_out`
        numbers = cuda.shared.array(room_of_numbers, sums, ALIGNED)  # p, and the pull for each unit of the product
        lane, item = cuda.threadIdx.x, cuda.threadIdx.y
        thread = item * team + lane
        head_row, line, first_of_block, end_level = entries_of_block(table, cuda.blockIdx.x * cuda.blockDim.y, upper)
        end_of_entries = table[line + LEVEL_ENTRY + end_level]
        if first_of_block >= end_of_entries:
            return
        entry = first_of_block + item
        first_entry = head_row * table[ENTRIES] + table[line + FIRST_ENTRY]
        row = first_slot(table, head_row, line)
        first, tiles = first_tile(table, head_row, line), tiles_in_row(table, line)
        if lane + item == 0:
            span[0] = first_beyond(extents, first, tiles, MOST_RIGHT, first_of_block) * TILE
        if lane == team - 1 and item == THREADS // team - 1:
            beyond = first_beyond(extents, first, tiles, LEAST_LEFT, first_of_block + THREADS // team - 1) * TILE
            span[1] = min(beyond, table[line + QUERIES] * table[GROUP])
        position = positions[first_entry + entry] if entry < end_of_entries else NO_KEY
        exists = position != NO_KEY
        token = table[line + START] + position if exists else 0
        key = head_row * table[K_LEN] + token
        dim = table[VALUE_DIM]
        panels = panels_of(dim)
        x = cuda.local.array(dims, sums)
        for c in range(dims):
            x[c] = points[(first_entry + entry) * dims + c] if exists else sums(0)
        difference = cuda.local.array(dims, sums)
        pull = cuda.local.array(dims, sums)
        values = cuda.local.array(COLUMNS, sums)
        total = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        clear(pull, dims)
        cuda.syncthreads()
        for first_panel in range(0, panels, team):
            panel = first_panel + lane
            has_columns = exists and panel < panels
            clear(total, COLUMNS)
            if has_columns:
                load_columns(v, key_offset(table, V_STRIDES, head_row, token), panel * COLUMNS, dim, kind, values)
            slot, end = skip_tiles(extents, first, span[0], span[1], entry, position), span[1]
            while cuda.syncthreads_or(int(slot < end)):
                found, rest = 0, np.int32(end - slot - lane)
                for n in range(tests):
                    if n * team < rest:
                        candidate = row + slot + lane + n * team
                        selects = (left[candidate] <= entry) & (right[candidate] > entry)
                        found |= int(selects & (reach[candidate] > position)) << n
                found = np.uint32(found)
                counts[thread] = count_bits(found)
                cuda.syncthreads()
                place, count = places_in_list(counts, item * team, lane, team)
                at = np.uint32(item * room + place)
                while found != 0:
                    candidate = row + slot + lowest_bit(found) * team + lane
                    found = np.uint32(found & (found - 1))
                    record = candidate * (PULL + dims)
                    rows[at] = gradients[candidate]
                    weigh_query(numbers, at, x, records, record + PULL, dims, records[record], records[record + 1],
                                records[record + 2], far, sums(0), difference, pull, first_panel == 0)  # fmt: skip
                    at = np.uint32(at + 1)
                cuda.syncthreads()
                at = np.uint32(item * room)
                stop = np.uint32(at + count) if has_columns else at
                add_rows(grad_out, rows, numbers, at, stop, panel * COLUMNS, dim, dims, kind, values, columns, total,
                         pull, sums(0))  # fmt: skip
                slot = skip_tiles(extents, first, slot + tests * team, end, entry, position)
            if has_columns and upper:
                # The columns of a panel apart, so that a team's threads write neighbours, as they read them below.
                to = (row_of_entry(table, head_row, line, entry, position) * COLUMNS) * panels + panel
                for c in range(COLUMNS):
                    level_v[to + c * panels] = total[c]
            elif has_columns:
                level = 1
                while level < table[line + LEVELS] and position < level_length(table[line + KEYS], level):
                    at = row_of_level(table, head_row, line, level, position) * COLUMNS * panels + panel
                    for c in range(COLUMNS):
                        total[c] += level_v[at + c * panels]
                    level += 1
                if carried:
                    load_columns(sum_v, key * dim, panel * COLUMNS, dim, 0, columns)
                    for c in range(COLUMNS):
                        total[c] += columns[c]
                store_columns(grad_v, key * dim, panel * COLUMNS, dim, kind, total)
        leave_for_team(pull, dims, numbers, thread)
        cuda.syncthreads()
        if lane > 0 or not exists:
            return
        add_up_team(pull, dims, numbers, thread, team)
        if upper:
            to = row_of_entry(table, head_row, line, entry, position) * dims
            for c in range(dims):
                level_k[to + c] = pull[c]
            return
        level = 1
        while level < table[line + LEVELS] and position < level_length(table[line + KEYS], level):
            at = row_of_level(table, head_row, line, level, position) * dims
            for c in range(dims):
                pull[c] += level_k[at + c]
            level += 1
        for c in range(dims):
            grad_k[key * dims + c] = pull[c] + (sum_k[key * dims + c] if carried else sums(0))

    return attend_bwd_keys_kernel


@cache
def clear_keys_kernel(dims: int) -> Kernel:
    """Make the kernel for keys that no query can select: their gradients are 0."""

    @kernel
    def clear_keys_kernel(grad_k, grad_v, count, dim):
        n = cuda.grid(1)
        if n >= count:
            return
        for c in range(dims):
            grad_k[n * dims + c] = 0
        for c in range(dim):
            grad_v[n * dim + c] = 0

    return clear_keys_kernel
