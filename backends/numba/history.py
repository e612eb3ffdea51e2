"""The history token: means of all keys and values so far, by a scan over chunks of positions.

Sums of each chunk, then an exclusive scan over the chunks of a row, then every chunk runs on from there.
The backward pass is the same scan from the end. Sums are float64, so that a million tokens lose no precision;
only one running sum a chunk exists, never a mean for every query.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zeta_ops.backends.numba.attention import History, row_address, value_address
from zeta_ops.backends.numba.compiling import compiled, compiled_reduction
from zeta_ops.backends.numba.gather import query_address
from zeta_ops.backends.numba.layout import HEAD, KEY, NUM_KEYS, NUM_QUERIES, START, Layout, Units
from zeta_ops.backends.numba.memory import Gradients, Inputs, Strided
from zeta_ops.backends.numba.parallel import next_unit, run
from zeta_ops.options import Problem

__all__ = ["attend_to_history", "grad_through_means", "history_terms"]

Array = npt.NDArray[Any]

CHUNK = 256  # positions per unit of work


def attend_to_history(
    problem: Problem, layout: Layout, q: Array, k: Array, v: Strided, gamma: Array, out: Array, normalizer: Array
) -> None:
    """Write `u vbar` to `out` and `u` to `normalizer` (flat, zeros on entry) for each query with a token."""
    units, before = _sums_before(problem, layout, k, v)
    arguments = before, q, k, v.flat, v.strides, gamma, problem.key_dim, problem.value_dim, out, normalizer
    run(history_fwd_kernel, len(units.row), units, layout, *arguments)


def history_terms(problem: Problem, layout: Layout, inputs: Inputs) -> History:
    """Compute for each query what the backward pass needs of its token."""
    queries = len(inputs.normalizer)
    mean_key = np.zeros(queries * problem.key_dim, problem.sum_dtype)
    weight, product = np.zeros((2, queries), problem.sum_dtype)
    terms = History(mean_key, weight, product)
    units, before = _sums_before(problem, layout, inputs.k, Strided(inputs.v, inputs.v_strides))
    arguments = before, inputs, problem.key_dim, problem.value_dim, terms
    run(history_terms_kernel, len(units.row), units, layout, *arguments)
    return terms


def grad_through_means(problem: Problem, layout: Layout, inputs: Inputs, terms: History, gradients: Gradients) -> None:
    """Add what the means hand on to keys and values: each query's part to all keys of its mean.

    The `product` of `terms` is each token's `e`, as the pass over queries leaves it.
    """
    units = layout.key_units(CHUNK)
    after = np.zeros((len(units.row), problem.key_dim + problem.value_dim))
    sizes = problem.key_dim, problem.value_dim
    run(means_bwd_sums_kernel, len(units.row), units, layout, inputs, terms, *sizes, after)
    run(scan_kernel, len(layout.rows), units, after, True)
    run(means_bwd_kernel, len(units.row), units, layout, inputs, terms, *sizes, after, gradients)


def _sums_before(problem: Problem, layout: Layout, k: Array, v: Strided) -> tuple[Units, Array]:
    """Sum all keys and values before each chunk, `(units, dk + dv)` float64."""
    units = layout.key_units(CHUNK)
    sums = np.zeros((len(units.row), problem.key_dim + problem.value_dim))
    sizes = problem.key_dim, problem.value_dim
    run(chunk_sums_kernel, len(units.row), units, layout, k, v.flat, v.strides, *sizes, sums)
    run(scan_kernel, len(layout.rows), units, sums, False)
    return units, sums


@compiled
def chunk_sums_kernel(counter, units, unit_table, layout, k, v, strides, dims, dim, sums):
    """Sum keys and values over each chunk."""
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        start = unit_table.start[unit]
        values = value_address(layout, row, strides)
        for position in range(start, min(start + CHUNK, row[NUM_KEYS])):
            add_token(sums[unit], k, (row[KEY] + position) * dims, v, values + position * strides[2], dims, dim)
        unit = next_unit(counter)


@compiled
def add_token(sums, k, key_at, v, value_at, dims, dim):
    """Add one key and value to running sums `(dk + dv)`."""
    for c in range(dims):
        sums[c] += k[key_at + c]
    first, offset = np.uint64(value_at), np.uint64(dims)
    for c in range(np.uint64(dim)):
        sums[offset + c] += v[first + c]


@compiled
def scan_kernel(counter, units, unit_table, sums, backward):
    """Turn each row's sums of chunks into sums of all chunks before (or after) each."""
    unit = next_unit(counter)
    while unit < units:
        first = np.searchsorted(unit_table.row, unit)
        stop = np.searchsorted(unit_table.row, unit + 1)
        running = np.zeros(sums.shape[1])
        for n in range(stop - first):
            chunk = stop - 1 - n if backward else first + n
            for c in range(sums.shape[1]):
                here = sums[chunk, c]
                sums[chunk, c] = running[c]
                running[c] += here
        unit = next_unit(counter)


@compiled
def queries_of_mean(layout, row, count, guess):
    """Find the queries whose history token is the mean of `count` keys: `[first, stop)`, from a guess at first."""
    past = layout.past[row[START] : row[START] + row[NUM_QUERIES]]
    first = guess
    while first < len(past) and past[first] < count:
        first += 1
    stop = first
    while stop < len(past) and past[stop] == count:
        stop += 1
    return first, stop


@compiled
def first_query_of_chunk(layout, row, start):
    """Find the first query whose mean reaches beyond `start` keys."""
    past = layout.past[row[START] : row[START] + row[NUM_QUERIES]]
    return np.searchsorted(past, start + 1)


@compiled
def token_weight(q, query_at, running, count, square, dims):
    """Compute `u` for a query and the mean of `count` keys, whose sums lead `running`; float64."""
    total = square
    for c in range(dims):
        difference = np.float64(q[query_at + c]) - running[c] / count
        total += difference * difference
    return 1.0 / total


@compiled
def history_fwd_kernel(counter, units, unit_table, layout, before, q, k, v, strides, gamma, dims, dim, out, normalizer):
    """Run over positions with the sums so far; serve the queries whose mean ends there."""
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        start = unit_table.start[unit]
        values = value_address(layout, row, strides)
        running = before[unit].copy()
        next_query = first_query_of_chunk(layout, row, start)
        for position in range(start, min(start + CHUNK, row[NUM_KEYS])):
            add_token(running, k, (row[KEY] + position) * dims, v, values + position * strides[2], dims, dim)
            first, next_query = queries_of_mean(layout, row, position + 1, next_query)
            for head in range(layout.group):
                width = np.float64(gamma[row[HEAD] + head])
                for i in range(first, next_query):
                    at = query_address(layout, row, head * row[NUM_QUERIES] + i)
                    u = token_weight(q, at * dims, running, position + 1, width * width, dims)
                    normalizer[at] = u
                    scale = u / (position + 1)
                    to, offset = np.uint64(at * dim), np.uint64(dims)
                    for c in range(np.uint64(dim)):
                        out[to + c] = running[offset + c] * scale
        unit = next_unit(counter)


@compiled
def history_terms_kernel(counter, units, unit_table, layout, before, inputs, dims, dim, terms):
    """Run over positions again; write what the backward pass needs of each query's token."""
    strides = inputs.v_strides
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        start = unit_table.start[unit]
        values = value_address(layout, row, strides)
        running = before[unit].copy()
        next_query = first_query_of_chunk(layout, row, start)
        for position in range(start, min(start + CHUNK, row[NUM_KEYS])):
            value_at = values + position * strides[2]
            add_token(running, inputs.k, (row[KEY] + position) * dims, inputs.v, value_at, dims, dim)
            first, next_query = queries_of_mean(layout, row, position + 1, next_query)
            for head in range(layout.group):
                width = np.float64(inputs.gamma[row[HEAD] + head])
                for i in range(first, next_query):
                    query = head * row[NUM_QUERIES] + i
                    at = query_address(layout, row, query)
                    terms.weight[at] = token_weight(inputs.q, at * dims, running, position + 1, width * width, dims)
                    for c in range(dims):
                        terms.mean_key[at * dims + c] = running[c] / (position + 1)
                    g_at = row_address(layout, row, query, inputs.grad_strides)
                    terms.product[at] = running_dot(inputs.grad_out, g_at, running, dims, dim) / (position + 1)
        unit = next_unit(counter)


@compiled_reduction
def running_dot(grad_out, g_at, running, dims, dim):
    """Multiply `g` with the values' part of running sums."""
    first, offset = np.uint64(g_at), np.uint64(dims)
    total = 0.0
    for c in range(np.uint64(dim)):
        total += np.float64(grad_out[first + c]) * running[offset + c]
    return total


@compiled
def add_handed_on(sums, layout, row, first, stop, count, inputs, terms, dims, dim):
    """Add what the queries `[first, stop)`, whose means have `count` keys, hand on to each of these keys."""
    for head in range(layout.group):
        for i in range(first, stop):
            query = head * row[NUM_QUERIES] + i
            at = query_address(layout, row, query)
            if inputs.normalizer[at] == 0:
                continue
            pull = -2.0 * np.float64(terms.product[at]) / count
            for c in range(dims):
                sums[c] += pull * (np.float64(inputs.q[at * dims + c]) - terms.mean_key[at * dims + c])
            share = np.float64(terms.weight[at]) / inputs.normalizer[at] / count
            g_at, offset = np.uint64(row_address(layout, row, query, inputs.grad_strides)), np.uint64(dims)
            for c in range(np.uint64(dim)):
                sums[offset + c] += share * inputs.grad_out[g_at + c]


@compiled
def means_bwd_sums_kernel(counter, units, unit_table, layout, inputs, terms, dims, dim, sums):
    """Sum over each chunk of positions what the queries whose means end there hand on."""
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        start = unit_table.start[unit]
        next_query = first_query_of_chunk(layout, row, start)
        for position in range(start, min(start + CHUNK, row[NUM_KEYS])):
            first, next_query = queries_of_mean(layout, row, position + 1, next_query)
            add_handed_on(sums[unit], layout, row, first, next_query, position + 1, inputs, terms, dims, dim)
        unit = next_unit(counter)


@compiled
def means_bwd_kernel(counter, units, unit_table, layout, inputs, terms, dims, dim, after, gradients):
    """Run over positions from the end; each key gets the sum of what all means that hold it hand on."""
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        start = unit_table.start[unit]
        running = after[unit].copy()
        for position in range(min(start + CHUNK, row[NUM_KEYS]) - 1, start - 1, -1):
            first, stop = queries_of_mean(layout, row, position + 1, first_query_of_chunk(layout, row, position))
            add_handed_on(running, layout, row, first, stop, position + 1, inputs, terms, dims, dim)
            key = row[KEY] + position
            for c in range(dims):
                gradients.k[key * dims + c] += running[c]
            to, offset = np.uint64(key * dim), np.uint64(dims)
            for c in range(np.uint64(dim)):
                gradients.v[to + c] += running[offset + c]
        unit = next_unit(counter)
