"""Sizes that follow from shapes and options, and the arrays of residuals and workspace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.numba_cuda.constants import (
    BLOCK,
    CHUNK,
    COARSE,
    COLUMNS,
    EXTENT,
    LEVEL_COUNTS,
    LINE,
    MAX_LEVELS,
    NUMBERS,
    PULL,
    STRETCH,
    TILE,
    UNIT,
)
from zeta_ops.backends.radix_sort import Sort
from zeta_ops.backends.scalars import level_count, level_length
from zeta_ops.options import Problem, Shapes

__all__ = [
    "Sizes",
    "by_ranges",
    "count_parts",
    "count_places",
    "largest_sort",
    "num_sequences",
    "residual_specs",
    "sizes_of",
    "tiles_of",
    "workspace_specs",
]

_MOST_PLACES = 2**31 - 1  # a pair holds its place as int32

Specs = dict[str, ArraySpec]


def by_ranges(problem: Problem) -> bool:
    """Whether attention follows ranges: one curve, all of whose windows are kept. Else it follows a list of keys."""
    options = problem.options
    return options.search == "zorder" and options.num_curves == 1 and not options.reranks


def num_sequences(shapes: Shapes) -> int:
    """Count the sequences of a batch item: 1 where nothing is packed."""
    return max(1, shapes.num_sequences or 1) if isinstance(shapes, Problem) else 1


def count_parts(problem: Problem) -> int:
    """Count the parts of attention: the selection, and what comes before it."""
    return 1 + problem.options.history_mean + (problem.options.local_window > 0)


@dataclass(frozen=True)
class Sizes:
    """Capacities, and how codes share 64 bits with rows and levels.

    Attributes
    ----------
    items : int
        Keys and queries of each key head of a batch item, which are sorted together.
    entries, lower_entries, upper_entries : int
        For each key head of a batch item, over all sequences and levels; of level 0, and of those above it.
    units, chunks : int
        Of sorted items and of tokens, likewise.
    row_shift : int
        Where the row stands above an item's code; 64 if both do not fit into 64 bits.
    code_bits, row_bits : int
    number_bits : int
        Of an item's number, which stands below its code and row; 0 if 64 bits have no room for it.
    """

    items: int
    entries: int
    lower_entries: int
    upper_entries: int
    units: int
    chunks: int
    row_shift: int
    code_bits: int
    row_bits: int
    number_bits: int


def entry_capacity(problem: Problem) -> int:
    """Bound the entries of each key head of a batch item: a multiple of 1024.

    The sizes may be symbols of a tracer: arithmetic alone adds no conditions on them.
    """
    if problem.num_sequences is None:
        levels = MAX_LEVELS
    else:  # the lengths are on the device: each level of each sequence is at most one key and a block too long
        levels = num_sequences(problem) * level_count(problem.k_len, problem.options.window)
    return (2 * problem.k_len + levels * (BLOCK + 1) + COARSE - 1) // COARSE * COARSE


def _upper_entries(problem: Problem) -> int:
    if problem.num_sequences is not None:
        return (entry_capacity(problem) - problem.k_len + BLOCK - 1) // BLOCK * BLOCK
    levels = range(1, level_count(problem.k_len, problem.options.window))
    return sum(-(-level_length(problem.k_len, level) // BLOCK) * BLOCK for level in levels)


@lru_cache(maxsize=256)
def sizes_of(problem: Problem) -> Sizes:
    """Work out the sizes of a problem."""
    sequences = num_sequences(problem)
    code_bits = problem.key_dim * problem.options.bits
    row_bits = (problem.batch * problem.kv_heads * sequences - 1).bit_length()
    items = problem.k_len + problem.q_len * problem.group_size
    number_bits = max(1, (items - 1).bit_length())
    return Sizes(
        items=items,
        entries=entry_capacity(problem),
        lower_entries=(problem.k_len + sequences * (BLOCK - 1)) // BLOCK * BLOCK,
        upper_entries=_upper_entries(problem),
        units=items // UNIT + sequences,
        chunks=max(problem.q_len, problem.k_len) // CHUNK + sequences,
        row_shift=code_bits if code_bits + row_bits <= 64 and code_bits < 64 else 64,
        code_bits=code_bits,
        row_bits=row_bits,
        number_bits=number_bits if code_bits + row_bits + number_bits <= 64 else 0,
    )


def tiles_of(problem: Problem) -> int:
    """Count tiles of slots, such that each row has its own."""
    rows = problem.batch * problem.kv_heads * num_sequences(problem)
    return prod(problem.normalizer_shape) // TILE + rows


def residual_specs(problem: Problem) -> Specs:
    """List the arrays that a forward pass leaves: where the windows lie, or the keys one by one."""
    if not by_ranges(problem):
        return {"indices": ArraySpec((*problem.normalizer_shape, problem.options.top_k), "int32")}
    entries, front = entry_capacity(problem), (problem.batch, problem.kv_heads)
    of_slots = ArraySpec(problem.normalizer_shape, "int32")
    return {
        "points": ArraySpec((*front, entries, problem.key_dim), problem.coordinate_dtype),
        "positions": ArraySpec((*front, entries), "int32"),
        "fine": ArraySpec((*front, entries // BLOCK), "int32"),
        **dict.fromkeys(("slots", "left", "right", "visible"), of_slots),
    }


def _table(shapes: Shapes) -> Specs:
    return {"table": ArraySpec((NUMBERS + num_sequences(shapes) * LINE,), "int64")}


def _search(problem: Problem, listed: bool) -> Specs:
    """List the arrays that a search needs while it runs."""
    if problem.options.search == "exact":
        return {"distances": ArraySpec((*problem.normalizer_shape, problem.options.top_k), problem.coordinate_dtype)}
    sizes, curves = sizes_of(problem), problem.options.num_curves
    heads, queries = problem.batch * problem.kv_heads, problem.normalizer_shape
    numbers = 0 if sizes.number_bits else sizes.items
    specs = {
        "items": ArraySpec((heads, sizes.items), "uint64"),
        "numbers": ArraySpec((heads, numbers), "int32"),
        "sorted_items": ArraySpec((heads, sizes.items), "uint64"),
        "sorted_numbers": ArraySpec((heads, numbers), "int32"),
        "level_counts": ArraySpec((heads, sizes.units, LEVEL_COUNTS), "int32"),
        "places": ArraySpec(queries, "int32"),
        "coarse": ArraySpec((heads, sizes.entries // COARSE), "int32"),
        "nearest": ArraySpec(queries, problem.coordinate_dtype),
    }
    if not listed:
        return specs
    return specs | {
        "points": ArraySpec((curves, heads, sizes.entries, problem.key_dim), problem.coordinate_dtype),
        "positions": ArraySpec((curves, heads, sizes.entries), "int32"),
        "fine": ArraySpec((curves, heads, sizes.entries // BLOCK), "int32"),
        "ranks": ArraySpec((curves if curves > 1 else 0, heads, sizes.entries), "int32"),
        "slots": ArraySpec(queries, "int32"),
        "visible": ArraySpec((0,), "int32"),
        "window_left": ArraySpec((curves, *queries), "int32"),
        "window_right": ArraySpec((curves, *queries), "int32"),
        "distances": ArraySpec((*queries, problem.options.top_k), problem.coordinate_dtype),
    }


def _history_sums(problem: Problem) -> Specs:
    rows = problem.batch * problem.kv_heads * sizes_of(problem).chunks
    return {"history_sums": ArraySpec((rows, problem.key_dim + problem.value_dim), "float64")}


def _pairs(shapes: Shapes, width: int) -> Specs:
    places, sums = count_places(shapes, width), shapes.sum_dtype
    return {
        "pair_keys": ArraySpec((places,), "uint64"),
        "pair_places": ArraySpec((places,), "int32"),
        "sorted_pair_keys": ArraySpec((places,), "uint64"),
        "sorted_pair_places": ArraySpec((places,), "int32"),
        "stretch_k": ArraySpec((places // STRETCH, shapes.key_dim), sums),
        "stretch_v": ArraySpec((places // STRETCH, shapes.value_dim), sums),
    }


def count_places(shapes: Shapes, width: int) -> int:
    """Count the places in the indices, `width` of each query.

    Raises
    ------
    ValueError
        If the backward pass cannot number so many.
    """
    places = prod(shapes.normalizer_shape) * width
    if places > _MOST_PLACES:
        sizes = f"{shapes.batch} batch items * {shapes.q_heads} heads * {shapes.q_len} queries * {width} keys of each"
        raise ValueError(
            f"the backward pass over listed keys takes at most {_MOST_PLACES:,} of them in one call; got {sizes}"
            f" = {places:,}; call it with fewer batch items or heads at a time"
        )
    return places


def _backward(shapes: Shapes, width: int) -> Specs:
    """List the arrays of a backward pass, `width` keys of each query being listed."""
    sums = shapes.sum_dtype
    specs = {
        **_table(shapes),
        "delta": ArraySpec(shapes.normalizer_shape, sums),
        "squares": ArraySpec(shapes.normalizer_shape, sums),
    }
    if not isinstance(shapes, Problem):
        return specs | _pairs(shapes, width)
    if count_parts(shapes) > 1:
        specs["pulls"] = ArraySpec((*shapes.normalizer_shape, PULL + 2 * shapes.key_dim), sums)
        specs["sum_k"] = ArraySpec(shapes.k_shape, sums)
        specs["sum_v"] = ArraySpec(shapes.v_shape, sums)
    if shapes.options.history_mean:
        specs |= _history_sums(shapes)
        specs["history_terms"] = ArraySpec((*shapes.normalizer_shape, 2 + shapes.key_dim), sums)
    if not by_ranges(shapes):
        return specs | _pairs(shapes, width)
    heads, upper = shapes.batch * shapes.kv_heads, sizes_of(shapes).upper_entries
    return specs | {
        "records": ArraySpec((*shapes.normalizer_shape, PULL + shapes.key_dim), sums),
        "gradients": ArraySpec(shapes.normalizer_shape, "int64"),
        "reach": ArraySpec(shapes.normalizer_shape, "int32"),
        "extents": ArraySpec((tiles_of(shapes), EXTENT), "int32"),
        "level_k": ArraySpec((heads, upper, shapes.key_dim), sums),
        "level_v": ArraySpec((heads, upper, -(-shapes.value_dim // COLUMNS) * COLUMNS), sums),
    }


def workspace_specs(operation: str, shapes: Shapes, width: int = 0) -> Specs:
    """List the arrays of an operation's workspace, by the names that kernels have for them."""
    if operation == "given_forward":
        return _table(shapes)
    if operation == "given_backward":
        return _backward(shapes, width)
    assert isinstance(shapes, Problem)
    if operation == "select":
        return _table(shapes) | _search(shapes, listed=True)
    if operation == "search_backward":
        return _backward(shapes, shapes.options.top_k)
    specs = _table(shapes) | _search(shapes, listed=not by_ranges(shapes))
    if count_parts(shapes) > 1:
        specs["weights"] = ArraySpec(shapes.normalizer_shape, shapes.sum_dtype)
    return specs | _history_sums(shapes) if shapes.options.history_mean else specs


def largest_sort(operation: str, shapes: Shapes, width: int = 0) -> Sort:
    """Say what the largest sort of an operation sorts."""
    if operation == "given_forward":
        return Sort(0)
    if operation == "given_backward":
        return Sort(count_places(shapes, width))
    assert isinstance(shapes, Problem)
    if operation == "search_backward":
        return Sort(0 if by_ranges(shapes) else count_places(shapes, shapes.options.top_k))
    if shapes.options.search == "exact":
        return Sort(0)
    sizes = sizes_of(shapes)
    return Sort(shapes.batch * shapes.kv_heads * sizes.items, pairs=sizes.number_bits == 0)
