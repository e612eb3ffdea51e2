"""Codes sorted by row, with the place each came from. NumPy's sort does it: it is vectorised and well kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zeta_ops.backends.numba.compiling import compiled
from zeta_ops.backends.numba.parallel import for_each, next_unit, run

__all__ = ["sort_rows"]

Array = npt.NDArray[Any]

STRETCH = 8192  # codes per unit of work


def sort_rows(codes: Array, starts: Array, lengths: Array) -> tuple[Array, Array]:
    """Sort each row's codes by (code, place in the row).

    Codes of 32 bits are sorted as one 64-bit number with the place below the code, which needs no stable
    sort and moves both at once; wider codes take a stable argsort.

    Returns
    -------
    codes, places : ndarray
        The sorted codes, and for each its place in its row, int32.
    """
    rows = [slice(start, start + length) for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]
    places = np.empty(len(codes), np.int32)
    in_order = np.empty_like(codes)
    if codes.dtype == np.uint32:
        joined = np.empty(len(codes), np.uint64)
        row_starts = np.repeat(starts, lengths)
        run(join_kernel, -(-len(codes) // STRETCH), codes, row_starts, joined)
        for_each(lambda row: joined[row].sort(), rows)
        run(split_kernel, -(-len(codes) // STRETCH), joined, in_order, places)
    else:

        def sort(row: slice) -> None:
            order = np.argsort(codes[row], kind="stable")
            places[row] = order
            in_order[row] = codes[row][order]

        for_each(sort, rows)
    return in_order, places


@compiled
def join_kernel(counter, units, codes, row_starts, joined):
    """Put each code above its place in its row."""
    unit = next_unit(counter)
    while unit < units:
        for n in range(unit * STRETCH, min((unit + 1) * STRETCH, len(codes))):
            joined[n] = (np.uint64(codes[n]) << np.uint64(32)) | np.uint64(n - row_starts[n])
        unit = next_unit(counter)


@compiled
def split_kernel(counter, units, joined, codes, places):
    """Take codes and places apart again."""
    unit = next_unit(counter)
    while unit < units:
        for n in range(unit * STRETCH, min((unit + 1) * STRETCH, len(joined))):
            codes[n] = np.uint32(joined[n] >> np.uint64(32))
            places[n] = np.int32(joined[n] & np.uint64(0xFFFFFFFF))
        unit = next_unit(counter)
