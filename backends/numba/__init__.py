"""Compiled CPU kernels: every function and option in O(N log N), on several threads, memory O(N).

The way of a call, one file for each step: `morton` encodes, `sorting` sorts, `levels` makes dyadic levels of
the sorted keys, `ranges` finds each query's window in them, `gather` lists the keys of a query, `attention`
attends and stands at the queries in the backward pass, `keys` stands at the keys; `history`, `local`, `exact`
and `given` serve the options of these names; `layout` says where everything lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.numba import exact, given, history, local
from zeta_ops.backends.numba.attention import History, attend, grad_at_queries
from zeta_ops.backends.numba.keys import grad_at_keys
from zeta_ops.backends.numba.layout import layout_of
from zeta_ops.backends.numba.memory import Gradients, Inputs, contiguous, strided
from zeta_ops.backends.numba.morton import morton_decode, morton_encode
from zeta_ops.backends.numba.parallel import get_num_threads, set_num_threads
from zeta_ops.backends.numba.selection import list_selected, recall, select, selection_specs
from zeta_ops.options import Problem, Shapes

__all__ = [
    "attention_backward",
    "attention_forward",
    "cauchy_backward",
    "cauchy_forward",
    "causal_topk",
    "get_num_threads",
    "morton_decode",
    "morton_encode",
    "residual_specs",
    "set_num_threads",
    "unavailable_reason",
]

Array = npt.NDArray[Any]


def unavailable_reason() -> None:
    """Numba is a core dependency: available wherever this module can be imported."""


def causal_topk(problem: Problem, q: Array, k: Array, cu_seqlens: Array | None, indices: Array) -> None:
    """Write the selection of every query; see `zeta_ops.backends.Backend`."""
    exactly = problem.options.search == "exact"
    if exactly:
        problem = exact.search_options(problem)
    layout = layout_of(problem, cu_seqlens)
    q, k = contiguous(q, problem.coordinate_dtype), contiguous(k, problem.coordinate_dtype)
    arrays = tuple(np.empty(spec.shape, spec.dtype) for spec in selection_specs(problem))
    selection = select(problem, layout, q, k, arrays)
    flat = indices.reshape(-1)
    flat.fill(-1)
    if exactly:
        exact.list_nearest(problem, layout, selection.entries, selection.slots, q, flat)
    else:
        list_selected(problem, selection, q, flat)


def residual_specs(problem: Problem) -> tuple[ArraySpec, ...]:
    """List what the forward pass leaves: indices for an exact search, else where the windows lie."""
    if problem.options.search == "exact":
        width = problem.options.top_k + problem.options.local_window
        return (ArraySpec((*problem.normalizer_shape, width), "int32"),)
    return selection_specs(problem)


def attention_forward(
    problem: Problem,
    q: Array,
    k: Array,
    v: Array,
    gamma: Array,
    cu_seqlens: Array | None,
    out: Array,
    normalizer: Array,
    residuals: tuple[Array, ...],
) -> None:
    """Attend over the selection; see `zeta_ops.backends.Backend`."""
    layout = layout_of(problem, cu_seqlens)
    q, k = contiguous(q, problem.coordinate_dtype), contiguous(k, problem.coordinate_dtype)
    values = strided(v, problem.sum_dtype)
    gamma = contiguous(gamma, problem.coordinate_dtype)
    sums, totals = _flat(out, problem.sum_dtype), _flat(normalizer, problem.sum_dtype)
    if problem.options.history_mean or problem.k_len == 0:
        sums.fill(0)
        totals.fill(0)
    if problem.options.history_mean:
        history.attend_to_history(problem, layout, q, k, values, gamma, sums, totals)
    if problem.options.search == "exact":
        _list_attended(problem, q, k, cu_seqlens, residuals[0])
        given.attend_to_given(problem, q, k, values, residuals[0], gamma, problem.options.history_mean, sums, totals)
    else:
        selection = select(problem, layout, q, k, residuals)
        attend(problem, selection, q, k, values, gamma, sums, totals)
    _copy_back(sums, out)
    _copy_back(totals, normalizer)


def attention_backward(
    problem: Problem,
    grad_out: Array,
    q: Array,
    k: Array,
    v: Array,
    gamma: Array,
    cu_seqlens: Array | None,
    normalizer: Array,
    residuals: tuple[Array, ...],
    grad_q: Array,
    grad_k: Array,
    grad_v: Array,
    grad_gamma: Array,
) -> None:
    """Write the gradients of `attention_forward`; see `zeta_ops.backends.Backend`."""
    layout = layout_of(problem, cu_seqlens)
    inputs = _inputs(problem, grad_out, q, k, v, gamma, normalizer)
    sums = _sums(problem, grad_q, grad_k, grad_v)
    terms = history.history_terms(problem, layout, inputs) if problem.options.history_mean else _no_history(problem)
    if problem.options.search == "exact":
        given.grad_of_given(problem, inputs, residuals[0], terms, sums)
    else:
        selection = recall(problem, layout, inputs.k, residuals)
        grad_at_queries(problem, selection, inputs, terms, sums)
        grad_at_keys(problem, selection, inputs, sums)
        if problem.options.local_window > 0:
            local.grad_from_local_window(problem, layout, inputs, sums)
    if problem.options.history_mean:
        history.grad_through_means(problem, layout, inputs, terms, sums)
    _copy_back_all(problem, inputs, sums, grad_q, grad_k, grad_v, grad_gamma)


def cauchy_forward(
    shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: Array, out: Array, normalizer: Array
) -> None:
    """Attend over given indices; see `zeta_ops.backends.Backend`."""
    q, k = contiguous(q, shapes.coordinate_dtype), contiguous(k, shapes.coordinate_dtype)
    values, gamma = strided(v, shapes.sum_dtype), contiguous(gamma, shapes.coordinate_dtype)
    sums, totals = _flat(out, shapes.sum_dtype), _flat(normalizer, shapes.sum_dtype)
    given.attend_to_given(shapes, q, k, values, indices, gamma, False, sums, totals)
    _copy_back(sums, out)
    _copy_back(totals, normalizer)


def cauchy_backward(
    shapes: Shapes,
    grad_out: Array,
    q: Array,
    k: Array,
    v: Array,
    indices: Array,
    gamma: Array,
    normalizer: Array,
    grad_q: Array,
    grad_k: Array,
    grad_v: Array,
    grad_gamma: Array,
) -> None:
    """Write the gradients of `cauchy_forward`; see `zeta_ops.backends.Backend`."""
    inputs = _inputs(shapes, grad_out, q, k, v, gamma, normalizer)
    sums = _sums(shapes, grad_q, grad_k, grad_v)
    given.grad_of_given(shapes, inputs, indices, _no_history(shapes), sums)
    _copy_back_all(shapes, inputs, sums, grad_q, grad_k, grad_v, grad_gamma)


def _list_attended(problem: Problem, q: Array, k: Array, cu_seqlens: Array | None, indices: Array) -> None:
    """Write the positions that an exact search attends to: the nearest keys, then the local window."""
    top_k, local_window = problem.options.top_k, problem.options.local_window
    nearest = np.full((*problem.normalizer_shape, top_k), -1, np.int32)
    started = exact.search_options(problem)
    layout = layout_of(started, cu_seqlens)
    arrays = tuple(np.empty(spec.shape, spec.dtype) for spec in selection_specs(started))
    selection = select(started, layout, q, k, arrays)
    exact.list_nearest(problem, layout, selection.entries, selection.slots, q, nearest.reshape(-1))
    indices[..., :top_k] = nearest
    for back in range(local_window):
        indices[..., top_k + back] = layout.local_positions(back, problem.options.q_offset)


def _inputs(shapes: Shapes, grad_out: Array, q: Array, k: Array, v: Array, gamma: Array, normalizer: Array) -> Inputs:
    coordinates, sums = shapes.coordinate_dtype, shapes.sum_dtype
    return Inputs(
        contiguous(q, coordinates),
        contiguous(k, coordinates),
        *strided(v, sums),
        contiguous(gamma, coordinates),
        contiguous(normalizer, sums),
        *strided(grad_out, sums),
    )


def _sums(shapes: Shapes, grad_q: Array, grad_k: Array, grad_v: Array) -> Gradients:
    queries = int(np.prod(shapes.normalizer_shape))
    squares, delta = np.zeros((2, queries), shapes.sum_dtype)
    flat_q, flat_k, flat_v = (_flat(array, shapes.sum_dtype) for array in (grad_q, grad_k, grad_v))
    for flat in (flat_q, flat_k, flat_v):
        flat.fill(0)
    return Gradients(flat_q, flat_k, flat_v, squares, delta)


def _no_history(shapes: Shapes) -> History:
    return History(*np.zeros((3, 0), shapes.sum_dtype))


def _copy_back_all(
    shapes: Shapes, inputs: Inputs, sums: Gradients, grad_q: Array, grad_k: Array, grad_v: Array, grad_gamma: Array
) -> None:
    for flat, array in ((sums.q, grad_q), (sums.k, grad_k), (sums.v, grad_v)):
        _copy_back(flat, array)
    squares = sums.squares.reshape(shapes.normalizer_shape).sum(axis=(0, 2), dtype=np.float64)
    grad_gamma[...] = 2 * inputs.gamma * squares


def _flat(array: Array, dtype: str) -> Array:
    """Give an output flat; a flat array of its own where layout or dtype differ."""
    if array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned:
        return array.reshape(-1)
    return np.empty(array.size, dtype)


def _copy_back(flat: Array, array: Array) -> None:
    """Hand sums over to the output, unless they are its own memory."""
    if not np.may_share_memory(flat, array):
        array[...] = flat.reshape(array.shape)
