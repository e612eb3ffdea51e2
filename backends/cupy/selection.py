"""From queries and keys to a selection: what is launched, in which order, over which memory.

Nothing is allocated here and nothing waits: all memory is the caller's, and a stream's order is enough. Keys and
queries are sorted together, by a stable radix sort on the bits that are in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Protocol

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.radix_sort import Sort
from zeta_ops.backends.scalars import level_count
from zeta_ops.options import Problem

__all__ = [
    "BLOCK",
    "COARSE",
    "SEQUENCE_BYTES",
    "THREADS",
    "Runner",
    "Sizes",
    "entry_specs",
    "fill_bounds",
    "fill_sizes",
    "find_sequences",
    "history_chunks",
    "launch_blocks",
    "launch_threads",
    "point_bytes",
    "select",
    "select_exactly",
    "selection_specs",
    "sequences",
    "sizes_of",
    "slot_bytes",
    "sorted_together",
    "workspace",
]

BLOCK = 32  # entries per value of the fine skip index
COARSE = BLOCK * BLOCK
MAX_LEVELS = 32
HISTORY_CHUNK = 128  # tokens
UNIT = 2048  # sorted items per block where levels are made
THREADS = 256
LEVEL_THREADS = 512
ENCODE_THREADS = 512
ENCODE_ITEMS = 8 * ENCODE_THREADS  # per block
RADIX_BITS = 8  # of a pass of the sort, at most
RADIX = 2**RADIX_BITS
SORT_THREADS = RADIX
SORT_TILE = 11 * SORT_THREADS  # items of a block that sorts
MOST_SORTED = 2**30  # items of a search that is sorted by itself: `OF_TILE` in `kernels/sort.cu`
SEQUENCE_BYTES = 432  # `Sequence` in `kernels/rows.cuh`


class Runner(Protocol):
    """What executes the steps of a call, in order."""

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        """Launch a kernel; it takes a copy of `args`."""

    def sort_pairs(
        self, keys: int, values: int, sorted_keys: int, sorted_values: int, count: int, bits: int, dtype: str = "uint64"
    ) -> None:
        """Sort keys of a dtype with int32 values stably by the lowest `bits` bits; addresses of arrays of `count`."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that follow from shapes and options; "of each head" means each key head of a batch item.

    Attributes
    ----------
    sequences : int
        Of one batch item; 1 where nothing is packed.
    entries : int
        Capacity of entries of each head, over all levels and sequences.
    upper_entries : int
        Likewise, without level 0.
    searches : int
        Curves of all heads.
    items : int
        Keys and queries of each search, which are sorted together.
    units : int
        Capacity of units of sorted items of each search.
    levels : int
        Of a sequence at most.
    code_bits, row_bits : int
        The row is the sequence where each search is sorted by itself.
    row_shift : int
        Where the row stands above an item's code; 64 if there is no room for it.
    number_bits : int
        Bits of an item's number, which stands below its code and row; 0 if 64 bits have no room for it. If they have,
        each search is sorted by itself, else all are sorted together.
    encode_blocks : int
        Of each search.
    sort_passes : int
        0 where all searches are sorted together.
    level_words, state_words : int
        For counts of levels, and together with those of the sort; multiples of 4.
    """

    sequences: int
    entries: int
    upper_entries: int
    searches: int
    items: int
    units: int
    levels: int
    code_bits: int
    row_bits: int
    row_shift: int
    number_bits: int
    encode_blocks: int
    sort_passes: int
    level_words: int
    state_words: int

    @property
    def sorts_twice(self) -> bool:
        """Whether items are sorted by code first and then by row."""
        return self.row_shift == 64

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
    """Bound the entries of each key head of a batch item, over all levels and sequences: a multiple of 256.

    The sizes may be symbols of a tracer: arithmetic alone adds no conditions on them.
    """
    if problem.num_sequences is None:
        levels = MAX_LEVELS
    else:  # the lengths are on the device: each level of each sequence is at most one key and a block too long
        levels = num_sequences(problem) * level_count(problem.k_len, problem.options.window)
    several = 8 * BLOCK  # eight values of the skip index are read at once, and 96 entries beyond any of them
    return (2 * problem.k_len + levels * (BLOCK + 1) + 3 * BLOCK + several - 1) // several * several


@lru_cache(maxsize=256)
def sizes_of(problem: Problem) -> Sizes:
    """Work out the sizes of a problem."""
    sequences, searches = num_sequences(problem), problem.batch * problem.kv_heads * problem.options.num_curves
    items = problem.k_len + problem.q_len * problem.group_size
    code_bits, row_bits = problem.key_dim * problem.options.bits, (sequences - 1).bit_length()
    number_bits = max(1, (items - 1).bit_length())
    if code_bits + row_bits + number_bits > 64 or items > MOST_SORTED:
        row_bits, number_bits = (searches * sequences - 1).bit_length(), 0
    passes, tiles = -(-(code_bits + row_bits) // RADIX_BITS) if number_bits else 0, -(-items // SORT_TILE)
    entries, units = entry_capacity(problem), items // UNIT + sequences
    levels = level_count(problem.k_len, problem.options.window)
    level_words = -(-searches * units * levels * 2 // 4) * 4
    return Sizes(
        sequences=sequences,
        entries=entries,
        upper_entries=entries - problem.k_len,
        searches=searches,
        items=items,
        units=units,
        levels=levels,
        code_bits=code_bits,
        row_bits=row_bits,
        row_shift=code_bits if code_bits + row_bits <= 64 else 64,
        number_bits=number_bits,
        encode_blocks=max(1, -(-items // ENCODE_ITEMS)),
        sort_passes=passes,
        level_words=level_words,
        state_words=level_words + -(-searches * passes * (tiles * RADIX + 1) // 4) * 4,
    )


def sorted_together(problem: Problem) -> Sort:
    """Say what all searches along the curves sort together: nothing where each is sorted by itself."""
    sizes = sizes_of(problem)
    return Sort(0 if sizes.sort_passes else sizes.searches * sizes.items)


def point_bytes(coordinate_dtype: str, key_dim: int) -> int:
    """Size of an entry: `Point` in `kernels/rows.cuh`."""
    size = 8 if coordinate_dtype == "float64" else 4
    return -(-(size * key_dim + 4) // 16) * 16


def slot_bytes(coordinate_dtype: str, key_dim: int) -> int:
    """Size of a query in its slot: `Slot` in `kernels/rows.cuh`."""
    return -(-((8 if coordinate_dtype == "float64" else 4) * (key_dim + 1) + 16) // 16) * 16


def workspace(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays that a search needs while it runs, by the names of their pointers in `Args`."""
    sizes = sizes_of(problem)
    specs = sequences(problem)
    for name in ("", "sorted_"):
        specs[f"{name}items"] = ArraySpec((sizes.searches, sizes.items), "uint64")
        if not sizes.sort_passes:
            specs[f"{name}numbers"] = ArraySpec((sizes.searches, sizes.items), "int32")
    return {
        **specs,
        "state": ArraySpec((sizes.state_words,), "uint32"),
        "digit_counts": ArraySpec((sizes.searches, sizes.encode_blocks, sizes.sort_passes, RADIX), "int32"),
        "digit_starts": ArraySpec((sizes.sort_passes, sizes.searches, RADIX), "int32"),
        "slot_places": ArraySpec((problem.options.num_curves, *problem.normalizer_shape, 2), "int32"),
        "entry_positions": ArraySpec((sizes.searches, sizes.entries), "int32"),
    }


def selection_specs(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays that a search along one curve leaves, by the names of their pointers in `Args`."""
    slot = slot_bytes(problem.coordinate_dtype, problem.key_dim)
    return {**entry_specs(problem), "slots": ArraySpec((*problem.normalizer_shape, slot), "uint8")}


def entry_specs(problem: Problem) -> dict[str, ArraySpec]:
    """List the arrays of entries and of their skip index; `name.c` is that of curve c."""
    entries, front = entry_capacity(problem), (problem.batch, problem.kv_heads)
    point = point_bytes(problem.coordinate_dtype, problem.key_dim)
    specs: dict[str, ArraySpec] = {}
    for curve in range(problem.options.num_curves):
        specs |= {
            f"points.{curve}": ArraySpec((*front, entries, point), "uint8"),
            f"fine.{curve}": ArraySpec((*front, entries // BLOCK), "int32"),
            f"coarse.{curve}": ArraySpec((*front, -(-entries // COARSE)), "int32"),
        }
    return specs


def sequences(problem: Problem) -> dict[str, ArraySpec]:
    """List the table of sequences, which every kernel reads that searches."""
    return {"sequences": ArraySpec((num_sequences(problem), SEQUENCE_BYTES), "uint8")}


def fill_sizes(problem: Problem, args: Args) -> None:
    """Write the sizes and options of a problem that searches."""
    options, sizes = problem.options, sizes_of(problem)
    sorted_bits = sizes.code_bits + sizes.row_bits
    fill_bounds(options.bounds, args)
    for name, value in {
        "q_offset": options.q_offset,
        "entries": sizes.entries,
        "upper_entries": sizes.upper_entries,
        "num_sequences": sizes.sequences,
        "units": sizes.units,
        "levels": sizes.levels,
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
        "number_bits": sizes.number_bits,
        "row_shift": sizes.row_shift,
        "encode_blocks": sizes.encode_blocks,
        "sort_passes": sizes.sort_passes,
        "sorted_bits": sorted_bits,
        "digit_bits": -(-sorted_bits // max(1, sizes.sort_passes)),
        "level_words": sizes.level_words,
        "state_words": sizes.state_words,
        "largest_weight": 2.0**10 if problem.value_dtype == "float16" else 2.0**40,
    }.items():
        setattr(args, name, value)


def fill_bounds(bounds: tuple[float, float] | None, args: Args) -> None:
    """Write how coordinates are quantised."""
    lo, hi = bounds or (0.0, 1.0)
    args.linear, args.lo, args.scale = bounds is not None, lo, 2**27 / (hi - lo)


def find_sequences(args: Args, run: Runner) -> None:
    """Launch what writes the table of sequences, where no search along the curves does."""
    run.launch("rows_kernel", 1, THREADS, args)


def select(problem: Problem, args: Args, run: Runner) -> None:
    """Launch a search along the curves: it leaves windows by slots, or by queries for lists.

    What comes first writes the table of sequences, even if there is nothing to sort.
    """
    heads, sizes = problem.batch * problem.kv_heads, sizes_of(problem)
    launch_blocks(run, "encode_kernel", heads * sizes.encode_blocks, ENCODE_THREADS, args)
    if sizes.searches * sizes.items > 0:
        _sort(problem, args, run)
        run.launch("levels_kernel", sizes.searches * sizes.units, LEVEL_THREADS, args)
    of_keys = -(-heads * problem.k_len // THREADS) if args.key_order else 0
    launch_blocks(run, "skip_kernel", sizes.searches * sizes.coarse + of_keys, THREADS, args)
    ranges = "ranges_kernel" if args.slots else "listed_ranges_kernel"
    blocks = -(-problem.q_len * problem.group_size // THREADS)
    launch_blocks(run, ranges, sizes.searches * blocks, THREADS, args)


def select_exactly(problem: Problem, args: Args, run: Runner) -> None:
    """Launch an exact search: it writes `indices (batch, q_heads, q_len, top_k)`."""
    find_sequences(args, run)
    launch_threads(run, "exact_kernel", 32 * prod(problem.normalizer_shape), args)


def launch_blocks(run: Runner, kernel: str, blocks: int, threads: int, args: Args) -> None:
    """Launch blocks of threads, if any: an empty grid is an error in CUDA."""
    if blocks > 0:
        run.launch(kernel, blocks, threads, args)


def launch_threads(run: Runner, kernel: str, threads: int, args: Args) -> None:
    """Launch a kernel on at least so many threads, if on any."""
    launch_blocks(run, kernel, -(-threads // THREADS), THREADS, args)


def _sort(problem: Problem, args: Args, run: Runner) -> None:
    """Sort keys and queries by (row, code), and say in `args` where their order is; find places that curves share."""
    sizes = sizes_of(problem)
    if sizes.sort_passes:
        _sort_alone(sizes, args, run)
        return
    _sort_together(sizes, args, run)
    searches_before = problem.batch * problem.kv_heads * (problem.options.num_curves - 1)
    launch_threads(run, "places_kernel", searches_before * sizes.items, args)


def _sort_alone(sizes: Sizes, args: Args, run: Runner) -> None:
    """Sort each search by itself, from one array into the other and back."""
    args.order = args.sorted_items if sizes.sort_passes % 2 else args.items
    tiles = -(-sizes.items // SORT_TILE)
    run.launch("sort_kernel", sizes.searches * sizes.sort_passes * (1 + tiles), SORT_THREADS, args)


def _sort_together(sizes: Sizes, args: Args, run: Runner) -> None:
    """Sort all searches in one; where rows and codes are wider than 64 bits, by code first and then by row."""
    items = sizes.searches * sizes.items
    args.order = args.numbers if sizes.sorts_twice else args.sorted_numbers
    unsorted, into = (args.items, args.numbers), (args.sorted_items, args.sorted_numbers)
    run.sort_pairs(*unsorted, *into, items, sizes.code_bits + (0 if sizes.sorts_twice else sizes.row_bits))
    if sizes.sorts_twice:
        launch_threads(run, "rows_of_sorted_kernel", items, args)
        run.sort_pairs(*into, *unsorted, items, sizes.row_bits)
