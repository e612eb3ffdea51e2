"""Attention to listed keys, forward and at the queries: given indices, what a search listed, or a local window.

A team has a query and lists what its indices name. They count along N; one outside of [0, k_len) names nothing, one
that stands there twice counts twice. A local window is a list as well, of consecutive keys, that nobody has to write.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda

from zeta_ops.backends.numba_cuda.arithmetic import comparable, count_bits, lowest_bit, reciprocal, squared_distance
from zeta_ops.backends.numba_cuda.compiling import Kernel, device, kernel_within
from zeta_ops.backends.numba_cuda.constants import (
    BATCH,
    COLUMNS,
    G_STRIDES,
    GROUP,
    K_LEN,
    K_STRIDES,
    KEYS,
    KV_HEADS,
    LOCAL_WINDOW,
    PULL,
    Q_HEADS,
    Q_LEN,
    Q_OFFSET,
    Q_STRIDES,
    START,
    V_STRIDES,
    VALUE_DIM,
    WIDTH,
)
from zeta_ops.backends.numba_cuda.layout import key_offset, line_of_token, query_offset
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

__all__ = ["given_bwd_queries_kernel", "given_fwd_kernel", "query_with"]


@device
def query_with(table, number):
    """Key head, head in its group, and token of a query by its number among all (batch, q_heads, q_len)."""
    all_heads = number // table[Q_LEN]
    head_row = all_heads // table[GROUP]
    return head_row, all_heads - head_row * table[GROUP], number - all_heads * table[Q_LEN]


@device
def local_window(table, token):
    """Tokens [first, stop) of the local window of a query."""
    line = line_of_token(table, token)
    start, keys = table[line + START], table[line + KEYS]
    end = table[Q_OFFSET] + token - start + 1
    first = min(max(end - table[LOCAL_WINDOW], 0), keys)
    return start + first, start + min(max(end, first), keys)


@device
def listed(table, indices, number, token, local):
    """Where a query's list begins and how long it is: the first token of a local window, or a place in `indices`."""
    if local:
        first, stop = local_window(table, token)
        return first, stop - first
    return number * table[WIDTH], table[WIDTH]


@device
def named_among(indices, start, place, count, keys, local, tests, team):
    """Which of every `team`-th place of a list from `place` on, of `tests`, name a key; the first is bit 0."""
    found = 0
    for n in range(tests):
        if place + n * team < count:
            if local:
                found |= 1 << n
            else:
                index = indices[start + place + n * team]
                found |= int((index >= 0) & (index < keys)) << n
    return np.uint32(found)


@cache
def given_fwd_kernel(made: Made, local: bool) -> Kernel:
    """Make the kernel of the forward pass."""
    dims, coordinate, sums, kind, team = made
    far = sums("inf")
    tests = tests_for(made, 1)
    room, room_of_block = list_room(made, tests)

    @kernel_within(THREADS, blocks_of(made, 8))
    def given_fwd_kernel(table, q, k, v, gamma, indices, out, normalizer, earlier, prior):
        counts = cuda.shared.array(THREADS, np.int32)
        rows = cuda.shared.array(room_of_block, np.int64)  # of values
        weights = cuda.shared.array(room_of_block, sums)
        lane, item = cuda.threadIdx.x, cuda.threadIdx.y
        thread = item * team + lane
        number = cuda.blockIdx.x * cuda.blockDim.y + item
        exists = number < table[BATCH] * table[Q_HEADS] * table[Q_LEN]
        number = number if exists else 0
        head_row, head, token = query_with(table, number)
        start, count = listed(table, indices, number, token, local)
        count = count if exists else 0
        x = cuda.local.array(dims, coordinate)
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        for c in range(dims):
            x[c] = q[at + c]
        keys, values = key_offset(table, K_STRIDES, head_row, 0), key_offset(table, V_STRIDES, head_row, 0)
        key_stride, value_stride, dim = table[K_STRIDES + 2], table[V_STRIDES + 2], table[VALUE_DIM]
        nearest = far
        for place in range(lane, count, team):
            index = start + place if local else indices[start + place]
            if index >= 0 and index < table[K_LEN]:
                distance = sums(comparable(squared_distance(x, k, keys + index * key_stride, dims), coordinate(far)))
                if distance < nearest:
                    nearest = distance
        weights[thread] = nearest
        cuda.syncthreads()
        for other in range(team):
            nearest = min(nearest, weights[np.uint32(item * team + other)])
        width = sums(gamma[head_row % table[KV_HEADS] * table[GROUP] + head])
        square = width * width
        largest = nearest + square
        inverse = sums(1) / largest if largest < far else far
        panels = panels_of(dim)
        mean = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        for first_panel in range(0, panels, team):
            panel = first_panel + lane
            has_columns = exists and panel < panels
            clear(mean, COLUMNS)
            total = sums(0)
            first = 0
            while cuda.syncthreads_or(int(first < count)):
                found = named_among(indices, start, first + lane, count, table[K_LEN], local, tests, team)
                counts[thread] = count_bits(found)
                cuda.syncthreads()
                place, length = places_in_list(counts, item * team, lane, team)
                at = np.uint32(item * room + place)
                while found != 0:
                    place = start + first + lowest_bit(found) * team + lane
                    found = np.uint32(found & (found - 1))
                    index = place if local else indices[place]
                    distance = squared_distance(x, k, keys + index * key_stride, dims)
                    rows[at] = values + index * value_stride
                    weights[at] = reciprocal((sums(comparable(distance, coordinate(far))) + square) * inverse)
                    at = np.uint32(at + 1)
                cuda.syncthreads()
                at = np.uint32(item * room)
                stop = np.uint32(at + length) if has_columns else at
                total += add_weighted(v, rows, weights, at, stop, panel * COLUMNS, dim, kind, mean, columns, sums(0))
                first += tests * team
            if not has_columns:
                continue
            if total == 0:
                clear(mean, COLUMNS)
            else:
                scale = sums(1) / total
                for c in range(COLUMNS):
                    mean[c] *= scale
                total *= inverse
            merged = write_part(out, number, panel, dim, kind, mean, total, prior, earlier, columns)
            if panel == 0:
                normalizer[number] = merged

    return given_fwd_kernel


@cache
def given_bwd_queries_kernel(made: Made, local: bool) -> Kernel:
    """Make the kernel that adds a local window's part to the pulls, or completes gradients with that of a list."""
    dims, coordinate, sums, kind, team = made
    far = coordinate("inf")
    size = PULL + 2 * dims
    tests = tests_for(made, 2 + dims)
    room, room_of_block = list_room(made, tests)
    room_of_numbers = max(room_of_block * (2 + dims), THREADS * size)

    @kernel_within(THREADS, blocks_of(made, 8))
    def given_bwd_queries_kernel(table, q, k, v, gamma, grad_out, normalizer, indices, pulls, delta, squares, grad_q,
                                 prior):  # fmt: skip
        counts = cuda.shared.array(THREADS, np.int32)
        rows = cuda.shared.array(room_of_block, np.int64)  # of values
        numbers = cuda.shared.array(room_of_numbers, sums)
        lane, item = cuda.threadIdx.x, cuda.threadIdx.y
        thread = item * team + lane
        number = cuda.blockIdx.x * cuda.blockDim.y + item
        exists = number < table[BATCH] * table[Q_HEADS] * table[Q_LEN]
        number = number if exists else 0
        head_row, head, token = query_with(table, number)
        start, count = listed(table, indices, number, token, local)
        z = normalizer[number]
        inverse = sums(1) / z if z != 0 else sums(0)
        if not exists or inverse == 0:
            count = 0
        width = sums(gamma[head_row % table[KV_HEADS] * table[GROUP] + head])
        square = width * width
        x = cuda.local.array(dims, coordinate)
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        for c in range(dims):
            x[c] = q[at + c]
        keys, values = key_offset(table, K_STRIDES, head_row, 0), key_offset(table, V_STRIDES, head_row, 0)
        key_stride, value_stride, dim = table[K_STRIDES + 2], table[V_STRIDES + 2], table[VALUE_DIM]
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
            first = 0
            while cuda.syncthreads_or(int(first < count)):
                found = named_among(indices, start, first + lane, count, table[K_LEN], local, tests, team)
                counts[thread] = count_bits(found)
                cuda.syncthreads()
                place, length = places_in_list(counts, item * team, lane, team)
                at = np.uint32(item * room + place)
                while found != 0:
                    place = start + first + lowest_bit(found) * team + lane
                    found = np.uint32(found & (found - 1))
                    index = place if local else indices[place]
                    rows[at] = values + index * value_stride
                    weigh_key(numbers, at, x, k, keys + index * key_stride, dims, inverse, square, far, sums(0), pull,
                              first_panel == 0)  # fmt: skip
                    at = np.uint32(at + 1)
                cuda.syncthreads()
                at = np.uint32(item * room)
                stop = np.uint32(at + length) if has_columns else at
                add_products(v, rows, numbers, at, stop, panel * COLUMNS, dim, dims, kind, g, columns, pull, sums(0))
                first += tests * team
        leave_for_team(pull, size, numbers, thread)
        cuda.syncthreads()
        if lane > 0 or not exists:
            return
        add_up_team(pull, size, numbers, thread, team)
        if not local:
            write_query_gradients(number, pull, pulls, prior, dims, delta, squares, grad_q)
            return
        for n in range(size):
            pulls[number * size + n] = pull[n] + (pulls[number * size + n] if prior else sums(0))

    return given_bwd_queries_kernel
