"""From queries and keys to a selection: what is launched, in which order."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from zeta_ops.backends.numba_cuda.calls import Call, quantiser
from zeta_ops.backends.numba_cuda.constants import BLOCK, COARSE, LEVEL_COUNTS, MAX_LEVELS, UNITS_OF_BLOCK
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
    sizes, heads, queries = sizes_of(problem), problem.batch * problem.kv_heads, prod(problem.normalizer_shape)
    entries, units = heads * sizes.entries, heads * sizes.units
    if heads * sizes.items > 0:
        arrays |= _sort_items(call, problem, curve)
        blocks, threads = -(-units // UNITS_OF_BLOCK), min(UNITS_OF_BLOCK * MAX_LEVELS, THREADS)
        call.launch(level_count_kernel, blocks, threads, **_of(level_count_kernel, arrays))
        rows = heads * num_sequences(problem)
        call.launch(level_scan_kernel, rows, min(SEGMENTS * LEVEL_COUNTS, 8 * THREADS))
        call.launch(level_fill_kernel, blocks, threads, **_of(level_fill_kernel, arrays))
    points = points_kernel(problem.key_dim)
    call.each(points, entries, **_of(points, arrays))
    fine, coarse = arrays["fine"], call.memory["coarse"]
    call.each(least_kernel, entries // BLOCK, values=arrays["positions"], least=fine, count=entries // BLOCK)
    call.each(least_kernel, entries // COARSE, values=fine, least=coarse, count=entries // COARSE)
    ranges = ranges_kernel(problem.key_dim, _coordinate(problem))
    gamma = call.memory.get("gamma", arrays["points"])  # which lists do not need
    call.each(ranges, queries, listed=int(listed), gamma=gamma, **_of(ranges, arrays))


def _of(kernel: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in arrays.items() if name in kernel.arguments}


def _sort_items(call: Call, problem: Problem, curve: int) -> dict[str, Any]:
    """Sort items by (row, code); where both are wider than 64 bits, by code and then by row. Say where they are."""
    sizes, kernels = sizes_of(problem), encode_kernels(problem.key_dim)
    items, bits = problem.batch * problem.kv_heads * sizes.items, sizes.code_bits + sizes.row_bits
    call.each(kernels["encode_items_kernel"], items, curve=curve, **quantiser(problem.options.bounds))
    if sizes.number_bits:
        call.run.sort_keys(call.memory["items"], call.memory["sorted_items"], items, sizes.number_bits, bits)
        return {}
    unsorted, into = ("items", "numbers"), ("sorted_items", "sorted_numbers")
    if bits <= 64:
        call.sort(*unsorted, *into, items, bits)
        return {}
    call.sort(*unsorted, *into, items, sizes.code_bits)
    call.each(kernels["sorted_rows_kernel"], items)
    call.sort(*into, *unsorted, items, sizes.row_bits)
    return {"sorted_items": call.memory["items"], "sorted_numbers": call.memory["numbers"]}
