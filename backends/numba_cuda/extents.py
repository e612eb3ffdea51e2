"""What tiles of 16 slots may select, for those who stand at the keys and look for queries.

For each tile the least L, the greatest R and the greatest t of its slots; and along the row, the greatest R up to the
tile and the least L from it on, which never fall: by these an entry finds the tiles that can meet it.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from zeta_ops.backends.numba_cuda.compiling import device, kernel
from zeta_ops.backends.numba_cuda.constants import (
    EXTENT,
    GROUP,
    LEAST_LEFT,
    LEFT,
    LINE,
    MOST_RIGHT,
    NO_KEY,
    NUMBERS,
    QUERIES,
    RIGHT,
    SEQUENCES,
    TILE,
    VISIBLE,
)
from zeta_ops.backends.numba_cuda.layout import first_slot

__all__ = ["SCAN", "extents_kernel", "extents_scan_kernel", "first_tile", "tiles_in_row"]

SCAN = 256  # segments of a row's tiles that are scanned at once


@device
def first_tile(table, head_row, line):
    """First of a row's tiles, such that each row has its own."""
    sequence = (line - NUMBERS) // LINE
    return first_slot(table, head_row, line) // TILE + head_row * table[SEQUENCES] + sequence


@device
def tiles_in_row(table, line):
    """Count the tiles of a row."""
    return (table[line + QUERIES] * table[GROUP] + TILE - 1) // TILE


@kernel
def extents_kernel(table, left, right, reach, extents, blocks):
    """Find the extent of each tile: `blocks` blocks for each row."""
    row_number = cuda.blockIdx.x // blocks
    head_row = row_number // table[SEQUENCES]
    line = NUMBERS + (row_number - head_row * table[SEQUENCES]) * LINE
    slots = table[line + QUERIES] * table[GROUP]
    row = first_slot(table, head_row, line)
    begin = (cuda.blockIdx.x - row_number * blocks) * cuda.blockDim.x + cuda.threadIdx.x
    for tile in range(begin, tiles_in_row(table, line), blocks * cuda.blockDim.x):
        least, greatest, seen = NO_KEY, 0, 0
        for slot in range(row + tile * TILE, row + min((tile + 1) * TILE, slots)):
            if left[slot] < right[slot]:
                least = min(least, left[slot])
                greatest = max(greatest, right[slot])
                seen = max(seen, reach[slot])
        extent = (first_tile(table, head_row, line) + tile) * EXTENT
        extents[extent + LEFT] = least
        extents[extent + RIGHT] = greatest
        extents[extent + VISIBLE] = seen


@kernel
def extents_scan_kernel(table, extents):
    """Find the greatest R up to each tile, and the least L from it on. One block a row, a thread a segment."""
    most = cuda.shared.array(SCAN, np.int32)
    least = cuda.shared.array(SCAN, np.int32)
    head_row = cuda.blockIdx.x // table[SEQUENCES]
    line = NUMBERS + (cuda.blockIdx.x - head_row * table[SEQUENCES]) * LINE
    first, tiles = first_tile(table, head_row, line), tiles_in_row(table, line)
    each = (tiles + SCAN - 1) // SCAN
    for segment in range(cuda.threadIdx.x, SCAN, cuda.blockDim.x):
        right, left = 0, NO_KEY
        for tile in range(first + segment * each, first + min((segment + 1) * each, tiles)):
            right = max(right, extents[tile * EXTENT + RIGHT])
            left = min(left, extents[tile * EXTENT + LEFT])
        most[segment] = right
        least[segment] = left
    cuda.syncthreads()
    for segment in range(cuda.threadIdx.x, SCAN, cuda.blockDim.x):
        right, left = 0, NO_KEY
        for before in range(segment):
            right = max(right, most[before])
        for after in range(segment + 1, SCAN):
            left = min(left, least[after])
        begin, end = first + segment * each, first + min((segment + 1) * each, tiles)
        for tile in range(begin, end):
            right = max(right, extents[tile * EXTENT + RIGHT])
            extents[tile * EXTENT + MOST_RIGHT] = right
        for tile in range(end - 1, begin - 1, -1):
            left = min(left, extents[tile * EXTENT + LEFT])
            extents[tile * EXTENT + LEAST_LEFT] = left
