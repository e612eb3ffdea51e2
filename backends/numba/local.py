"""Gradients of keys and values from the local window: every key visits the queries that follow it closely."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from zeta_ops.backends.numba.attention import row_address, value_address
from zeta_ops.backends.numba.compiling import compiled
from zeta_ops.backends.numba.gather import distance_between, query_address
from zeta_ops.backends.numba.layout import HEAD, KEY, NUM_KEYS, NUM_QUERIES, Layout
from zeta_ops.backends.numba.memory import Gradients, Inputs
from zeta_ops.backends.numba.parallel import next_unit, run
from zeta_ops.backends.numba.sums import dot, scaled_add
from zeta_ops.options import Problem

__all__ = ["grad_from_local_window"]

Array = npt.NDArray[Any]

KEYS = 128  # keys per unit of work


def grad_from_local_window(problem: Problem, layout: Layout, inputs: Inputs, gradients: Gradients) -> None:
    """Add what the local window's keys and values receive."""
    units = layout.key_units(KEYS)
    local = problem.options.q_offset, problem.options.local_window
    arguments = inputs, gradients, problem.key_dim, problem.value_dim, local
    run(local_bwd_kernel, len(units.row), units, layout, *arguments)


@compiled
def local_bwd_kernel(counter, units, unit_table, layout, inputs, gradients, dims, dim, local):
    """For each key: visit the queries at its position and the `local_window - 1` after it."""
    sum_type = inputs.v.dtype.type
    q_offset, local_window = local
    unit = next_unit(counter)
    while unit < units:
        row = layout.rows[unit_table.row[unit]]
        start = unit_table.start[unit]
        values = value_address(layout, row, inputs.v_strides)
        for position in range(start, min(start + KEYS, row[NUM_KEYS])):
            key_at = (row[KEY] + position) * dims
            value_at = values + position * inputs.v_strides[2]
            grad_at = (row[KEY] + position) * dim
            first = max(0, position - q_offset)
            stop = min(row[NUM_QUERIES], position - q_offset + local_window)
            for head in range(layout.group):
                width = sum_type(inputs.gamma[row[HEAD] + head])
                square = width * width
                for i in range(first, stop):
                    query = head * row[NUM_QUERIES] + i
                    at = query_address(layout, row, query)
                    if inputs.normalizer[at] == 0:
                        continue
                    u = sum_type(1) / (sum_type(distance_between(inputs.q, at * dims, inputs.k, key_at, dims)) + square)
                    inverse = sum_type(1) / inputs.normalizer[at]
                    g_at = row_address(layout, row, query, inputs.grad_strides)
                    slope = (
                        -u * u * (dot(inputs.grad_out, g_at, inputs.v, value_at, dim) - gradients.delta[at]) * inverse
                    )
                    for c in range(dims):
                        difference = sum_type(inputs.q[at * dims + c]) - sum_type(inputs.k[key_at + c])
                        gradients.k[key_at + c] -= sum_type(2) * slope * difference
                    scaled_add(gradients.v, grad_at, inputs.grad_out, g_at, u * inverse, dim)
        unit = next_unit(counter)
