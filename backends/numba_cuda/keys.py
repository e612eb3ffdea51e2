"""Attention to the windows of one curve, backward, at the keys. A team has an entry: a key on one level.

It looks for the queries that select its entry in tiles of slots and keeps the sums of its key. Launched first for all
levels above 0, which leave their sums in rows of their own, then for level 0, which adds them to its own. So no two
teams ever add to one place, levels do not wait for one another, and every sum has one order.
"""

from __future__ import annotations

from functools import cache

from numba import cuda

from zeta_ops.backends.numba_cuda.arithmetic import COLUMNS, comparable, load_columns, reciprocal, store_columns
from zeta_ops.backends.numba_cuda.compiling import Kernel, device, kernel, kernel_within
from zeta_ops.backends.numba_cuda.constants import (
    BATCH,
    ENTRIES,
    EXTENT,
    FIRST_ENTRY,
    FIRST_UPPER,
    G_STRIDES,
    GROUP,
    K_LEN,
    KEYS,
    KV_HEADS,
    LEAST_LEFT,
    LEFT,
    LEVEL_ENTRY,
    LEVELS,
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
    query_offset,
)
from zeta_ops.backends.numba_cuda.parts import THREADS, Made, blocks_of, clear, panels_of

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
def next_selecting(left, right, visible, extents, row, first, slot, end, entry, position):
    """Find the first of a row's slots from `slot` on that selects an entry; it is not below `end` if there is none."""
    while slot < end and (left[row + slot] > entry or right[row + slot] <= entry or visible[row + slot] <= position):
        slot += 1
        while slot & (TILE - 1) == 0 and slot < end and misses(extents, first + slot // TILE, entry, position):
            slot += TILE
    return slot


@device
def misses(extents, tile, entry, position):
    """Whether no slot of a tile selects an entry."""
    extent = tile * EXTENT
    if extents[extent + LEFT] > entry or extents[extent + RIGHT] <= entry:
        return True
    return extents[extent + VISIBLE] <= position


@device
def row_of_level(table, head_row, line, level, position):
    """Row in which an entry above level 0 leaves what it adds to its key."""
    level_entry = table[line + LEVEL_ENTRY + level] - table[line + LEVEL_ENTRY + 1]
    return head_row * table[UPPER_ENTRIES] + table[line + FIRST_UPPER] + level_entry + position


@cache
def attend_bwd_keys_kernel(made: Made) -> Kernel:
    """Make the kernel for entries of level 0, or for all above it."""
    dims, coordinate, sums, kind = made
    far = coordinate("inf")
    of_block = THREADS * dims

    @kernel_within(THREADS, blocks_of(made, 4))
    def attend_bwd_keys_kernel(table, v, grad_out, slots, left, right, visible, records, extents, points, positions,
                               level_k, level_v, sum_k, sum_v, grad_k, grad_v, team, upper, carried):  # fmt: skip
        shared = cuda.shared.array(of_block, sums)
        lane = cuda.threadIdx.x % team
        n = cuda.blockIdx.x * (cuda.blockDim.x // team) + cuda.threadIdx.x // team
        per_head = table[UPPER_ENTRIES] if upper else table[K_LEN]
        column = FIRST_UPPER if upper else START  # level 0 has as many entries as there are keys
        exists = n < table[BATCH] * table[KV_HEADS] * per_head
        head_row = n // per_head if exists else 0
        line = find_line(table, column, n - head_row * per_head)
        entry = n - head_row * per_head - table[line + column] + (table[line + LEVEL_ENTRY + 1] if upper else 0)
        exists = exists and entry < table[line + LEVEL_ENTRY + MAX_LEVELS]
        first_entry = head_row * table[ENTRIES] + table[line + FIRST_ENTRY]
        level = 0
        while level + 1 < table[line + LEVELS] and table[line + LEVEL_ENTRY + level + 1] <= entry:
            level += 1
        position = positions[first_entry + entry] if exists else NO_KEY
        exists = exists and position != NO_KEY
        position = position if exists else 0
        token = table[line + START] + position
        key = head_row * table[K_LEN] + token
        row = first_slot(table, head_row, line)
        count = table[line + QUERIES] * table[GROUP]
        first, tiles = first_tile(table, head_row, line), tiles_in_row(table, line)
        begin, end = 0, 0  # slots that may select the entry
        if exists:
            begin = first_beyond(extents, first, tiles, MOST_RIGHT, entry) * TILE
            end = min(first_beyond(extents, first, tiles, LEAST_LEFT, entry) * TILE, count)
        levels = 1  # that level 0 adds up
        if not upper:
            while levels < table[line + LEVELS] and position < level_length(table[line + KEYS], levels):
                levels += 1
        dim = table[VALUE_DIM]
        x = cuda.local.array(dims, coordinate)
        for c in range(dims):
            x[c] = points[(first_entry + entry) * dims + c] if exists else coordinate(0)
        pull = cuda.local.array(dims, sums)
        clear(pull, dims)
        values = cuda.local.array(COLUMNS, sums)
        total = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        # Where rows of `grad_out` are: looked up once, not for every query.
        gradients = query_offset(table, G_STRIDES, head_row, 0, table[line + START])
        head_stride, token_stride, queries = table[G_STRIDES + 1], table[G_STRIDES + 2], table[line + QUERIES]
        panels = panels_of(dim) if exists else 0
        for panel in range(lane, panels, team):
            load_columns(v, key_offset(table, V_STRIDES, head_row, token), panel * COLUMNS, dim, kind, values)
            clear(total, COLUMNS)
            if not upper:
                if carried:
                    load_columns(sum_v, key * dim, panel * COLUMNS, dim, 0, total)
                for above in range(1, levels):
                    from_level = row_of_level(table, head_row, line, above, position) * dim
                    load_columns(level_v, from_level, panel * COLUMNS, dim, 0, columns)
                    for c in range(COLUMNS):
                        total[c] += columns[c]
            slot = next_selecting(left, right, visible, extents, row, first, begin, end, entry, position)
            while slot < end:
                record = (row + slot) * (PULL + dims)
                inverse = records[record]
                if inverse != 0:
                    number = slots[row + slot]
                    head = 0 if number < queries else number // queries
                    gradient = gradients + head * head_stride + (number - head * queries) * token_stride
                    load_columns(grad_out, gradient, panel * COLUMNS, dim, kind, columns)
                    distance = sums(0)
                    for c in range(dims):
                        difference = records[record + PULL + c] - sums(x[c])
                        distance += difference * difference
                    u = reciprocal(sums(comparable(distance, sums(far))) + records[record + 2])
                    p = u * inverse
                    product = sums(0) if panel > 0 else -records[record + 1]
                    for c in range(COLUMNS):
                        product += columns[c] * values[c]
                        total[c] += p * columns[c]
                    slope = (u + u) * p * product
                    for c in range(dims):
                        pull[c] += slope * (records[record + PULL + c] - sums(x[c]))
                slot = next_selecting(left, right, visible, extents, row, first, slot + 1, end, entry, position)
            if upper:
                to_level = row_of_level(table, head_row, line, level, position) * dim
                store_columns(level_v, to_level, panel * COLUMNS, dim, 0, total)
            else:
                store_columns(grad_v, key * dim, panel * COLUMNS, dim, kind, total)
        for c in range(dims):
            shared[cuda.threadIdx.x * dims + c] = pull[c]
        cuda.syncthreads()
        if lane > 0 or not exists:
            return
        for c in range(dims):
            for other in range(1, team):
                pull[c] += shared[(cuda.threadIdx.x + other) * dims + c]
            if upper:
                level_k[row_of_level(table, head_row, line, level, position) * dims + c] = pull[c]
                continue
            if carried:
                pull[c] += sum_k[key * dims + c]
            for above in range(1, levels):
                pull[c] += level_k[row_of_level(table, head_row, line, above, position) * dims + c]
            grad_k[key * dims + c] = pull[c]

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
