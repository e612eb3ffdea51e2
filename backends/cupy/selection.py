"""From queries and keys to a selection: what is launched, in which order, over which memory.

Nothing is allocated here and nothing waits: all memory is the caller's, and a stream's order is enough. The sort is a
library's: a stable radix sort of pairs on given bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Protocol

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.scalars import level_count
from zeta_ops.options import Problem

__all__ = [
    "BLOCK",
    "SEQUENCE_BYTES",
    "THREADS",
    "Runner",
    "Sizes",
    "fill_bounds",
    "fill_sizes",
    "find_sequences",
    "history_chunks",
    "launch_threads",
    "point_bytes",
    "select",
    "select_exactly",
    "selection_specs",
    "sequences",
    "sizes_of",
    "workspace",
]

BLOCK = 32  # entries per value of the fine skip index
COARSE = BLOCK * BLOCK
MAX_LEVELS = 32
HISTORY_CHUNK = 128  # tokens
UNIT = 512  # sorted keys per warp where levels are made
THREADS = 256
LEVEL_BITS = 5
SEQUENCE_BYTES = 432  # `Sequence` in `kernels/rows.cuh`


class Runner(Protocol):
    """What executes the steps of a call, in order."""

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        """Launch a kernel; it takes a copy of `args`."""

    def sort(
        self,
        keys: int,
        values: int,
        sorted_keys: int,
        sorted_values: int,
        count: int,
        bits: int,
        dtype: str = "uint64",
    ) -> None:
        """Sort keys with int32 values stably by the lowest `bits` bits; all addresses of arrays of `count`."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that follow from shapes and options, and how codes share 64 bits with rows and levels.

    Attributes
    ----------
    sequences : int
        Of one batch item; 1 where nothing is packed.
    entries : int
        Capacity of entries for each key head of a batch item, over all levels and sequences.
    upper_entries : int
        Likewise, without level 0.
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
    upper_entries: int
    units: int
    row_shift: int
    code_bits: int
    row_bits: int
    query_bits: int

    @property
    def coarse(self) -> int:
        """Values of the coarse skip index for each key head of a batch item."""
        return -(-self.entries // COARSE)


def num_sequences(problem: Problem) -> int:
    """Count the sequences of a batch item: 1 where nothing is packed."""
    return max(1, problem.num_sequences or 1)


def history_chunks(problem: Problem) -> int:
    """Bound the chunks of tokens of each key head of a batch item; see `kernels/history.cuh`."""
    return max(problem.q_len, problem.k_len) // HISTORY_CHUNK + num_sequences(problem)


def entry_capacity(problem: Problem) -> int:
    """Bound the entries of each key head of a batch item, over all levels and sequences: a multiple of 32.

    The sizes may be symbols of a tracer: arithmetic alone adds no conditions on them.
    """
    if problem.num_sequences is None:
        levels = MAX_LEVELS
    else:  # the lengths are on the device: each level of each sequence is at most one key and a block too long
        levels = num_sequences(problem) * level_count(problem.k_len, problem.options.window)
    return (2 * problem.k_len + levels * (BLOCK + 1) + BLOCK - 1) // BLOCK * BLOCK


@lru_cache(maxsize=256)
def sizes_of(problem: Problem) -> Sizes:
    """Work out the sizes of a problem."""
    sequences = num_sequences(problem)
    code_bits = problem.key_dim * problem.options.bits
    row_bits = (problem.batch * problem.kv_heads * sequences - 1).bit_length()
    room = 64 - row_bits - LEVEL_BITS
    per_row = (max(1, problem.q_len * problem.group_size) - 1).bit_length()
    entries = entry_capacity(problem)
    return Sizes(
        sequences=sequences,
        entries=entries,
        upper_entries=entries - problem.k_len,
        units=problem.k_len // UNIT + sequences,
        row_shift=code_bits if code_bits + row_bits <= 64 and code_bits < 64 else 64,
        code_bits=code_bits,
        row_bits=row_bits,
        query_bits=min(code_bits, room, per_row + 2),  # two more than would tell evenly spread queries apart
    )


def point_bytes(coordinate_dtype: str, key_dim: int) -> int:
    """Size of an entry: `Point` in `kernels/rows.cuh`."""
    size = 8 if coordinate_dtype == "float64" else 4
    return -(-(size * key_dim + 4) // 16) * 16


def workspace(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays that a search needs while it runs, by the names of their pointers in `Args`."""
    sizes, heads = sizes_of(problem), problem.batch * problem.kv_heads
    keys, queries = problem.k_shape[:-1], problem.normalizer_shape
    return {
        **sequences(problem),
        "key_codes": ArraySpec(keys, "uint64"),
        "key_places": ArraySpec(keys, "int32"),
        "sorted_codes": ArraySpec(keys, "uint64"),
        "sorted_places": ArraySpec(keys, "int32"),
        "query_codes": ArraySpec(queries, "uint64"),
        "query_places": ArraySpec(queries, "int32"),
        "sorted_query_codes": ArraySpec(queries, "uint64"),
        "level_counts": ArraySpec((heads, sizes.units, MAX_LEVELS), "int32"),
        "entry_codes": ArraySpec((heads, sizes.entries), "uint64"),
        "entry_positions": ArraySpec((heads, sizes.entries), "int32"),
    }


def selection_specs(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays that a search leaves, by the names of their pointers in `Args`; `name.c` is that of curve c."""
    entries, front = entry_capacity(problem), (problem.batch, problem.kv_heads)
    point = point_bytes(problem.coordinate_dtype, problem.key_dim)
    specs: dict[str, ArraySpec] = {}
    for curve in range(problem.options.num_curves):
        specs |= {
            f"points.{curve}": ArraySpec((*front, entries, point), "uint8"),
            f"fine.{curve}": ArraySpec((*front, entries // BLOCK), "int32"),
            f"coarse.{curve}": ArraySpec((*front, -(-entries // COARSE)), "int32"),
            f"slots.{curve}": ArraySpec(problem.normalizer_shape, "int32"),
            f"ranges.{curve}": ArraySpec((*problem.normalizer_shape, 2), "int32"),
        }
    return specs


def sequences(problem: Problem) -> dict[str, ArraySpec]:
    """List the table of sequences, which every kernel reads that searches."""
    return {"sequences": ArraySpec((num_sequences(problem), SEQUENCE_BYTES), "uint8")}


def fill_sizes(problem: Problem, args: Args) -> None:
    """Write the sizes and options of a problem that searches."""
    options, sizes = problem.options, sizes_of(problem)
    fill_bounds(options.bounds, args)
    for name, value in {
        "q_offset": options.q_offset,
        "entries": sizes.entries,
        "upper_entries": sizes.upper_entries,
        "num_sequences": sizes.sequences,
        "units": sizes.units,
        "history_chunks": history_chunks(problem),
        "width": options.top_k,
        "top_k": options.top_k,
        "window": options.window,
        "num_curves": options.num_curves,
        "causal": options.causal,
        "chunk_size": options.chunk_size,
        "include_self": options.include_self,
        "local_window": options.local_window,
        "bits": options.bits,
        "row_shift": sizes.row_shift,
        "query_shift": sizes.code_bits - sizes.query_bits,
        "level_shift": sizes.query_bits,
    }.items():
        setattr(args, name, value)


def fill_bounds(bounds: tuple[float, float] | None, args: Args) -> None:
    """Write how coordinates are quantised."""
    lo, hi = bounds or (0.0, 1.0)
    args.linear, args.lo, args.scale = bounds is not None, lo, 2**27 / (hi - lo)


def find_sequences(args: Args, run: Runner) -> None:
    """Launch what writes the table of sequences."""
    run.launch("rows_kernel", 1, THREADS, args)


def select(problem: Problem, args: Args, run: Runner) -> None:
    """Launch a search along the curves, after `find_sequences`: it leaves what `selection_specs` lists."""
    sizes, curves = sizes_of(problem), problem.options.num_curves
    heads = problem.batch * problem.kv_heads
    keys, queries = heads * problem.k_len, prod(problem.normalizer_shape)
    for curve in range(curves):
        args.curve = curve
        if keys > 0:
            _sort_keys(sizes, args, run, keys)
            launch_threads(run, "level_count_kernel", 32 * heads * sizes.units, args)
            launch_threads(run, "level_scan_kernel", 32 * heads * sizes.sequences, args)
            launch_threads(run, "level_fill_kernel", 32 * heads * sizes.units, args)
        if heads > 0:
            run.launch("points_kernel", heads * sizes.coarse, COARSE, args)
        if queries == 0:
            continue
        launch_threads(run, "encode_queries_kernel", queries, args)
        bits = sizes.query_bits + LEVEL_BITS + sizes.row_bits
        slots = args.slots[curve]
        run.sort(args.query_codes, args.query_places, args.sorted_query_codes, slots, queries, bits)
        launch_threads(run, "ranges_kernel", queries, args)
    args.curve = 0


def select_exactly(problem: Problem, args: Args, run: Runner) -> None:
    """Launch an exact search, after `find_sequences`: it writes `indices (batch, q_heads, q_len, top_k)`."""
    queries = prod(problem.normalizer_shape)
    if queries == 0:
        return
    launch_threads(run, "exact_kernel", 32 * queries, args)


def launch_threads(run: Runner, kernel: str, threads: int, args: Args) -> None:
    """Launch a kernel on at least so many threads, if on any."""
    if threads > 0:
        run.launch(kernel, -(-threads // THREADS), THREADS, args)


def _sort_keys(sizes: Sizes, args: Args, run: Runner, keys: int) -> None:
    """Sort keys by (row, code). Where both are wider than 64 bits it takes two sorts: by code, then by row."""
    launch_threads(run, "encode_keys_kernel", keys, args)
    unsorted, into = (args.key_codes, args.key_places), (args.sorted_codes, args.sorted_places)
    if sizes.row_shift < 64 or sizes.row_bits == 0:
        run.sort(*unsorted, *into, keys, min(64, sizes.code_bits + sizes.row_bits))
        return
    run.sort(*unsorted, *into, keys, sizes.code_bits)
    launch_threads(run, "rows_of_sorted_kernel", keys, args)
    run.sort(*into, *unsorted, keys, sizes.row_bits)
    launch_threads(run, "gather_sorted_kernel", keys, args)
