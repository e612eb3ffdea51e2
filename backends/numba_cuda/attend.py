"""Attention to the windows of one curve, from ranges: forward, and backward at the queries. A team has a slot.

It lists the visible entries of its slot's range. Neighbouring slots read the same entries, and so the same rows of
values, which come from the caches.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda

from zeta_ops.backends.numba_cuda.arithmetic import comparable, count_bits, lowest_bit, reciprocal, squared_distance
from zeta_ops.backends.numba_cuda.compiling import Kernel, device, kernel_within
from zeta_ops.backends.numba_cuda.constants import (
    BATCH,
    BLOCK,
    COLUMNS,
    ENTRIES,
    FIRST_ENTRY,
    G_STRIDES,
    GROUP,
    KV_HEADS,
    PULL,
    Q_HEADS,
    Q_LEN,
    Q_STRIDES,
    START,
    V_STRIDES,
    VALUE_DIM,
)
from zeta_ops.backends.numba_cuda.layout import head_and_token, key_offset, query_number, query_offset, row_of_slot
from zeta_ops.backends.numba_cuda.lists import (
    add_products,
    add_weighted,
    list_room,
    places_in_list,
    tests_for,
    weigh_key,
)
from zeta_ops.backends.numba_cuda.parts import (
    THREADS,
    Made,
    add_up_team,
    blocks_of,
    clear,
    leave_for_team,
    panels_of,
    write_part,
    write_query_gradients,
)
from zeta_ops.backends.numba_cuda.values import load_columns

__all__ = ["attend_bwd_queries_kernel", "attend_fwd_kernel"]


@device
def skip_blocks(fine, entry, end, seen):
    """Skip what is left of the block of `entry` and of those after it where a query sees nothing."""
    while entry < end and fine[entry // BLOCK] >= seen:
        entry += BLOCK - entry % BLOCK
    return entry


@device
def visible_among(positions, entry, end, seen, tests, team):
    """Which entries of every `team`-th from `entry` on, of `tests`, a query sees; the first is bit 0."""
    found, rest = 0, np.int32(end - entry)
    for n in range(tests):
        if n * team < rest:
            found |= int(positions[entry + n * team] < seen) << n
    return np.uint32(found)


@cache
def attend_fwd_kernel(made: Made) -> Kernel:
    """Make the kernel of the forward pass."""
    dims, coordinate, sums, kind, team = made
    far = sums("inf")
    tests = tests_for(made, 1)
    room, room_of_block = list_room(made, tests)

    @kernel_within(THREADS, blocks_of(made, 10))
    def attend_fwd_kernel(table, q, v, gamma, slots, left, right, visible, nearest, points, positions, fine,
                          out, normalizer, earlier, prior):  # fmt: skip
        counts = cuda.shared.array(THREADS, np.int32)
        rows = cuda.shared.array(room_of_block, np.int64)  # of values
        weights = cuda.shared.array(room_of_block, sums)
        lane, item = cuda.threadIdx.x, cuda.threadIdx.y
        thread = item * team + lane
        slot = cuda.blockIdx.x * cuda.blockDim.y + item
        exists = slot < table[BATCH] * table[Q_HEADS] * table[Q_LEN]
        slot = slot if exists else 0
        head_row, line = row_of_slot(table, slot)
        head, token = head_and_token(table, line, slots[slot])
        number = query_number(table, head_row, head, token)
        row = head_row * table[ENTRIES] + table[line + FIRST_ENTRY]
        begin, end, seen = row + left[slot], row + right[slot] if exists else 0, visible[slot]
        width = sums(gamma[head_row % table[KV_HEADS] * table[GROUP] + head])
        square = width * width
        # Weights are relative to that of a near key, so that none is large, whatever the distances are: see `ranges`.
        largest = sums(nearest[slot]) + square
        inverse = sums(1) / largest if largest < far else far
        x = cuda.local.array(dims, coordinate)
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        for c in range(dims):
            x[c] = q[at + c]
        values = key_offset(table, V_STRIDES, head_row, table[line + START])
        stride, dim = table[V_STRIDES + 2], table[VALUE_DIM]
        panels = panels_of(dim)
        mean = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        for first_panel in range(0, panels, team):
            panel = first_panel + lane
            has_columns = exists and panel < panels
            clear(mean, COLUMNS)
            total = sums(0)
            first = skip_blocks(fine, begin, end, seen)
            while cuda.syncthreads_or(int(first < end)):
                found = visible_among(positions, first + lane, end, seen, tests, team)
                counts[thread] = count_bits(found)
                cuda.syncthreads()
                place, count = places_in_list(counts, item * team, lane, team)
                at = np.uint32(item * room + place)
                while found != 0:
                    entry = first + lowest_bit(found) * team + lane
                    found = np.uint32(found & (found - 1))
                    distance = sums(comparable(squared_distance(x, points, entry * dims, dims), coordinate(far)))
                    rows[at] = values + positions[entry] * stride
                    weights[at] = reciprocal((distance + square) * inverse)
                    at = np.uint32(at + 1)
                cuda.syncthreads()
                at = np.uint32(item * room)
                stop = np.uint32(at + count) if has_columns else at
                total += add_weighted(v, rows, weights, at, stop, panel * COLUMNS, dim, kind, mean, columns, sums(0))
                first = skip_blocks(fine, first + tests * team, end, seen)
            if not has_columns:
                continue
            if total == 0:
                clear(mean, COLUMNS)  # a value that is not finite has no weight either
            else:
                scale = sums(1) / total
                for c in range(COLUMNS):
                    mean[c] *= scale
                total *= inverse
            merged = write_part(out, number, panel, dim, kind, mean, total, prior, earlier, columns)
            if panel == 0:
                normalizer[number] = merged

    return attend_fwd_kernel


@cache
def attend_bwd_queries_kernel(made: Made) -> Kernel:
    """Make the kernel that completes the gradients of the queries, and lays out what the keys ask of each slot."""
    dims, coordinate, sums, kind, team = made
    far = coordinate("inf")
    size = PULL + 2 * dims
    tests = tests_for(made, 2 + dims)
    room, room_of_block = list_room(made, tests)
    room_of_numbers = max(room_of_block * (2 + dims), THREADS * size)

    @kernel_within(THREADS, blocks_of(made, 8))
    def attend_bwd_queries_kernel(table, q, v, gamma, grad_out, normalizer, slots, left, right, visible, points,
                                  positions, fine, pulls, delta, squares, grad_q, records, gradients, reach,
                                  prior):  # fmt: skip
        counts = cuda.shared.array(THREADS, np.int32)
        rows = cuda.shared.array(room_of_block, np.int64)  # of values
        numbers = cuda.shared.array(room_of_numbers, sums)  # what each pull is for each unit of the product
        lane, item = cuda.threadIdx.x, cuda.threadIdx.y
        thread = item * team + lane
        slot = cuda.blockIdx.x * cuda.blockDim.y + item
        exists = slot < table[BATCH] * table[Q_HEADS] * table[Q_LEN]
        slot = slot if exists else 0
        head_row, line = row_of_slot(table, slot)
        head, token = head_and_token(table, line, slots[slot])
        number = query_number(table, head_row, head, token)
        row = head_row * table[ENTRIES] + table[line + FIRST_ENTRY]
        begin, end, seen = row + left[slot], row + right[slot], visible[slot]
        width = sums(gamma[head_row % table[KV_HEADS] * table[GROUP] + head])
        square, z = width * width, normalizer[number]
        inverse = sums(1) / z if z != 0 else sums(0)  # where nothing has weight, nothing gets a gradient
        if not exists or inverse == 0:
            end = begin
        x = cuda.local.array(dims, coordinate)
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        for c in range(dims):
            x[c] = q[at + c]
        values = key_offset(table, V_STRIDES, head_row, table[line + START])
        stride, dim = table[V_STRIDES + 2], table[VALUE_DIM]
        panels = panels_of(dim)
        gradient = query_offset(table, G_STRIDES, head_row, head, token)
        pull = cuda.local.array(size, sums)
        g = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        clear(pull, size)
        for first_panel in range(0, panels, team):
            panel = first_panel + lane
            has_columns = exists and panel < panels
            if has_columns:
                load_columns(grad_out, gradient, panel * COLUMNS, dim, kind, g)
            first = skip_blocks(fine, begin, end, seen)
            while cuda.syncthreads_or(int(first < end)):
                found = visible_among(positions, first + lane, end, seen, tests, team)
                counts[thread] = count_bits(found)
                cuda.syncthreads()
                place, count = places_in_list(counts, item * team, lane, team)
                at = np.uint32(item * room + place)
                while found != 0:
                    entry = first + lowest_bit(found) * team + lane
                    found = np.uint32(found & (found - 1))
                    rows[at] = values + positions[entry] * stride
                    weigh_key(numbers, at, x, points, entry * dims, dims, inverse, square, far, sums(0), pull,
                              first_panel == 0)  # fmt: skip
                    at = np.uint32(at + 1)
                cuda.syncthreads()
                at = np.uint32(item * room)
                stop = np.uint32(at + count) if has_columns else at
                add_products(v, rows, numbers, at, stop, panel * COLUMNS, dim, dims, kind, g, columns, pull, sums(0))
                first = skip_blocks(fine, first + tests * team, end, seen)
        leave_for_team(pull, size, numbers, thread)
        cuda.syncthreads()
        if lane > 0 or not exists:
            return
        add_up_team(pull, size, numbers, thread, team)
        write_query_gradients(number, pull, pulls, prior, dims, delta, squares, grad_q)
        gradients[slot] = gradient
        reach[slot] = seen if inverse != 0 else 0
        record = slot * (PULL + dims)
        records[record] = inverse
        records[record + 1] = pull[0]
        records[record + 2] = square
        for c in range(dims):
            records[record + PULL + c] = sums(x[c])

    return attend_bwd_queries_kernel
