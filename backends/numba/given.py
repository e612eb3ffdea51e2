"""Attention over given indices: each query's list is a row of the indices.

The backward pass stands at the keys by the transposed list: for each key the places in the indices that name
it, in order. So a key's sums have one fixed order, and no two threads write to the same key.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zeta_ops.backends.numba.attention import History, add_attended, differentiate
from zeta_ops.backends.numba.compiling import compiled
from zeta_ops.backends.numba.gather import distance_between
from zeta_ops.backends.numba.memory import Gradients, Inputs, Strided
from zeta_ops.backends.numba.parallel import next_unit, run
from zeta_ops.backends.numba.sums import dot, scaled_add
from zeta_ops.options import Shapes

__all__ = ["attend_to_given", "grad_of_given"]

Array = npt.NDArray[Any]

QUERIES = 128  # per unit of work
KEYS = 128

# Sizes of a problem, in one tuple for the kernels.
BATCH, Q_HEADS, KV_HEADS, Q_LEN, K_LEN, DIMS, DIM, WIDTH = range(8)


def _sizes(shapes: Shapes, indices: Array) -> tuple[int, ...]:
    width = indices.shape[-1]
    lengths = shapes.q_len, shapes.k_len, shapes.key_dim, shapes.value_dim, width
    return shapes.batch, shapes.q_heads, shapes.kv_heads, *lengths


def attend_to_given(
    shapes: Shapes,
    q: Array,
    k: Array,
    v: Strided,
    indices: Array,
    gamma: Array,
    token: bool,
    out: Array,
    normalizer: Array,
) -> None:
    """Write `out` and `normalizer` (flat, sum dtype) for `indices (batch, q_heads, q_len, K)`.

    With a history token they hold its part, `u vbar` and `u`, on entry.
    """
    flat = np.ascontiguousarray(indices).reshape(-1)
    sizes = _sizes(shapes, indices)
    units = -(-len(normalizer) // QUERIES)
    run(given_fwd_kernel, units, sizes, q, k, v.flat, v.strides, flat, gamma, token, out, normalizer)


@compiled
def locate(sizes, query):
    """Split a query's number into batch item, head, key head and place."""
    head = query // sizes[Q_LEN]
    batch = head // sizes[Q_HEADS]
    head = head % sizes[Q_HEADS]
    return batch, head, head // (sizes[Q_HEADS] // sizes[KV_HEADS]), query % sizes[Q_LEN]


@compiled
def grad_address(sizes, query, strides):
    """Where a query's row of `grad_out` lies in strided memory."""
    batch, head, _, place = locate(sizes, query)
    return batch * strides[0] + head * strides[1] + place * strides[2]


@compiled
def gather_given(sizes, query, q, k, strides, indices, distances, offsets, keys_at):
    """List the given keys of a query; return its head and the length of the list."""
    batch, head, kv_head, _ = locate(sizes, query)
    dims, width = sizes[DIMS], sizes[WIDTH]
    keys = (batch * sizes[KV_HEADS] + kv_head) * sizes[K_LEN]
    values = batch * strides[0] + kv_head * strides[1]
    count = 0
    for place in range(query * width, (query + 1) * width):
        position = indices[place]
        if position >= 0:
            key_at = (keys + position) * dims
            keys_at[count] = np.uint64(key_at)
            offsets[count] = np.uint64(values + position * strides[2])
            distances[count] = distance_between(q, query * dims, k, key_at, dims)
            count += 1
    return head, count


@compiled
def given_fwd_kernel(counter, units, sizes, q, k, v, strides, indices, gamma, token, out, normalizer):
    """For each query: list the given keys, weigh them, add up their values."""
    distances = np.empty(sizes[WIDTH], q.dtype)
    offsets = np.empty(sizes[WIDTH], np.uint64)
    keys_at = np.empty(sizes[WIDTH], np.uint64)
    weights = np.empty(sizes[WIDTH], out.dtype)
    sums = np.empty(sizes[DIM], out.dtype)
    unit = next_unit(counter)
    while unit < units:
        for query in range(unit * QUERIES, min((unit + 1) * QUERIES, len(normalizer))):
            head, count = gather_given(sizes, query, q, k, strides, indices, distances, offsets, keys_at)
            add_attended(
                query, gamma[head], distances, offsets, count, v, sizes[DIM], weights, sums, token, out, normalizer
            )
        unit = next_unit(counter)


def grad_of_given(shapes: Shapes, inputs: Inputs, indices: Array, history: History, gradients: Gradients) -> None:
    """Write what stands at the queries and add what stands at the keys, for `indices (batch, q_heads, q_len, K)`.

    The `product` of `history` is replaced by the token's `e`.
    """
    flat = np.ascontiguousarray(indices).reshape(-1)
    sizes = _sizes(shapes, indices)
    run(given_bwd_query_kernel, -(-len(inputs.normalizer) // QUERIES), sizes, flat, inputs, history, gradients)
    heads = shapes.batch * shapes.kv_heads
    starts = np.empty((heads, shapes.k_len + 1), np.int64)
    places = np.empty(len(flat), np.int64)
    run(transpose_kernel, heads, sizes, flat, starts, places)
    run(given_bwd_key_kernel, -(-heads * shapes.k_len // KEYS), sizes, inputs, starts, places, gradients)


@compiled
def given_bwd_query_kernel(counter, units, sizes, indices, inputs, history, gradients):
    """For each query: list the given keys again, and differentiate."""
    distances = np.empty(sizes[WIDTH], inputs.q.dtype)
    offsets = np.empty(sizes[WIDTH], np.uint64)
    keys_at = np.empty(sizes[WIDTH], np.uint64)
    weights = np.empty(sizes[WIDTH], inputs.v.dtype)
    products = np.empty(sizes[WIDTH], inputs.v.dtype)
    unit = next_unit(counter)
    while unit < units:
        for query in range(unit * QUERIES, min((unit + 1) * QUERIES, len(inputs.normalizer))):
            head, count = gather_given(
                sizes, query, inputs.q, inputs.k, inputs.v_strides, indices, distances, offsets, keys_at
            )
            g_at = grad_address(sizes, query, inputs.grad_strides)
            differentiate(
                query, head, g_at, count, distances, keys_at, offsets, inputs, history, gradients, sizes[DIMS],
                sizes[DIM], weights, products,
            )  # fmt: skip
        unit = next_unit(counter)


@compiled
def transpose_kernel(counter, units, sizes, indices, starts, places):
    """List for each key of one head the places that name it: `places[starts[head, j] : starts[head, j + 1]]`."""
    span = sizes[Q_HEADS] // sizes[KV_HEADS] * sizes[Q_LEN] * sizes[WIDTH]
    unit = next_unit(counter)
    while unit < units:
        first = unit * span
        ends = np.zeros(sizes[K_LEN] + 1, np.int64)
        for place in range(first, first + span):
            ends[indices[place] + 1] += 1  # -1, which is no key, is counted at 0
        ends[0] = first
        for n in range(sizes[K_LEN]):
            ends[n + 1] += ends[n]
        starts[unit] = ends
        for place in range(first, first + span):
            position = indices[place]
            if position >= 0:
                places[ends[position]] = place
                ends[position] += 1
        unit = next_unit(counter)


@compiled
def given_bwd_key_kernel(counter, units, sizes, inputs, starts, places, gradients):
    """For each key: visit the queries that attend to it, in order."""
    sum_type = inputs.v.dtype.type
    dims, dim, width, k_len = sizes[DIMS], sizes[DIM], sizes[WIDTH], sizes[K_LEN]
    strides = inputs.v_strides
    unit = next_unit(counter)
    while unit < units:
        for key in range(unit * KEYS, min((unit + 1) * KEYS, len(inputs.k) // dims)):
            kv_row, position = key // k_len, key % k_len
            value_at = kv_row // sizes[KV_HEADS] * strides[0] + kv_row % sizes[KV_HEADS] * strides[1]
            value_at += position * strides[2]
            for n in range(starts[kv_row, position], starts[kv_row, position + 1]):
                query = places[n] // width
                if inputs.normalizer[query] == 0:
                    continue
                _, head, _, _ = locate(sizes, query)
                scale = sum_type(inputs.gamma[head])
                distance = distance_between(inputs.q, query * dims, inputs.k, key * dims, dims)
                u = sum_type(1) / (sum_type(distance) + scale * scale)
                inverse = sum_type(1) / inputs.normalizer[query]
                g_at = grad_address(sizes, query, inputs.grad_strides)
                product = dot(inputs.grad_out, g_at, inputs.v, value_at, dim)
                slope = -u * u * (product - gradients.delta[query]) * inverse
                for c in range(dims):
                    difference = sum_type(inputs.q[query * dims + c]) - sum_type(inputs.k[key * dims + c])
                    gradients.k[key * dims + c] -= sum_type(2) * slope * difference
                scaled_add(gradients.v, key * dim, inputs.grad_out, g_at, u * inverse, dim)
        unit = next_unit(counter)
