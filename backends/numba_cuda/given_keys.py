"""Attention to listed keys, backward, at the keys. A team has a key and adds up what the queries that name it hand on.

Who names a key says a sort: of pairs of a key and a place in the indices, by key. The sort is stable, so that the
places of a key follow one another in order. A key may be named by every query: where whole stretches of 1024 pairs name
one key, other teams have summed them before. The queries whose local windows hold a key follow one another anyhow.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda

from zeta_ops.backends.numba_cuda.arithmetic import (
    comparable,
    load_columns,
    reciprocal,
    squared_distance,
    store_columns,
)
from zeta_ops.backends.numba_cuda.compiling import Kernel, device, kernel
from zeta_ops.backends.numba_cuda.constants import (
    BATCH,
    COLUMNS,
    G_STRIDES,
    GROUP,
    K_LEN,
    K_STRIDES,
    KV_HEADS,
    LOCAL_WINDOW,
    Q_HEADS,
    Q_LEN,
    Q_OFFSET,
    Q_STRIDES,
    QUERIES,
    START,
    STRETCH,
    V_STRIDES,
    VALUE_DIM,
    WIDTH,
)
from zeta_ops.backends.numba_cuda.given import query_with
from zeta_ops.backends.numba_cuda.layout import key_offset, line_of_token, query_number, query_offset
from zeta_ops.backends.numba_cuda.parts import THREADS, Made, add_up_team, clear, leave_for_team, panels_of

__all__ = ["given_bwd_keys_kernel", "given_bwd_stretches_kernel", "local_bwd_keys_kernel", "pairs_kernel"]


@kernel
def pairs_kernel(table, indices, pair_keys, pair_places):
    """Say which key each place in the indices names; one that names nothing comes after all keys."""
    place = cuda.grid(1)
    if place >= table[BATCH] * table[Q_HEADS] * table[Q_LEN] * table[WIDTH]:
        return
    index = np.int64(indices[place])
    head_row, _, _ = query_with(table, place // table[WIDTH])
    named = index >= 0 and index < table[K_LEN]
    nothing = table[BATCH] * table[KV_HEADS] * table[K_LEN]
    pair_keys[place] = np.uint64(head_row * table[K_LEN] + index if named else nothing)
    pair_places[place] = place


@device
def add_query(table, head_row, head, token, x, values, panel, dims, kind, infinity, zero,
              q, gamma, grad_out, normalizer, delta, columns, total, pull):  # fmt: skip
    """Add what a query hands on to the key at `x` with a panel of `values`; `zero` has the dtype of sums."""
    number = query_number(table, head_row, head, token)
    z = normalizer[number]
    if z != 0:
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        gradient = query_offset(table, G_STRIDES, head_row, head, token)
        load_columns(grad_out, gradient, panel * COLUMNS, table[VALUE_DIM], kind, columns)
        width = gamma[head_row % table[KV_HEADS] * table[GROUP] + head] + zero
        u = reciprocal(comparable(squared_distance(x, q, at, dims), infinity) + width * width)
        p = u / z
        product = -delta[number] if panel == 0 else zero
        for c in range(COLUMNS):
            product += columns[c] * values[c]
            total[c] += p * columns[c]
        slope = (u + u) * p * product
        for c in range(dims):
            pull[c] += slope * (q[at + c] + zero - x[c])


@device
def whole_stretch(sorted_pair_keys, first, pairs, key):
    """Whether the stretch that begins at pair `first` names `key` alone."""
    if first % STRETCH != 0 or first + STRETCH > pairs:
        return False
    return sorted_pair_keys[first] == key and sorted_pair_keys[first + STRETCH - 1] == key


@cache
def given_bwd_stretches_kernel(made: Made) -> Kernel:
    """Make the kernel that sums whole stretches."""
    dims, coordinate, sums, kind, team = made
    far = coordinate("inf")
    of_block = THREADS * dims

    @kernel
    def given_bwd_stretches_kernel(table, q, k, v, gamma, grad_out, normalizer, delta, sorted_pair_keys,
                                   sorted_pair_places, stretch_k, stretch_v, pairs):  # fmt: skip
        shared = cuda.shared.array(of_block, sums)
        lane, thread = cuda.threadIdx.x, cuda.threadIdx.y * team + cuda.threadIdx.x
        stretch = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        exists = (stretch + 1) * STRETCH <= pairs
        key = np.int64(sorted_pair_keys[stretch * STRETCH]) if exists else 0
        exists = exists and key < table[BATCH] * table[KV_HEADS] * table[K_LEN]
        exists = exists and whole_stretch(sorted_pair_keys, stretch * STRETCH, pairs, np.uint64(key))
        key = key if exists else 0
        head_row = key // table[K_LEN]
        token = key - head_row * table[K_LEN]
        dim = table[VALUE_DIM]
        x = cuda.local.array(dims, coordinate)
        for c in range(dims):
            x[c] = k[key_offset(table, K_STRIDES, head_row, token) + c]
        pull = cuda.local.array(dims, sums)
        values = cuda.local.array(COLUMNS, sums)
        total = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        clear(pull, dims)
        for panel in range(lane, panels_of(dim) if exists else 0, team):
            load_columns(v, key_offset(table, V_STRIDES, head_row, token), panel * COLUMNS, dim, kind, values)
            clear(total, COLUMNS)
            for pair in range(stretch * STRETCH, (stretch + 1) * STRETCH):
                _, head, query = query_with(table, sorted_pair_places[pair] // table[WIDTH])
                add_query(table, head_row, head, query, x, values, panel, dims, kind, far, sums(0),
                          q, gamma, grad_out, normalizer, delta, columns, total, pull)  # fmt: skip
            store_columns(stretch_v, stretch * dim, panel * COLUMNS, dim, 0, total)
        leave_for_team(pull, dims, shared, thread)
        cuda.syncthreads()
        if lane > 0 or not exists:
            return
        add_up_team(pull, dims, shared, thread, team)
        for c in range(dims):
            stretch_k[stretch * dims + c] = pull[c]

    return given_bwd_stretches_kernel


@device
def first_pair(sorted_pair_keys, pairs, key):
    """Find the first pair whose key is not below `key`."""
    lo, hi = 0, pairs
    while lo < hi:
        middle = (lo + hi) >> 1
        if sorted_pair_keys[middle] < key:
            lo = middle + 1
        else:
            hi = middle
    return lo


@cache
def given_bwd_keys_kernel(made: Made) -> Kernel:
    """Make the kernel that completes the gradients of keys and values."""
    dims, coordinate, sums, kind, team = made
    far = coordinate("inf")
    of_block = THREADS * dims

    @kernel
    def given_bwd_keys_kernel(table, q, k, v, gamma, grad_out, normalizer, delta, sorted_pair_keys, sorted_pair_places,
                              stretch_k, stretch_v, sum_k, sum_v, grad_k, grad_v, carried, pairs):  # fmt: skip
        shared = cuda.shared.array(of_block, sums)
        lane, thread = cuda.threadIdx.x, cuda.threadIdx.y * team + cuda.threadIdx.x
        key = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        exists = key < table[BATCH] * table[KV_HEADS] * table[K_LEN]
        key = key if exists else 0
        wanted = np.uint64(key)
        head_row = key // table[K_LEN]
        token = key - head_row * table[K_LEN]
        dim = table[VALUE_DIM]
        x = cuda.local.array(dims, coordinate)
        for c in range(dims):
            x[c] = k[key_offset(table, K_STRIDES, head_row, token) + c]
        first = first_pair(sorted_pair_keys, pairs, wanted)
        pull = cuda.local.array(dims, sums)
        values = cuda.local.array(COLUMNS, sums)
        total = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        clear(pull, dims)
        for panel in range(lane, panels_of(dim) if exists else 0, team):
            load_columns(v, key_offset(table, V_STRIDES, head_row, token), panel * COLUMNS, dim, kind, values)
            clear(total, COLUMNS)
            if carried:
                load_columns(sum_v, key * dim, panel * COLUMNS, dim, 0, total)
            pair = first
            while pair < pairs and sorted_pair_keys[pair] == wanted:
                if whole_stretch(sorted_pair_keys, pair, pairs, wanted):
                    stretch = pair // STRETCH
                    load_columns(stretch_v, stretch * dim, panel * COLUMNS, dim, 0, columns)
                    for c in range(COLUMNS):
                        total[c] += columns[c]
                    if panel == 0:
                        for c in range(dims):
                            pull[c] += stretch_k[stretch * dims + c]
                    pair += STRETCH
                else:
                    _, head, query = query_with(table, sorted_pair_places[pair] // table[WIDTH])
                    add_query(table, head_row, head, query, x, values, panel, dims, kind, far, sums(0),
                              q, gamma, grad_out, normalizer, delta, columns, total, pull)  # fmt: skip
                    pair += 1
            store_columns(grad_v, key * dim, panel * COLUMNS, dim, kind, total)
        leave_for_team(pull, dims, shared, thread)
        cuda.syncthreads()
        if lane > 0 or not exists:
            return
        add_up_team(pull, dims, shared, thread, team)
        for c in range(dims):
            grad_k[key * dims + c] = pull[c] + (sum_k[key * dims + c] if carried else sums(0))

    return given_bwd_keys_kernel


@cache
def local_bwd_keys_kernel(made: Made) -> Kernel:
    """Make the kernel that adds what local windows hand on to `sum_k` and `sum_v`."""
    dims, coordinate, sums, kind, team = made
    far = coordinate("inf")
    of_block = THREADS * dims

    @kernel
    def local_bwd_keys_kernel(table, q, k, v, gamma, grad_out, normalizer, delta, sum_k, sum_v,
                              carried):  # fmt: skip
        shared = cuda.shared.array(of_block, sums)
        lane, thread = cuda.threadIdx.x, cuda.threadIdx.y * team + cuda.threadIdx.x
        key = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        exists = key < table[BATCH] * table[KV_HEADS] * table[K_LEN]
        key = key if exists else 0
        head_row = key // table[K_LEN]
        token = key - head_row * table[K_LEN]
        line = line_of_token(table, token)
        # Queries [begin, end) of each head: at the key's position and up to local_window - 1 after it.
        i = token - table[line + START] - table[Q_OFFSET]
        begin = min(max(i, 0), table[line + QUERIES])
        end = min(max(i + table[LOCAL_WINDOW], 0), table[line + QUERIES])
        dim = table[VALUE_DIM]
        x = cuda.local.array(dims, coordinate)
        for c in range(dims):
            x[c] = k[key_offset(table, K_STRIDES, head_row, token) + c]
        pull = cuda.local.array(dims, sums)
        values = cuda.local.array(COLUMNS, sums)
        total = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        clear(pull, dims)
        for panel in range(lane, panels_of(dim) if exists else 0, team):
            load_columns(v, key_offset(table, V_STRIDES, head_row, token), panel * COLUMNS, dim, kind, values)
            clear(total, COLUMNS)
            if carried:
                load_columns(sum_v, key * dim, panel * COLUMNS, dim, 0, total)
            for head in range(table[GROUP]):
                for query in range(begin, end):
                    at = table[line + START] + query
                    add_query(table, head_row, head, at, x, values, panel, dims, kind, far, sums(0),
                              q, gamma, grad_out, normalizer, delta, columns, total, pull)  # fmt: skip
            store_columns(sum_v, key * dim, panel * COLUMNS, dim, 0, total)
        leave_for_team(pull, dims, shared, thread)
        cuda.syncthreads()
        if lane > 0 or not exists:
            return
        add_up_team(pull, dims, shared, thread, team)
        for c in range(dims):
            sum_k[key * dims + c] = pull[c] + (sum_k[key * dims + c] if carried else sums(0))

    return local_bwd_keys_kernel
