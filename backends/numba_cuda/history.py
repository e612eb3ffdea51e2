"""The history token: each query attends once to the mean of all keys and values of its past.

Sums over chunks of 32 tokens, a scan over the chunks of each row, and walks from the scan's sum to each query: its past
grows by one token at most from a query to the next. A thread has one column, of keys or values. Backward, the same from
the end: a key gets what all queries hand on whose past holds it. Sums over chunks are float64, so that a million tokens
lose no precision.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda

from zeta_ops.backends.numba_cuda.compiling import Kernel, device, kernel
from zeta_ops.backends.numba_cuda.constants import (
    BATCH,
    CAUSAL,
    CHUNK,
    CHUNKS,
    COLUMNS,
    G_STRIDES,
    GROUP,
    INCLUDE_SELF,
    K_STRIDES,
    KEYS,
    KV_HEADS,
    LINE,
    NUMBERS,
    PULL,
    Q_HEADS,
    Q_OFFSET,
    Q_STRIDES,
    QUERIES,
    SEQUENCES,
    START,
    V_STRIDES,
    VALUE_DIM,
)
from zeta_ops.backends.numba_cuda.layout import history_count, key_offset, query_number, query_offset
from zeta_ops.backends.numba_cuda.parts import Made, clear, panels_of
from zeta_ops.backends.numba_cuda.values import load_columns, store_value, widened

__all__ = [
    "SCAN",
    "history_bwd_queries_kernel",
    "history_fwd_kernel",
    "history_scan_kernel",
    "history_sums_kernel",
]

SCAN = 128  # segments of a row's chunks that are scanned at once


@device
def past_of(table, line, i):
    """Count the keys in the mean of query i of a sequence."""
    return history_count(i, table[line + KEYS], table[CAUSAL], table[Q_OFFSET], table[INCLUDE_SELF])


@device
def chunk_row(table, head_row, line, number):
    """Row of the chunk sums for token `number` of a sequence."""
    return head_row * table[CHUNKS] + table[line + START] // CHUNK + (line - NUMBERS) // LINE + number // CHUNK


@device
def find_chunk(table, row, heads):
    """Head of a row of the chunks of all heads, -1 if there is none, line of the chunk, and its first token.

    That is counted in the sequence, and beyond all where there is no chunk.
    """
    head = row // table[CHUNKS]
    chunk = row - head * table[CHUNKS]
    lo, hi = 0, table[SEQUENCES] - 1
    while lo < hi:
        middle = (lo + hi + 1) >> 1
        if table[NUMBERS + middle * LINE + START] // CHUNK + middle <= chunk:
            lo = middle
        else:
            hi = middle - 1
    line = NUMBERS + lo * LINE
    return head if head < heads else -1, line, (chunk - table[line + START] // CHUNK - lo) * CHUNK


@cache
def history_sums_kernel(made: Made) -> Kernel:
    """Make the kernel that sums the keys and values of each chunk."""
    dims, _, _, kind, _ = made

    @kernel
    def history_sums_kernel(table, k, v_elements, history_sums):
        n = cuda.grid(1)
        columns = dims + table[VALUE_DIM]
        row = n // columns
        column = n - row * columns
        head_row, line, first = find_chunk(table, row, table[BATCH] * table[KV_HEADS])
        if head_row < 0:
            return
        stop = min(first + CHUNK, table[line + KEYS])
        if first >= stop:
            return
        total = np.float64(0)
        if column < dims:
            at, stride = key_offset(table, K_STRIDES, head_row, table[line + START]) + column, table[K_STRIDES + 2]
            for token in range(first, stop):
                total += k[at + token * stride]
        else:
            at = key_offset(table, V_STRIDES, head_row, table[line + START]) + column - dims
            stride = table[V_STRIDES + 2]
            for token in range(first, stop):
                total += widened(v_elements[at + token * stride], kind)
        history_sums[row * columns + column] = total

    return history_sums_kernel


@kernel
def history_scan_kernel(table, history_sums, columns, from_end):
    """Replace the sums of each chunk of a row by those of all chunks before it, or after it. One block a column."""
    shared = cuda.shared.array(SCAN, np.float64)
    row = cuda.blockIdx.x // columns
    column = cuda.blockIdx.x - row * columns
    head_row = row // table[SEQUENCES]
    line = NUMBERS + (row - head_row * table[SEQUENCES]) * LINE
    chunks = ((table[line + QUERIES] if from_end else table[line + KEYS]) + CHUNK - 1) // CHUNK
    each = (chunks + SCAN - 1) // SCAN
    first = chunk_row(table, head_row, line, 0) * columns + column
    step = columns
    if from_end:
        first += (chunks - 1) * columns
        step = -columns
    for segment in range(cuda.threadIdx.x, SCAN, cuda.blockDim.x):
        total = 0.0
        for chunk in range(segment * each, min((segment + 1) * each, chunks)):
            total += history_sums[first + chunk * step]
        shared[segment] = total
    cuda.syncthreads()
    for segment in range(cuda.threadIdx.x, SCAN, cuda.blockDim.x):
        running = 0.0
        for before in range(segment):
            running += shared[before]
        for chunk in range(segment * each, min((segment + 1) * each, chunks)):
            here = history_sums[first + chunk * step]
            history_sums[first + chunk * step] = running
            running += here


@device
def token_weight(points, past, q, at, width, dims, zero):
    """Weight of a history token whose keys sum to `points`, as a sum is kept; 0 where there is none."""
    if past == 0:
        return zero
    distance = np.float64(0)
    for c in range(dims):
        difference = q[at + c] - points[c] / past
        distance += difference * difference
    return 1 / (distance + np.float64(width) * np.float64(width)) + zero


@cache
def history_fwd_kernel(made: Made) -> Kernel:
    """Make the kernel of the forward pass: the first part of every query's. A thread walks along one column."""
    dims, _, sums, kind, _ = made

    @kernel
    def history_fwd_kernel(table, q, k, v_elements, gamma, history_sums, out_elements, normalizer):
        n = cuda.grid(1)
        dim = table[VALUE_DIM]
        wide = max(dim, 1)
        row = n // wide
        column = n - row * wide
        all_heads, line, first = find_chunk(table, row, table[BATCH] * table[Q_HEADS])
        if all_heads < 0:
            return
        head_row = all_heads // table[GROUP]
        head = all_heads - head_row * table[GROUP]
        start = table[line + START]
        keys, stride = key_offset(table, K_STRIDES, head_row, start), table[K_STRIDES + 2]
        values, step = key_offset(table, V_STRIDES, head_row, start) + column, table[V_STRIDES + 2]
        width = gamma[all_heads % table[Q_HEADS]]
        points = cuda.local.array(dims, np.float64)
        clear(points, dims)
        total = np.float64(0)
        count = 0
        for i in range(first, min(first + CHUNK, table[line + QUERIES])):
            past = past_of(table, line, i)
            if i == first and past > 0:
                # A whole chunk is the scan's affair, but for the last one, which has no chunk after it.
                count = (past - 1) // CHUNK * CHUNK
                sums_at = chunk_row(table, head_row, line, count) * (dims + dim)
                for c in range(dims):
                    points[c] = history_sums[sums_at + c]
                if dim > 0:
                    total = history_sums[sums_at + dims + column]
            while count < past:
                for c in range(dims):
                    points[c] += k[keys + count * stride + c]
                if dim > 0:
                    total += widened(v_elements[values + count * step], kind)
                count += 1
            at = query_offset(table, Q_STRIDES, head_row, head, start + i)
            weight = token_weight(points, past, q, at, width, dims, sums(0))
            number = query_number(table, head_row, head, start + i)
            if dim > 0:
                mean = sums(total / past) if weight != 0 else sums(0)
                store_value(out_elements, number * dim + column, mean, kind)
            if column == 0:
                normalizer[number] = weight

    return history_fwd_kernel


@device
def add_to_pull(pull, u, p, product, x, points, at, dims, zero):
    """Add a key at `points[at : at + dims]` to a pull; `zero` has the dtype of sums."""
    pull[0] += p * product
    pull[1] += u * p * product
    pull[2] += u * p
    for c in range(dims):
        difference = x[c] + zero - points[at + c]
        pull[PULL + c] += u * p * product * difference
        pull[PULL + dims + c] += u * p * difference


@cache
def history_bwd_queries_kernel(made: Made) -> Kernel:
    """Make the kernel of the first part of every query's pull. A thread has a chunk of queries, panel after panel.

    It leaves the terms (u, g . mean value, mean key) of each query for the pass over keys.
    """
    dims, _, sums, kind, _ = made
    size, terms = PULL + 2 * dims, 2 + dims

    @kernel
    def history_bwd_queries_kernel(table, q, k, v_elements, gamma, grad_out, normalizer, history_sums, history_terms,
                                   pulls):  # fmt: skip
        row = cuda.grid(1)
        all_heads, line, first = find_chunk(table, row, table[BATCH] * table[Q_HEADS])
        if all_heads < 0:
            return
        stop = min(first + CHUNK, table[line + QUERIES])
        head_row = all_heads // table[GROUP]
        head = all_heads - head_row * table[GROUP]
        start, dim = table[line + START], table[VALUE_DIM]
        keys, stride = key_offset(table, K_STRIDES, head_row, start), table[K_STRIDES + 2]
        values, step = key_offset(table, V_STRIDES, head_row, start), table[V_STRIDES + 2]
        width = gamma[all_heads % table[Q_HEADS]]
        points = cuda.local.array(dims, np.float64)
        total = cuda.local.array(COLUMNS, np.float64)
        g = cuda.local.array(COLUMNS, sums)
        pull = cuda.local.array(size, sums)
        for panel in range(panels_of(dim)):
            clear(points, dims)
            clear(total, COLUMNS)
            count = 0
            for i in range(first, stop):
                past = past_of(table, line, i)
                if i == first and past > 0:
                    count = (past - 1) // CHUNK * CHUNK
                    sums_at = chunk_row(table, head_row, line, count) * (dims + dim)
                    for c in range(dims):
                        points[c] = history_sums[sums_at + c]
                    load_columns(history_sums, sums_at + dims, panel * COLUMNS, dim, 0, total)
                while count < past:
                    for c in range(dims):
                        points[c] += k[keys + count * stride + c]
                    for c in range(COLUMNS):
                        if panel * COLUMNS + c < dim:
                            total[c] += widened(v_elements[values + count * step + panel * COLUMNS + c], kind)
                    count += 1
                number = query_number(table, head_row, head, start + i)
                gradient = query_offset(table, G_STRIDES, head_row, head, start + i)
                load_columns(grad_out, gradient, panel * COLUMNS, dim, kind, g)
                product = np.float64(0)
                for c in range(COLUMNS):
                    product += g[c] * total[c]
                at = query_offset(table, Q_STRIDES, head_row, head, start + i)
                weight = token_weight(points, past, q, at, width, dims, sums(0))
                if normalizer[number] == 0:
                    weight = sums(0)
                term = number * terms
                history_terms[term] = weight
                partial = sums(product / past) if weight != 0 else sums(0)
                history_terms[term + 1] = partial + (history_terms[term + 1] if panel > 0 else sums(0))
                for c in range(dims):
                    history_terms[term + 2 + c] = sums(points[c] / past) if past > 0 else sums(0)
        for i in range(first, stop):
            number = query_number(table, head_row, head, start + i)
            term = number * terms
            u = history_terms[term]
            clear(pull, size)
            if u != 0:
                at = query_offset(table, Q_STRIDES, head_row, head, start + i)
                p, product = u / normalizer[number], history_terms[term + 1]
                x = cuda.local.array(dims, sums)
                for c in range(dims):
                    x[c] = q[at + c]
                add_to_pull(pull, u, p, product, x, history_terms, term + 2, dims, sums(0))
            for c in range(size):
                pulls[number * size + c] = pull[c]

    return history_bwd_queries_kernel
