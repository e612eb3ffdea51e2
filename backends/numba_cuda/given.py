"""Attention to listed keys, forward and at the queries: given indices, what a search listed, or a local window.

A team has a query and walks over its list. Indices count along N; one outside of [0, k_len) names nothing, one that
stands there twice counts twice. A local window is a list as well, of consecutive keys, that nobody has to write.
"""

from __future__ import annotations

from functools import cache

from numba import cuda

from zeta_ops.backends.numba_cuda.arithmetic import comparable, load_columns, reciprocal, squared_distance
from zeta_ops.backends.numba_cuda.compiling import Kernel, device, kernel
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
from zeta_ops.backends.numba_cuda.parts import (
    THREADS,
    Made,
    add_to_pull,
    add_up_team,
    clear,
    leave_for_team,
    panels_of,
    write_part,
    write_query_gradients,
)

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


@cache
def given_fwd_kernel(made: Made, local: bool) -> Kernel:
    """Make the kernel of the forward pass."""
    dims, coordinate, sums, kind, team = made
    far = sums("inf")

    @kernel
    def given_fwd_kernel(table, q, k, v, gamma, indices, out, normalizer, earlier, prior):
        lane = cuda.threadIdx.x
        number = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        if number >= table[BATCH] * table[Q_HEADS] * table[Q_LEN]:
            return
        head_row, head, token = query_with(table, number)
        start, count = listed(table, indices, number, token, local)
        x = cuda.local.array(dims, coordinate)
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        for c in range(dims):
            x[c] = q[at + c]
        keys, values = key_offset(table, K_STRIDES, head_row, 0), key_offset(table, V_STRIDES, head_row, 0)
        key_stride, value_stride, dim = table[K_STRIDES + 2], table[V_STRIDES + 2], table[VALUE_DIM]
        nearest = far
        for place in range(count):
            index = start + place if local else indices[start + place]
            if index >= 0 and index < table[K_LEN]:
                distance = sums(comparable(squared_distance(x, k, keys + index * key_stride, dims), coordinate(far)))
                if distance < nearest:
                    nearest = distance
        width = sums(gamma[head_row % table[KV_HEADS] * table[GROUP] + head])
        square = width * width
        largest = nearest + square
        inverse = sums(1) / largest if largest < far else far
        mean = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        for panel in range(lane, panels_of(dim), team):
            clear(mean, COLUMNS)
            total = sums(0)
            for place in range(count):
                index = start + place if local else indices[start + place]
                if index >= 0 and index < table[K_LEN]:
                    at = keys + index * key_stride
                    distance = sums(comparable(squared_distance(x, k, at, dims), coordinate(far)))
                    weight = reciprocal((distance + square) * inverse)
                    total += weight
                    load_columns(v, values + index * value_stride, panel * COLUMNS, dim, kind, columns)
                    for c in range(COLUMNS):
                        mean[c] += weight * columns[c]
            if total == 0:
                clear(mean, COLUMNS)
            else:
                scale = sums(1) / total
                for c in range(COLUMNS):
                    mean[c] *= scale
                total *= inverse
            weights = write_part(out, number, panel, dim, kind, mean, total, prior, earlier, columns)
            if panel == 0:
                normalizer[number] = weights

    return given_fwd_kernel


@cache
def given_bwd_queries_kernel(made: Made, local: bool) -> Kernel:
    """Make the kernel that adds a local window's part to the pulls, or completes gradients with that of a list."""
    dims, coordinate, sums, kind, team = made
    far = coordinate("inf")
    size = PULL + 2 * dims
    of_block = THREADS * size

    @kernel
    def given_bwd_queries_kernel(table, q, k, v, gamma, grad_out, normalizer, indices, pulls, delta, squares, grad_q,
                                 prior):  # fmt: skip
        shared = cuda.shared.array(of_block, sums)
        lane, thread = cuda.threadIdx.x, cuda.threadIdx.y * team + cuda.threadIdx.x
        number = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
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
        gradient = query_offset(table, G_STRIDES, head_row, head, token)
        pull = cuda.local.array(size, sums)
        g = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        clear(pull, size)
        for panel in range(lane, panels_of(dim), team):
            load_columns(grad_out, gradient, panel * COLUMNS, dim, kind, g)
            for place in range(count):
                index = start + place if local else indices[start + place]
                if index >= 0 and index < table[K_LEN]:
                    at = keys + index * key_stride
                    distance = sums(comparable(squared_distance(x, k, at, dims), far))
                    u = reciprocal(distance + square)
                    load_columns(v, values + index * value_stride, panel * COLUMNS, dim, kind, columns)
                    product = sums(0)
                    for c in range(COLUMNS):
                        product += g[c] * columns[c]
                    add_to_pull(pull, u, u * inverse, product, panel == 0, x, k, at, dims, sums(0))
        leave_for_team(pull, size, shared, thread)
        cuda.syncthreads()
        if lane > 0 or not exists:
            return
        add_up_team(pull, size, shared, thread, team)
        if not local:
            write_query_gradients(number, pull, pulls, prior, dims, delta, squares, grad_q)
            return
        for n in range(size):
            pulls[number * size + n] = pull[n] + (pulls[number * size + n] if prior else sums(0))

    return given_bwd_queries_kernel
