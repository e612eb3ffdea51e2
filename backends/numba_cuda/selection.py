"""From queries and keys to a selection: what is launched, in which order."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from zeta_ops.backends.numba_cuda.calls import Call, quantiser
from zeta_ops.backends.numba_cuda.constants import BLOCK, COARSE, LEVEL_BITS, MAX_LEVELS
from zeta_ops.backends.numba_cuda.encode import encode_kernels
from zeta_ops.backends.numba_cuda.entries import least_kernel, points_kernel
from zeta_ops.backends.numba_cuda.levels import SEGMENTS, level_count_kernel, level_fill_kernel, level_scan_kernel
from zeta_ops.backends.numba_cuda.parts import THREADS
from zeta_ops.backends.numba_cuda.ranges import ranges_kernel
from zeta_ops.backends.numba_cuda.select import exact_kernel, select_kernel
from zeta_ops.backends.numba_cuda.sizes import num_sequences, sizes_of
from zeta_ops.options import Problem

__all__ = ["find_ranges", "list_selection"]


def _coordinate(problem: Problem) -> Any:
    return np.float64 if problem.coordinate_dtype == "float64" else np.float32


def find_ranges(call: Call, problem: Problem) -> None:
    """Find the windows of one curve: it leaves what `residual_specs` lists, and the distance of the nearest key."""
    arrays = {name: call.memory[name] for name in ("points", "positions", "fine", "left", "right")}
    _search_curve(call, problem, 0, arrays | {"ranks": call.memory["cu_seqlens"]}, listed=False)


def list_selection(call: Call, problem: Problem) -> None:
    """List the keys of every query in `indices`."""
    queries, options = prod(problem.normalizer_shape), problem.options
    if options.search == "exact":
        call.each(exact_kernel(problem.key_dim, _coordinate(problem)), queries)
        return
    curves = options.num_curves
    for curve in range(curves):
        arrays = {name: call.part_of(name, curve, curves) for name in ("points", "positions", "fine", "ranks")}
        arrays["left"] = call.part_of("window_left", curve, curves)
        arrays["right"] = call.part_of("window_right", curve, curves)
        _search_curve(call, problem, curve, arrays, listed=True)
    call.each(select_kernel(problem.key_dim, _coordinate(problem)), queries)


def _search_curve(call: Call, problem: Problem, curve: int, arrays: dict[str, Any], *, listed: bool) -> None:
    """Find the windows of a curve; `arrays` are those that it leaves."""
    sizes, kernels = sizes_of(problem), encode_kernels(problem.key_dim)
    heads, queries = problem.batch * problem.kv_heads, prod(problem.normalizer_shape)
    numbers = {"curve": curve, **quantiser(problem.options.bounds)}
    keys, entries = heads * problem.k_len, heads * sizes.entries
    if keys > 0:
        _sort_keys(call, problem, numbers, keys)
        call.each(level_count_kernel, heads * sizes.units * MAX_LEVELS)
        rows = heads * num_sequences(problem)
        call.launch(level_scan_kernel, rows, min(SEGMENTS * MAX_LEVELS, 8 * THREADS))
        call.each(level_fill_kernel, heads * sizes.units * MAX_LEVELS, **_of(level_fill_kernel, arrays))
    points = points_kernel(problem.key_dim)
    call.each(points, entries, **_of(points, arrays))
    fine, coarse = arrays["fine"], call.memory["coarse"]
    call.each(least_kernel, entries // BLOCK, values=arrays["positions"], least=fine, count=entries // BLOCK)
    call.each(least_kernel, entries // COARSE, values=fine, least=coarse, count=entries // COARSE)
    if queries == 0:
        return
    call.each(kernels["encode_queries_kernel"], queries, **numbers)
    bits = sizes.query_bits + LEVEL_BITS + sizes.row_bits
    call.sort("query_codes", "query_places", "sorted_query_codes", "slots", queries, bits)
    ranges = ranges_kernel(problem.key_dim, _coordinate(problem))
    call.each(ranges, queries, listed=int(listed), **_of(ranges, arrays), **numbers)


def _of(kernel: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in arrays.items() if name in kernel.arguments}


def _sort_keys(call: Call, problem: Problem, numbers: dict[str, Any], keys: int) -> None:
    """Sort keys by (row, code). Where both are wider than 64 bits it takes two sorts: by code, then by row."""
    sizes, kernels = sizes_of(problem), encode_kernels(problem.key_dim)
    call.each(kernels["encode_keys_kernel"], keys, **numbers)
    unsorted, into = ("key_codes", "key_places"), ("sorted_codes", "sorted_places")
    if sizes.row_shift < 64 or sizes.row_bits == 0:
        call.sort(*unsorted, *into, keys, min(64, sizes.code_bits + sizes.row_bits))
        return
    call.sort(*unsorted, *into, keys, sizes.code_bits)
    call.each(kernels["sorted_rows_kernel"], keys)
    call.sort(*into, *unsorted, keys, sizes.row_bits)
    call.each(kernels["sorted_codes_kernel"], keys, **numbers)
