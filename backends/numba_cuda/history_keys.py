"""The history token, backward, at the keys: what the queries hand on to all keys of their means.

Sums over chunks of queries of all heads that read a key head, a scan from the end, and walks from the last key of a
chunk to the first.
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
    G_STRIDES,
    GROUP,
    INCLUDE_SELF,
    K_LEN,
    KEYS,
    KV_HEADS,
    Q_HEADS,
    Q_LEN,
    Q_OFFSET,
    Q_STRIDES,
    QUERIES,
    START,
    VALUE_DIM,
)
from zeta_ops.backends.numba_cuda.given import query_with
from zeta_ops.backends.numba_cuda.history import chunk_row, find_chunk, past_of
from zeta_ops.backends.numba_cuda.layout import line_of_token, query_number, query_offset
from zeta_ops.backends.numba_cuda.parts import Made
from zeta_ops.backends.numba_cuda.values import widened

__all__ = ["history_bwd_keys_kernel", "history_handed_sums_kernel", "history_terms_kernel"]


@device
def first_query_of(table, line, j):
    """Find the first query of a sequence whose mean holds position j."""
    if not table[CAUSAL]:
        return 0
    return min(max(j + 1 - table[INCLUDE_SELF] - table[Q_OFFSET], 0), table[line + QUERIES])


@cache
def history_terms_kernel(made: Made) -> Kernel:
    """Make the kernel that turns terms into what each key of the mean gets, when D is known.

    That is a factor of the query's row of `grad_out` in place of u, and a pull in place of the mean key.
    """
    dims, _, sums, _, _ = made
    terms = 2 + dims

    @kernel
    def history_terms_kernel(table, q, normalizer, delta, history_terms):
        number = cuda.grid(1)
        if number >= table[BATCH] * table[Q_HEADS] * table[Q_LEN]:
            return
        head_row, head, token = query_with(table, number)
        line = line_of_token(table, token)
        past = past_of(table, line, token - table[line + START])
        term = number * terms
        u = history_terms[term]
        p = u / normalizer[number] if u != 0 else sums(0)
        slope = 2 * u * p * (history_terms[term + 1] - delta[number]) / past if p != 0 else sums(0)
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        history_terms[term] = p / past if p != 0 else sums(0)
        for c in range(dims):
            mean = history_terms[term + 2 + c]
            history_terms[term + 2 + c] = slope * (q[at + c] - mean) if p != 0 else sums(0)

    return history_terms_kernel


@device
def handed_on(table, head_row, line, i, column, dims, kind, grad_out, history_terms):
    """Add up what query i of all heads hands on to a column: of a key, then of a value."""
    total = np.float64(0)
    token = table[line + START] + i
    for head in range(table[GROUP]):
        term = query_number(table, head_row, head, token) * (2 + dims)
        if column < dims:
            total += history_terms[term + 2 + column]
        elif history_terms[term] != 0:
            gradient = query_offset(table, G_STRIDES, head_row, head, token) + column - dims
            total += history_terms[term] * widened(grad_out[gradient], kind)
    return total


@cache
def history_handed_sums_kernel(made: Made) -> Kernel:
    """Make the kernel that sums what the queries of each chunk hand on."""
    dims, _, _, kind, _ = made

    @kernel
    def history_handed_sums_kernel(table, grad_out_elements, history_terms, history_sums):
        n = cuda.grid(1)
        columns = dims + table[VALUE_DIM]
        row = n // columns
        column = n - row * columns
        head_row, line, first = find_chunk(table, row, table[BATCH] * table[KV_HEADS])
        if head_row < 0:
            return
        stop = min(first + CHUNK, table[line + QUERIES])
        if first >= stop:
            return
        total = np.float64(0)
        for i in range(stop - 1, first - 1, -1):
            total += handed_on(table, head_row, line, i, column, dims, kind, grad_out_elements, history_terms)
        history_sums[row * columns + column] = total

    return history_handed_sums_kernel


@cache
def history_bwd_keys_kernel(made: Made) -> Kernel:
    """Make the kernel of the first part of the gradients of all keys and values."""
    dims, _, _, kind, _ = made

    @kernel
    def history_bwd_keys_kernel(table, grad_out_elements, history_terms, history_sums, sum_k, sum_v):
        n = cuda.grid(1)
        dim = table[VALUE_DIM]
        columns = dims + dim
        row = n // columns
        column = n - row * columns
        head_row, line, first = find_chunk(table, row, table[BATCH] * table[KV_HEADS])
        if head_row < 0:
            return
        stop, queries = min(first + CHUNK, table[line + KEYS]), table[line + QUERIES]
        if first >= stop:
            return
        total = np.float64(0)
        reached = first_query_of(table, line, stop - 1)
        if reached < queries:
            total = history_sums[chunk_row(table, head_row, line, reached) * columns + column]
            for i in range(min(reached // CHUNK * CHUNK + CHUNK, queries) - 1, reached - 1, -1):
                total += handed_on(table, head_row, line, i, column, dims, kind, grad_out_elements, history_terms)
        for position in range(stop - 1, first - 1, -1):
            begin = first_query_of(table, line, position)
            for i in range(reached - 1, begin - 1, -1):
                total += handed_on(table, head_row, line, i, column, dims, kind, grad_out_elements, history_terms)
            reached = begin
            key = head_row * table[K_LEN] + table[line + START] + position
            if column < dims:
                sum_k[key * dims + column] = total
            else:
                sum_v[key * dim + column - dims] = total

    return history_bwd_keys_kernel
