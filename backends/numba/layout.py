"""Where everything lies: rows, dyadic levels, slots and units of work; from shapes and options alone.

A *row* is one key head of one sequence (of one batch item, or packed) with the queries of all heads that read
it. Dense batches are rows of equal length; packed sequences are rows like any other.
A row's keys stand in *entries*, sorted by (code, position), level after level; its queries in *slots*, level
after level, in code order within a level. A level's entries begin at a multiple of 32.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zeta_ops.backends.scalars import level_count, level_length
from zeta_ops.options import Problem
from zeta_ops.reference.selection import history_counts, visible_counts

__all__ = ["BLOCK", "MAX_LEVELS", "Layout", "Units", "layout_of"]

Array = npt.NDArray[Any]

BLOCK = 32  # entries per value of the fine skip index; 32 of these per value of the coarse one
MAX_LEVELS = 32

# Columns of the table of rows, all int64.
KEY = 0  # first key, counting the keys of all heads
NUM_KEYS = 1
QUERY = 2  # first query of the row's first head, counting the queries of all heads
NUM_QUERIES = 3  # of one head
SLOT = 4  # first slot
ENTRY = 5  # first entry
HEAD = 6  # first query head
BATCH = 7
KV_HEAD = 8
START = 9  # position along N where the sequence starts
LEVELS = 10  # number of levels
SLOT_BLOCK = 11  # first of the row's blocks of 32 slots
COLUMNS = 12


class Units(NamedTuple):
    """Units of work: unit i is the stretch from `start[i]` on of row `row[i]`."""

    row: Array
    start: Array


class Layout(NamedTuple):
    """Tables that the kernels read.

    Attributes
    ----------
    rows : ndarray (rows, COLUMNS) int64
    level_entry : ndarray (rows, MAX_LEVELS + 1) int64
        First entry of each level, counted from the row's first entry; unused levels have no entries.
    level_slot : ndarray (rows, MAX_LEVELS + 1) int64
        First slot of each level, counted from the row's first slot.
    seen : ndarray (Nq,) int32
        Numbers of visible keys `t(i)` along N, in each packed sequence.
    past : ndarray (Nq,) int32
        Numbers of keys in the history token's mean.
    group : int
        Query heads per key head.
    query_stride : int
        Queries from one head to the next.
    """

    rows: Array
    level_entry: Array
    level_slot: Array
    seen: Array
    past: Array
    group: int
    query_stride: int

    @property
    def entries(self) -> int:
        """Entries that are in use."""
        last = self.rows[-1] if len(self.rows) else None
        return 0 if last is None else int(last[ENTRY] + self.level_entry[-1, -1])

    @property
    def slot_blocks(self) -> int:
        """Blocks of 32 slots over all rows."""
        return int(sum(-(-self.group * row[NUM_QUERIES] // BLOCK) for row in self.rows))

    def local_positions(self, back: int, q_offset: int) -> Array:
        """Positions along N that lie `back` before each query's own, `(Nq,)` int32; -1 where there is no key."""
        positions = np.full(len(self.seen), -1, np.int32)
        of_one_head = self.rows[(self.rows[:, BATCH] == 0) & (self.rows[:, KV_HEAD] == 0)]
        for row in of_one_head:
            start, queries = row[START], row[NUM_QUERIES]
            in_sequence = q_offset + np.arange(queries) - back
            exists = (in_sequence >= 0) & (in_sequence < row[NUM_KEYS])
            positions[start : start + queries] = np.where(exists, start + in_sequence, -1)
        return positions

    def key_units(self, block: int) -> Units:
        """Cut every row's keys into blocks."""
        return _units(self.rows[:, NUM_KEYS], block)

    def slot_units(self, block: int) -> Units:
        """Cut every row's slots into blocks."""
        return _units(self.group * self.rows[:, NUM_QUERIES], block)

    def entry_units(self, block: int) -> Units:
        """Cut every row's entries, all levels together, into blocks."""
        return _units(self.level_entry[:, -1], block)

    def tile_units(self, level: int, block: int) -> Units:
        """Cut every row's entries of one level into blocks, starts counted from the row's first entry."""
        lengths = np.where(self.rows[:, LEVELS] > level, level_length(self.rows[:, NUM_KEYS], level), 0)
        units = _units(lengths, block)
        return Units(units.row, units.start + self.level_entry[units.row, level])


def _units(lengths: Array, block: int) -> Units:
    if len(lengths) > 0 and (lengths == lengths[0]).all():
        return _equal_units(len(lengths), int(lengths[0]), block)
    return _cut(lengths, block)


@lru_cache(maxsize=64)
def _equal_units(rows: int, length: int, block: int) -> Units:
    """Keep the units of dense batches: in short calls, making them anew takes as long as the kernels."""
    return _cut(np.full(rows, length, np.int64), block)


def _cut(lengths: Array, block: int) -> Units:
    counts = -(-lengths // block)
    row = np.repeat(np.arange(len(lengths), dtype=np.int64), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return Units(row, (np.arange(len(row), dtype=np.int64) - first) * block)


def layout_of(problem: Problem, cu_seqlens: Array | None) -> Layout:
    """Lay out a problem; for dense batches the result is kept for the next call."""
    return _dense_layout(problem) if cu_seqlens is None else _build(problem, cu_seqlens.tolist())


@lru_cache(maxsize=16)
def _dense_layout(problem: Problem) -> Layout:
    return _build(problem, None)


def _build(problem: Problem, borders: list[int] | None) -> Layout:
    options = problem.options
    if borders is None:
        spans = [(0, problem.q_len, problem.k_len)]
    else:
        spans = [(a, b - a, b - a) for a, b in pairwise(borders)]
    spans = [span for span in spans if span[1] > 0 and span[2] > 0]
    seen, past = np.zeros((2, problem.q_len), np.int32)
    entry_tables, slot_tables = np.zeros((2, len(spans), MAX_LEVELS + 1), np.int64)
    levels = np.zeros(len(spans), np.int64)
    for s, (start, queries, keys) in enumerate(spans):
        seen[start : start + queries] = visible_counts(queries, keys, options)
        past[start : start + queries] = history_counts(queries, keys, options)
        levels[s] = level_count(keys, options.window)
        lengths = level_length(keys, np.arange(levels[s]))
        entry_tables[s, 1 : levels[s] + 1] = np.cumsum(-(-lengths // BLOCK) * BLOCK)
        entry_tables[s, levels[s] + 1 :] = entry_tables[s, levels[s]]
        # Query i uses the last level whose length is at least t(i).
        level = np.maximum((lengths[None, :] >= seen[start : start + queries, None]).sum(axis=1) - 1, 0)
        counts = np.bincount(level, minlength=MAX_LEVELS) * problem.group_size
        slot_tables[s, 1:] = np.cumsum(counts)
    rows: Array = np.zeros((problem.batch, problem.kv_heads, len(spans), COLUMNS), np.int64)
    of_row = np.indices(rows.shape[:3])
    batch, head = of_row[0], of_row[1]
    starts, query_counts, key_counts = np.array(spans, np.int64).reshape(-1, 3).T
    rows[..., KEY] = (batch * problem.kv_heads + head) * problem.k_len + starts
    rows[..., NUM_KEYS] = key_counts
    rows[..., QUERY] = (batch * problem.q_heads + head * problem.group_size) * problem.q_len + starts
    rows[..., NUM_QUERIES] = query_counts
    rows[..., HEAD] = head * problem.group_size
    rows[..., BATCH] = batch
    rows[..., KV_HEAD] = head
    rows[..., START] = starts
    rows[..., LEVELS] = levels
    rows = rows.reshape(-1, COLUMNS)
    slots = problem.group_size * rows[:, NUM_QUERIES]
    place = of_row[2].reshape(-1)
    rows[:, SLOT] = np.cumsum(slots) - slots
    entries = entry_tables[place, -1]
    rows[:, ENTRY] = np.cumsum(entries) - entries
    blocks = -(-slots // BLOCK)
    rows[:, SLOT_BLOCK] = np.cumsum(blocks) - blocks
    return Layout(rows, entry_tables[place], slot_tables[place], seen, past, problem.group_size, problem.q_len)
