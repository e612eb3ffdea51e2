"""Attention over ranges: the forward pass, and the half of the backward pass that stands at the queries."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zeta_ops.backends.numba.compiling import compiled, compiled_fused
from zeta_ops.backends.numba.gather import STRETCH, gather_local, gather_selected, query_address
from zeta_ops.backends.numba.layout import BATCH, ENTRY, HEAD, KEY, KV_HEAD, NUM_QUERIES, SLOT, START
from zeta_ops.backends.numba.memory import Gradients, Inputs, Strided
from zeta_ops.backends.numba.parallel import next_unit, run
from zeta_ops.backends.numba.selection import Selection
from zeta_ops.backends.numba.sums import add_weighted, dot, dots, prefetch, total, total_pull
from zeta_ops.options import Problem

__all__ = ["History", "add_attended", "attend", "differentiate", "grad_at_queries", "row_address", "value_address"]

Array = npt.NDArray[Any]

AHEAD = 2  # slots: how early the row of a later query is asked for
UNIT = 128  # slots per unit of work: neighbours in code order, which share most of their keys


class History(NamedTuple):
    """What the backward pass needs of each query's history token; all empty where there is none.

    Attributes
    ----------
    mean_key : ndarray (queries * dk,)
    weight : ndarray (queries,)
        `u`, 0 for a query without a token.
    product : ndarray (queries,)
        `g . vbar` on entry to the pass over queries, the token's `e` after it.
    """

    mean_key: Array
    weight: Array
    product: Array


@compiled
def value_address(layout, row, strides):
    """Where a row's first value lies in strided memory."""
    return row[BATCH] * strides[0] + row[KV_HEAD] * strides[1] + row[START] * strides[2]


@compiled
def row_address(layout, row, query, strides):
    """Where the row of one query (of `grad_out`) lies in strided memory."""
    length = row[NUM_QUERIES]
    head, place = (0, query) if query < length else (query // length, query % length)
    return row[BATCH] * strides[0] + (row[HEAD] + head) * strides[1] + (row[START] + place) * strides[2]


@compiled
def prefetch_entering(entries, slots, slot, first_entry, v, values, stride, dim):
    """Ask for the value rows at the end of a later slot's window: those that the slots before it have not read."""
    for curve in range(len(entries.position)):
        stop = first_entry + slots.ranges[slot, curve, 1]
        for e in range(max(stop - 2, first_entry), stop):
            position = entries.position[curve, e]
            prefetch(v, values + np.uint64(position) * stride, dim)


@compiled_fused
def add_attended(at, width, distances, offsets, count, v, dim, weights, row, token, out, normalizer):
    """Finish a query's forward pass: weigh its `count` keys and add up their values, in `row (dim,)` first.

    With a history token, `out` and `normalizer` hold its part, `u vbar` and `u`, on entry.
    """
    one = out.dtype.type(1)
    square = out.dtype.type(width) * out.dtype.type(width)
    for e in range(np.uint64(count)):
        weights[e] = one / (out.dtype.type(distances[e]) + square)
    z = total(weights, count)
    if token:
        z += normalizer[at]
    normalizer[at] = z
    first = np.uint64(at) * np.uint64(dim)
    if z == 0:  # nothing to attend to, or too far away for a weight
        for c in range(np.uint64(dim)):
            out[first + c] = 0
        return
    inverse = one / z
    if token:
        for c in range(np.uint64(dim)):
            row[c] = out[first + c] * inverse
    else:
        for c in range(np.uint64(dim)):
            row[c] = 0
    for e in range(np.uint64(count)):
        weights[e] *= inverse
    add_weighted(row, 0, v, offsets, weights, count, dim)
    for c in range(np.uint64(dim)):
        out[first + c] = row[c]


@compiled_fused
def differentiate(
    at, head, g_at, count, distances, keys_at, offsets, inputs, history, gradients, dims, dim, weights, products
):
    """Finish a query's backward pass: `g . v_j` for its `count` keys, then D, e_ij and their sums."""
    sum_type = inputs.v.dtype.type
    width = sum_type(inputs.gamma[head])
    square = width * width
    first = np.uint64(at * dims)
    z = inputs.normalizer[at]
    if z == 0:  # the output is 0 whatever the inputs are
        gradients.delta[at] = 0
        gradients.squares[at] = 0
        for c in range(np.uint64(dims)):
            gradients.q[first + c] = 0
        if len(history.weight) > 0:
            history.product[at] = 0
        return
    inverse = sum_type(1) / z
    dots(inputs.grad_out, g_at, inputs.v, offsets, count, dim, products)
    for e in range(np.uint64(count)):
        weights[e] = sum_type(1) / (sum_type(distances[e]) + square)
    mean = dot(weights, 0, products, 0, count)
    token = len(history.weight) > 0 and history.weight[at] > 0
    if token:
        mean += history.weight[at] * history.product[at]
    mean *= inverse
    gradients.delta[at] = mean
    slopes = products
    for e in range(np.uint64(count)):
        slopes[e] = -weights[e] * weights[e] * (products[e] - mean) * inverse
    square_sum = total(slopes, count)
    for c in range(np.uint64(dims)):
        x = sum_type(inputs.q[first + c])
        gradients.q[first + c] = sum_type(2) * total_pull(slopes, x, inputs.k, keys_at, c, count)
    if token:
        slope = -history.weight[at] * history.weight[at] * (history.product[at] - mean) * inverse
        square_sum += slope
        history.product[at] = slope
        for c in range(np.uint64(dims)):
            difference = sum_type(inputs.q[first + c]) - history.mean_key[first + c]
            gradients.q[first + c] += sum_type(2) * slope * difference
    elif len(history.weight) > 0:
        history.product[at] = history.weight[at]  # 0 where there is no token or its weight underflows, or NaN
    gradients.squares[at] = square_sum


def attend(
    problem: Problem, selection: Selection, q: Array, k: Array, v: Strided, gamma: Array, out: Array, normalizer: Array
) -> None:
    """Write `out` and `normalizer` (flat, sum dtype).

    With a history token they hold its part, `u vbar` and `u`, on entry.
    """
    layout, entries, slots, length = selection
    options = problem.options
    units = layout.slot_units(UNIT)
    local = options.q_offset, options.local_window
    arguments = q, k, v.flat, v.strides, gamma, problem.key_dim, problem.value_dim, local, length
    results = options.history_mean, out, normalizer
    run(attend_fwd_kernel, len(units.row), units, layout, entries, slots, *arguments, *results)


@compiled
def attend_fwd_kernel(
    counter, units, unit_table, layout, entries, slots, q, k, v, strides, gamma, dims, dim, local, length, token, out,
    normalizer,
):  # fmt: skip
    """For each query: list its keys, weigh them, add up their values."""
    positions = np.empty(length, np.int32)
    distances = np.empty(length, q.dtype)
    scratch = np.empty(STRETCH, q.dtype)
    offsets = np.empty(length, np.uint64)
    weights = np.empty(length, out.dtype)
    sums = np.empty(dim, out.dtype)
    q_offset, local_window = local
    unit = next_unit(counter)
    while unit < units:
        r = unit_table.row[unit]
        row = layout.rows[r]
        values = np.uint64(value_address(layout, row, strides))
        stride = np.uint64(strides[2])
        start = unit_table.start[unit]
        level = 0
        for s in range(start, min(start + UNIT, layout.group * row[NUM_QUERIES])):
            while s >= layout.level_slot[r, level + 1]:
                level += 1
            slot = row[SLOT] + s
            query = slots.query[slot]
            if s + AHEAD < layout.group * row[NUM_QUERIES]:
                prefetch(out, query_address(layout, row, slots.query[slot + AHEAD]) * dim, dim)
                prefetch_entering(entries, slots, slot + AHEAD, row[ENTRY], v, values, stride, dim)
            count = gather_selected(layout, entries, slots, r, level, slot, q, dims, positions, distances, scratch)
            if local_window > 0:
                count = gather_local(layout, r, query, q, k, dims, q_offset, local_window, positions, distances, count)
            for e in range(np.uint64(count)):
                offsets[e] = values + np.uint64(positions[e]) * stride
            at = query_address(layout, row, query)
            width = gamma[row[HEAD] + query // row[NUM_QUERIES]]
            add_attended(at, width, distances, offsets, count, v, dim, weights, sums, token, out, normalizer)
        unit = next_unit(counter)


def grad_at_queries(
    problem: Problem, selection: Selection, inputs: Inputs, history: History, gradients: Gradients
) -> None:
    """Write what stands at each query: its gradient, its part of gamma's, and `D = g . out`.

    The `product` of `history` is replaced by the token's `e`.
    """
    layout, entries, slots, length = selection
    options = problem.options
    units = layout.slot_units(UNIT)
    local = options.q_offset, options.local_window
    arguments = inputs, history, gradients, problem.key_dim, problem.value_dim, local, length
    run(attend_bwd_query_kernel, len(units.row), units, layout, entries, slots, *arguments)


@compiled
def attend_bwd_query_kernel(
    counter, units, unit_table, layout, entries, slots, inputs, history, gradients, dims, dim, local, length
):
    """For each query: list its keys again, and differentiate."""
    positions = np.empty(length, np.int32)
    distances = np.empty(length, inputs.q.dtype)
    scratch = np.empty(STRETCH, inputs.q.dtype)
    offsets = np.empty(length, np.uint64)
    keys_at = np.empty(length, np.uint64)
    weights = np.empty(length, inputs.v.dtype)
    products = np.empty(length, inputs.v.dtype)
    q_offset, local_window = local
    unit = next_unit(counter)
    while unit < units:
        r = unit_table.row[unit]
        row = layout.rows[r]
        values = np.uint64(value_address(layout, row, inputs.v_strides))
        stride = np.uint64(inputs.v_strides[2])
        start = unit_table.start[unit]
        level = 0
        for s in range(start, min(start + UNIT, layout.group * row[NUM_QUERIES])):
            while s >= layout.level_slot[r, level + 1]:
                level += 1
            slot = row[SLOT] + s
            query = slots.query[slot]
            if s + AHEAD < layout.group * row[NUM_QUERIES]:
                later = row_address(layout, row, slots.query[slot + AHEAD], inputs.grad_strides)
                prefetch(inputs.grad_out, later, dim)
                prefetch_entering(entries, slots, slot + AHEAD, row[ENTRY], inputs.v, values, stride, dim)
            count = gather_selected(
                layout, entries, slots, r, level, slot, inputs.q, dims, positions, distances, scratch
            )
            if local_window > 0:
                count = gather_local(
                    layout, r, query, inputs.q, inputs.k, dims, q_offset, local_window, positions, distances, count
                )
            for e in range(np.uint64(count)):
                offsets[e] = values + np.uint64(positions[e]) * stride
                keys_at[e] = np.uint64((row[KEY] + positions[e]) * dims)
            at = query_address(layout, row, query)
            g_at = row_address(layout, row, query, inputs.grad_strides)
            head = row[HEAD] + query // row[NUM_QUERIES]
            differentiate(
                at,
                head,
                g_at,
                count,
                distances,
                keys_at,
                offsets,
                inputs,
                history,
                gradients,
                dims,
                dim,
                weights,
                products,
            )
        unit = next_unit(counter)
