"""Attention to the windows of one curve, from ranges: forward, and backward at the queries. A team has a slot.

Neighbouring slots read the same entries, and so the same rows of values, which come from the caches. Rows are read in
words of 8 bytes where they are aligned.
"""

from __future__ import annotations

from functools import cache

from numba import cuda

from zeta_ops.backends.numba_cuda.arithmetic import COLUMNS, comparable, load_columns, reciprocal, squared_distance
from zeta_ops.backends.numba_cuda.compiling import Kernel, kernel_within
from zeta_ops.backends.numba_cuda.constants import (
    BATCH,
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
from zeta_ops.backends.numba_cuda.parts import (
    THREADS,
    Made,
    add_to_pull,
    blocks_of,
    clear,
    panels_of,
    write_part,
    write_query_gradients,
)
from zeta_ops.backends.numba_cuda.ranges import next_visible

__all__ = ["attend_bwd_queries_kernel", "attend_fwd_kernel"]


@cache
def attend_fwd_kernel(made: Made) -> Kernel:
    """Make the kernel of the forward pass."""
    dims, coordinate, sums, kind = made
    far = sums("inf")

    @kernel_within(THREADS, blocks_of(made, 6))
    def attend_fwd_kernel(table, q, v, gamma, slots, left, right, visible, nearest, points, positions, fine,
                          out, normalizer, earlier, team, prior):  # fmt: skip
        lane = cuda.threadIdx.x % team
        slot = cuda.blockIdx.x * (cuda.blockDim.x // team) + cuda.threadIdx.x // team
        if slot >= table[BATCH] * table[Q_HEADS] * table[Q_LEN]:
            return
        head_row, line = row_of_slot(table, slot)
        head, token = head_and_token(table, line, slots[slot])
        number = query_number(table, head_row, head, token)
        row = head_row * table[ENTRIES] + table[line + FIRST_ENTRY]
        begin, end, seen = row + left[slot], row + right[slot], visible[slot]
        width = sums(gamma[head_row % table[KV_HEADS] * table[GROUP] + head])
        square = width * width
        # Weights are relative to that of the nearest key: between 0 and 1, whatever the distances are.
        largest = sums(nearest[slot]) + square
        inverse = sums(1) / largest if largest < far else far
        x = cuda.local.array(dims, coordinate)
        at = query_offset(table, Q_STRIDES, head_row, head, token)
        for c in range(dims):
            x[c] = q[at + c]
        values = key_offset(table, V_STRIDES, head_row, table[line + START])
        stride, dim = table[V_STRIDES + 2], table[VALUE_DIM]
        mean = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        for panel in range(lane, panels_of(dim), team):
            clear(mean, COLUMNS)
            total = sums(0)
            entry = next_visible(positions, fine, begin, end, seen)
            while entry < end:
                load_columns(v, values + positions[entry] * stride, panel * COLUMNS, dim, kind, columns)
                distance = sums(comparable(squared_distance(x, points, entry * dims, dims), coordinate(far)))
                weight = reciprocal((distance + square) * inverse)
                total += weight
                for c in range(COLUMNS):
                    mean[c] += weight * columns[c]
                entry = next_visible(positions, fine, entry + 1, end, seen)
            if total == 0:
                clear(mean, COLUMNS)  # a value that is not finite has no weight either
            else:
                scale = sums(1) / total
                for c in range(COLUMNS):
                    mean[c] *= scale
                total *= inverse
            weights = write_part(out, number, panel, dim, kind, mean, total, prior, earlier, columns)
            if panel == 0:
                normalizer[number] = weights

    return attend_fwd_kernel


@cache
def attend_bwd_queries_kernel(made: Made) -> Kernel:
    """Make the kernel that completes the gradients of the queries, and lays out what the keys ask of each slot."""
    dims, coordinate, sums, kind = made
    far = coordinate("inf")
    size = PULL + 2 * dims
    of_block = THREADS * size

    @kernel_within(THREADS, blocks_of(made, 7))
    def attend_bwd_queries_kernel(table, q, v, gamma, grad_out, normalizer, slots, left, right, visible, points,
                                  positions, fine, pulls, delta, squares, grad_q, records, team, prior):  # fmt: skip
        shared = cuda.shared.array(of_block, sums)
        lane = cuda.threadIdx.x % team
        slot = cuda.blockIdx.x * (cuda.blockDim.x // team) + cuda.threadIdx.x // team
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
        gradient = query_offset(table, G_STRIDES, head_row, head, token)
        pull = cuda.local.array(size, sums)
        g = cuda.local.array(COLUMNS, sums)
        columns = cuda.local.array(COLUMNS, sums)
        clear(pull, size)
        for panel in range(lane, panels_of(dim), team):
            load_columns(grad_out, gradient, panel * COLUMNS, dim, kind, g)
            entry = next_visible(positions, fine, begin, end, seen)
            while entry < end:
                load_columns(v, values + positions[entry] * stride, panel * COLUMNS, dim, kind, columns)
                distance = sums(comparable(squared_distance(x, points, entry * dims, dims), far))
                u = reciprocal(distance + square)
                product = sums(0)
                for c in range(COLUMNS):
                    product += g[c] * columns[c]
                add_to_pull(pull, u, u * inverse, product, panel == 0, x, points, entry * dims, dims, sums(0))
                entry = next_visible(positions, fine, entry + 1, end, seen)
        for n in range(size):
            shared[cuda.threadIdx.x * size + n] = pull[n]
        cuda.syncthreads()
        if lane > 0 or not exists:
            return
        for other in range(1, team):
            for n in range(size):
                pull[n] += shared[(cuda.threadIdx.x + other) * size + n]
        write_query_gradients(number, pull, pulls, prior, dims, delta, squares, grad_q)
        record = slot * (PULL + dims)
        records[record] = inverse
        records[record + 1] = pull[0]
        records[record + 2] = square
        for c in range(dims):
            records[record + PULL + c] = sums(x[c])

    return attend_bwd_queries_kernel
