"""From queries and keys to a selection: what is launched, in which order, over which memory.

Nothing is allocated here and nothing waits: all memory is the caller's, and a stream's order is enough. The sort is a
library's: a stable radix sort of pairs on given bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.scalars import level_count, level_length
from zeta_ops.options import Problem

__all__ = [
    "SEQUENCE_BYTES",
    "Runner",
    "Sizes",
    "element_strides",
    "exact_workspace",
    "fill_args",
    "list_selected",
    "point_bytes",
    "select",
    "select_exactly",
    "sizes_of",
    "workspace",
]

BLOCK = 32  # entries per value of the fine skip index
COARSE = BLOCK * BLOCK
UNIT = 512  # sorted keys per warp where levels are made
THREADS = 256
LEVEL_BITS = 5
SEQUENCE_BYTES = 432  # `Sequence` in `kernels/rows.cuh`


class Runner(Protocol):
    """What executes the steps of a call, in order."""

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        """Launch a kernel; it takes a copy of `args`."""

    def sort(self, keys: int, values: int, sorted_keys: int, sorted_values: int, count: int, bits: int) -> None:
        """Sort uint64 keys with int32 values stably by the lowest `bits` bits; all addresses of arrays of `count`."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that follow from shapes and options, and how codes share 64 bits with rows and levels.

    Attributes
    ----------
    sequences : int
        Of one batch item; 1 where nothing is packed.
    entries : int
        Capacity of entries for each key head of a batch item, over all levels and sequences.
    units : int
        Capacity of units of sorted keys, likewise.
    row_shift : int
        Where the row stands above a key's code; 64 if both do not fit into 64 bits.
    code_bits, row_bits : int
    query_bits : int
        Leading bits of a query's code by which queries are sorted: their order is for locality alone.
    """

    sequences: int
    entries: int
    units: int
    row_shift: int
    code_bits: int
    row_bits: int
    query_bits: int

    @property
    def coarse(self) -> int:
        """Values of the coarse skip index for each key head of a batch item."""
        return -(-self.entries // COARSE)


def sizes_of(problem: Problem) -> Sizes:
    """Work out the sizes of a problem."""
    packed = problem.num_sequences is not None
    sequences = max(1, problem.num_sequences or 1)
    levels = level_count(problem.k_len, problem.options.window)
    if packed:  # the lengths are on the device: each level of each sequence is at most one key and a block too long
        entries = 2 * problem.k_len + sequences * levels * (BLOCK + 1)
        units = problem.k_len // UNIT + sequences
    else:
        entries = sum(-(-level_length(problem.k_len, level) // BLOCK) * BLOCK for level in range(levels))
        units = -(-problem.k_len // UNIT)
    code_bits = problem.key_dim * problem.options.bits
    row_bits = (problem.batch * problem.kv_heads * sequences - 1).bit_length()
    room = 64 - row_bits - LEVEL_BITS
    per_row = (max(1, problem.q_len * problem.group_size) - 1).bit_length()
    return Sizes(
        sequences=sequences,
        entries=-(-entries // BLOCK) * BLOCK,
        units=units,
        row_shift=code_bits if code_bits + row_bits <= 64 and code_bits < 64 else 64,
        code_bits=code_bits,
        row_bits=row_bits,
        query_bits=min(code_bits, room, per_row + 2),  # two more than would tell evenly spread queries apart
    )


def point_bytes(coordinate_dtype: str, key_dim: int, num_curves: int) -> int:
    """Size of an entry: `Point` in `kernels/rows.cuh`."""
    size = 8 if coordinate_dtype == "float64" else 4
    key = -(-(size * key_dim + 4) // size) * size
    return -(-(key + 4 * (num_curves - 1)) // 16) * 16


def workspace(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays of a search by the names of their pointers in `Args`."""
    sizes, curves = sizes_of(problem), problem.options.num_curves
    heads = problem.batch * problem.kv_heads
    keys, queries = problem.k_shape[:-1], problem.normalizer_shape
    cuts = queries if problem.options.reranks else (0,)
    return {
        "sequences": _sequences(sizes),
        "key_codes": ArraySpec(keys, "uint64"),
        "key_places": ArraySpec(keys, "int32"),
        "sorted_codes": ArraySpec(keys, "uint64"),
        "sorted_places": ArraySpec(keys, "int32"),
        "query_codes": ArraySpec(queries, "uint64"),
        "query_places": ArraySpec(queries, "int32"),
        "sorted_query_codes": ArraySpec(queries, "uint64"),
        "level_counts": ArraySpec((heads, sizes.units, 32), "int32"),
        "entry_codes": ArraySpec((heads, sizes.entries), "uint64"),
        "entry_ranks": ArraySpec((curves, heads, sizes.entries if curves > 1 else 0), "int32"),
        "entry_positions": ArraySpec((curves, heads, sizes.entries), "int32"),
        "points": ArraySpec(
            (curves, heads, sizes.entries, point_bytes(problem.coordinate_dtype, problem.key_dim, curves)), "uint8"
        ),
        "fine": ArraySpec((curves, heads, sizes.entries // BLOCK), "int32"),
        "coarse": ArraySpec((curves, heads, sizes.coarse), "int32"),
        "slots": ArraySpec((curves, *queries), "int32"),
        "ranges": ArraySpec((curves, *queries, 2), "int32"),
        "cut_distance": ArraySpec(cuts, problem.coordinate_dtype),
        "cut_position": ArraySpec(cuts, "int32"),
    }


def exact_workspace(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays of an exact search."""
    return {"sequences": _sequences(sizes_of(problem))}


def _sequences(sizes: Sizes) -> ArraySpec:
    return ArraySpec((sizes.sequences, SEQUENCE_BYTES), "uint8")


def element_strides(array: Any) -> tuple[int, int, int]:
    """Strides of `(batch, heads, length, dim)` in elements, without the last one, which has to be 1."""
    batch, head, token, _ = (stride // array.dtype.itemsize for stride in array.strides)
    return batch, head, token


def fill_args(
    problem: Problem,
    args: Args,
    addresses: dict[str, int],
    q_strides: tuple[int, int, int],
    k_strides: tuple[int, int, int],
) -> None:
    """Write sizes and options of a problem, the addresses of arrays by name, and strides as `element_strides`."""
    args.q_batch_stride, args.q_head_stride, args.q_stride = q_strides
    args.k_batch_stride, args.k_head_stride, args.k_stride = k_strides
    options, sizes = problem.options, sizes_of(problem)
    lo, hi = options.bounds or (0.0, 1.0)
    for name, value in {
        "q_offset": options.q_offset,
        "entries": sizes.entries,
        "batch": problem.batch,
        "q_heads": problem.q_heads,
        "kv_heads": problem.kv_heads,
        "q_len": problem.q_len,
        "k_len": problem.k_len,
        "num_sequences": sizes.sequences,
        "units": sizes.units,
        "top_k": options.top_k,
        "window": options.window,
        "num_curves": options.num_curves,
        "causal": options.causal,
        "chunk_size": options.chunk_size,
        "include_self": options.include_self,
        "local_window": options.local_window,
        "bits": options.bits,
        "linear": options.bounds is not None,
        "row_shift": sizes.row_shift,
        "query_shift": sizes.code_bits - sizes.query_bits,
        "level_shift": sizes.query_bits,
        "lo": lo,
        "scale": 2**27 / (hi - lo),
    }.items():
        setattr(args, name, value)
    for name, address in addresses.items():
        if hasattr(args, name):
            setattr(args, name, address)


def select(problem: Problem, args: Args, addresses: dict[str, int], run: Runner) -> None:
    """Launch a search along the curves: it leaves points, skip index, slots, ranges and cuts."""
    sizes, curves = sizes_of(problem), problem.options.num_curves
    heads = problem.batch * problem.kv_heads
    keys, queries = heads * problem.k_len, prod(problem.normalizer_shape)
    if queries == 0:
        return
    run.launch("rows_kernel", 1, THREADS, args)
    for curve in range(curves):
        args.curve = curve
        if keys > 0:
            _sort_keys(sizes, args, addresses, run, keys)
            _launch(run, "level_count_kernel", 32 * heads * sizes.units, args)
            _launch(run, "level_scan_kernel", 32 * heads * sizes.sequences, args)
            _launch(run, "level_fill_kernel", 32 * heads * sizes.units, args)
            run.launch("points_kernel", heads * sizes.coarse, COARSE, args)
        _launch(run, "encode_queries_kernel", queries, args)
        bits = sizes.query_bits + LEVEL_BITS + sizes.row_bits
        slots = addresses["slots"] + 4 * curve * queries
        unsorted = addresses["query_codes"], addresses["query_places"]
        run.sort(*unsorted, addresses["sorted_query_codes"], slots, queries, bits)
        _launch(run, "ranges_kernel", queries, args)
    args.curve = 0
    if problem.options.reranks:
        _launch(run, "cut_kernel", 32 * queries, args)


def list_selected(problem: Problem, args: Args, run: Runner) -> None:
    """Launch what writes the selection that `select` left into `indices`."""
    queries = prod(problem.normalizer_shape)
    if queries > 0:
        _launch(run, "list_kernel", 32 * queries, args)


def select_exactly(problem: Problem, args: Args, run: Runner) -> None:
    """Launch an exact search, which writes `indices`."""
    queries = prod(problem.normalizer_shape)
    if queries == 0:
        return
    run.launch("rows_kernel", 1, THREADS, args)
    _launch(run, "exact_kernel", 32 * queries, args)


def _sort_keys(sizes: Sizes, args: Args, addresses: dict[str, int], run: Runner, keys: int) -> None:
    """Sort keys by (row, code). Where both are wider than 64 bits it takes two sorts: by code, then by row."""
    _launch(run, "encode_keys_kernel", keys, args)
    unsorted = addresses["key_codes"], addresses["key_places"]
    into = addresses["sorted_codes"], addresses["sorted_places"]
    if sizes.row_shift < 64 or sizes.row_bits == 0:
        run.sort(*unsorted, *into, keys, min(64, sizes.code_bits + sizes.row_bits))
        return
    run.sort(*unsorted, *into, keys, sizes.code_bits)
    _launch(run, "rows_of_sorted_kernel", keys, args)
    run.sort(*into, *unsorted, keys, sizes.row_bits)
    _launch(run, "gather_sorted_kernel", keys, args)


def _launch(run: Runner, kernel: str, threads: int, args: Args) -> None:
    run.launch(kernel, -(-threads // THREADS), THREADS, args)
