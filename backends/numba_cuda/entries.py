"""Entries: coordinates of keys in the order of entries, and the skip index, which says what a walk may jump over."""

from __future__ import annotations

from functools import cache

from numba import cuda

from zeta_ops.backends.numba_cuda.compiling import Kernel, kernel
from zeta_ops.backends.numba_cuda.constants import (
    BATCH,
    BLOCK,
    ENTRIES,
    FIRST_ENTRY,
    K_STRIDES,
    KEYS,
    KV_HEADS,
    LEVEL_ENTRY,
    LEVELS,
    NO_KEY,
    START,
)
from zeta_ops.backends.numba_cuda.layout import find_line, key_offset, level_length

__all__ = ["least_kernel", "points_kernel"]


@cache
def points_kernel(dims: int) -> Kernel:
    """Make the kernel for keys of `dims` coordinates."""

    @kernel
    def points_kernel(table, k, positions, points):
        # One thread an entry. Padding entries, between levels and at the end, get a position that nobody sees.
        n = cuda.grid(1)
        if n >= table[BATCH] * table[KV_HEADS] * table[ENTRIES]:
            return
        head_row = n // table[ENTRIES]
        entry = n - head_row * table[ENTRIES]
        line = find_line(table, FIRST_ENTRY, entry)
        entry -= table[line + FIRST_ENTRY]
        level = 0
        while level + 1 < table[line + LEVELS] and table[line + LEVEL_ENTRY + level + 1] <= entry:
            level += 1
        if entry - table[line + LEVEL_ENTRY + level] < level_length(table[line + KEYS], level):
            at = key_offset(table, K_STRIDES, head_row, table[line + START] + positions[n])
            for c in range(dims):
                points[n * dims + c] = k[at + c]
        else:
            positions[n] = NO_KEY
            for c in range(dims):
                points[n * dims + c] = 0

    return points_kernel


@kernel
def least_kernel(values, least, count):
    """Find the least of each 32 values: of positions, then of what this found of them."""
    n = cuda.grid(1)
    if n >= count:
        return
    smallest = values[n * BLOCK]
    for place in range(n * BLOCK + 1, (n + 1) * BLOCK):
        smallest = min(smallest, values[place])
    least[n] = smallest
