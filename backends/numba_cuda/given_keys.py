"""Attention to listed keys, backward, at the keys. A team has a key and lists the queries that name it.

Who names a key says a sort: of pairs of a key and a place in the indices, by key. The sort is stable, so that the
places of a key follow one another in order. A key may be named by every query: where whole stretches of 1024 pairs name
one key, other teams have summed them before. The queries whose local windows hold a key follow one another anyhow.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda

from zeta_ops.backends.numba_cuda.arithmetic import count_bits, lowest_bit
from zeta_ops.backends.numba_cuda.compiling import Kernel, device, kernel, kernel_within
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
from zeta_ops.backends.numba_cuda.lists import (
    ALIGNED,
    add_rows,
    list_room,
    places_in_list,
    tests_for,
    weigh_query,
)
from zeta_ops.backends.numba_cuda.parts import (
    THREADS,
    Made,
    add_up_team,
    blocks_of,
    clear,
    leave_for_team,
    panels_of,
)
from zeta_ops.backends.numba_cuda.values import load_columns, store_columns

__all__ = ["LISTS", "LOCAL", "STRETCHES", "given_bwd_keys_kernel", "pairs_kernel"]

LISTS, STRETCHES, LOCAL = range(3)


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
def whole_stretch(sorted_pair_keys, stretch, key):
    """Whether a stretch of pairs names one key alone."""
    return sorted_pair_keys[stretch * STRETCH] == key and sorted_pair_keys[(stretch + 1) * STRETCH - 1] == key


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


@device
def asking(table, sorted_pair_places, source, n, first, skipped, resumed, each, start):
    """Head in its group, and token, of the n-th query that asks for a key."""
    if source == LOCAL:
        head = n // each
        return head, start + first + n - head * each
    pair = first + n if first + n < skipped else first + n + resumed - skipped
    _, head, token = query_with(table, sorted_pair_places[pair] // table[WIDTH])
    return head, token


@cache
def given_bwd_keys_kernel(made: Made, source: int) -> Kernel:
    """Make the kernel for keys of `LISTS` or of `LOCAL` windows, or for `STRETCHES` of pairs in place of keys.

    It writes to `to_k` and `to_v`, to which it adds `sum_k` and `sum_v` if something is carried.
    """
    dims, coordinate, sums, kind, team = made
    far = sums("inf")
    tests = tests_for(made, 1 + dims)
    room, room_of_block = list_room(made, tests)
    room_of_numbers = max(room_of_block * (1 + dims), THREADS * dims)

    @kernel_within(THREADS, blocks_of(made, 8))
    def given_bwd_keys_kernel(table, q, k, v, gamma, grad_out, normalizer, delta, sorted_pair_keys, sorted_pair_places,
                              stretch_k, stretch_v, sum_k, sum_v, to_k, to_v, carried, pairs):  # fmt: skip
        counts = cuda.shared.array(THREADS, np.int32)
        rows = cuda.shared.array(room_of_block, np.int64)  # of `grad_out`
        numbers = cuda.shared.array(room_of_numbers, sums, ALIGNED)
        lane, item = cuda.threadIdx.x, cuda.threadIdx.y
        thread = item * team + lane
        n = cuda.blockIdx.x * cuda.blockDim.y + item
        keys = table[BATCH] * table[KV_HEADS] * table[K_LEN]
        key = n
        if source == STRETCHES:
            key = keys
            if (n + 1) * STRETCH <= pairs and whole_stretch(sorted_pair_keys, n, sorted_pair_keys[n * STRETCH]):
                key = np.int64(sorted_pair_keys[n * STRETCH])
        exists = key < keys
        key = key if exists else 0
        head_row = key // table[K_LEN]
        token = key - head_row * table[K_LEN]
        # What asks for the key: pairs [first, stop) but for whole stretches [skipped, resumed) of them, or queries of
        # each head from `first` on, `each` of them.
        first, stop, skipped, resumed, each, start = 0, 0, 0, 0, 1, 0
        if source == LOCAL:
            # At the key's position and up to local_window - 1 after it.
            line = line_of_token(table, token)
            start = table[line + START]
            i = token - start - table[Q_OFFSET]
            first = min(max(i, 0), table[line + QUERIES])
            each = min(max(i + table[LOCAL_WINDOW], 0), table[line + QUERIES]) - first
            stop = first + each * table[GROUP]
        elif source == STRETCHES:
            first, stop = n * STRETCH, (n + 1) * STRETCH
        else:
            first = first_pair(sorted_pair_keys, pairs, np.uint64(key))
            stop = first_pair(sorted_pair_keys, pairs, np.uint64(key + 1))
            skipped = (first + STRETCH - 1) // STRETCH * STRETCH
            resumed = max(stop // STRETCH * STRETCH, skipped)
        count = stop - first - (resumed - skipped) if exists else 0
        dim = table[VALUE_DIM]
        panels = panels_of(dim)
        x = cuda.local.array(dims, coordinate)
        for c in range(dims):
            x[c] = k[key_offset(table, K_STRIDES, head_row, token) + c]
        difference = cuda.local.array(dims, sums)
        pull = cuda.local.array(dims, sums)
        values = cuda.local.array(COLUMNS, sums)
        total = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        clear(pull, dims)
        for first_panel in range(0, panels, team):
            panel = first_panel + lane
            has_columns = exists and panel < panels
            clear(total, COLUMNS)
            if has_columns:
                load_columns(v, key_offset(table, V_STRIDES, head_row, token), panel * COLUMNS, dim, kind, values)
                if carried:
                    load_columns(sum_v, key * dim, panel * COLUMNS, dim, 0, total)
                for stretch in range(skipped // STRETCH, resumed // STRETCH):
                    load_columns(stretch_v, stretch * dim, panel * COLUMNS, dim, 0, columns)
                    for c in range(COLUMNS):
                        total[c] += columns[c]
            asked = 0
            while cuda.syncthreads_or(int(asked < count)):
                found = 0
                for test in range(tests):
                    candidate = asked + lane + test * team
                    if candidate < count:
                        head, query = asking(
                            table, sorted_pair_places, source, candidate, first, skipped, resumed, each, start
                        )
                        found |= int(normalizer[query_number(table, head_row, head, query)] != 0) << test
                found = np.uint32(found)
                counts[thread] = count_bits(found)
                cuda.syncthreads()
                place, length = places_in_list(counts, item * team, lane, team)
                at = np.uint32(item * room + place)
                while found != 0:
                    candidate = asked + lane + lowest_bit(found) * team
                    found = np.uint32(found & (found - 1))
                    head, query = asking(
                        table, sorted_pair_places, source, candidate, first, skipped, resumed, each, start
                    )
                    number = query_number(table, head_row, head, query)
                    width = sums(gamma[head_row % table[KV_HEADS] * table[GROUP] + head])
                    rows[at] = query_offset(table, G_STRIDES, head_row, head, query)
                    weigh_query(numbers, at, x, q, query_offset(table, Q_STRIDES, head_row, head, query), dims,
                                sums(1) / normalizer[number], delta[number], width * width, far, sums(0), difference,
                                pull, first_panel == 0)  # fmt: skip
                    at = np.uint32(at + 1)
                cuda.syncthreads()
                at = np.uint32(item * room)
                end = np.uint32(at + length) if has_columns else at
                add_rows(grad_out, rows, numbers, at, end, panel * COLUMNS, dim, dims, kind, values, columns, total,
                         pull, sums(0))  # fmt: skip
                asked += tests * team
            if has_columns:
                store_columns(to_v, n * dim, panel * COLUMNS, dim, kind, total)
        leave_for_team(pull, dims, numbers, thread)
        cuda.syncthreads()
        if lane > 0 or not exists:
            return
        add_up_team(pull, dims, numbers, thread, team)
        for c in range(dims):
            for stretch in range(skipped // STRETCH, resumed // STRETCH):
                pull[c] += stretch_k[stretch * dims + c]
            to_k[n * dims + c] = pull[c] + (sum_k[key * dims + c] if carried else sums(0))

    return given_bwd_keys_kernel
