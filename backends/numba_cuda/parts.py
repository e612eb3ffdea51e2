"""What all parts of attention share: how parts of one query's attention become one, and what a kernel is made for.

A query's attention is a sum over disjoint parts: the history token, the local window, the selection (or given keys).
Forward, each part leaves its own mean of values in `out` and the sum of its weights in `normalizer`, merged with those
of the parts before it. Backward, each part adds to the query's *pull*, which needs no D; the last part makes gradients
of it. At the keys, each part adds to `sum_k` and `sum_v`, and the last one writes gradients.

Pull of a query, with p = u / Z: the sum of p (g . v), which is D in the end; sums of u p (g . v) and u p; and of
u p (g . v) (q - k) and u p (q - k). The gradients follow when D is known: e = -u p (g . v - D), grad_q is the sum of
2 e (q - k), and the gradient of gamma^2 that of e. A product g . v comes in panels of columns, from several threads:
sums take each for itself, and what has no product in it counts with the first panel.

A *team* of threads has a query, or a key: each of them holds a panel of 8 columns of its values. They find and weigh
together what belongs to it (see `lists`). Where sums of a team's threads have to meet, they do in shared memory, once
at the end.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from zeta_ops.backends.numba_cuda.compiling import SIMULATED, device
from zeta_ops.backends.numba_cuda.constants import BLOCK, COLUMNS, PULL
from zeta_ops.backends.numba_cuda.values import load_columns, store_columns, value_kind
from zeta_ops.options import Shapes

__all__ = [
    "MOST_TEAM",
    "THREADS",
    "Made",
    "add_up_team",
    "blocks_of",
    "clear",
    "leave_for_team",
    "made_for",
    "panels_of",
    "write_part",
    "write_query_gradients",
]

THREADS = 8 if SIMULATED else 128  # of a block, at most: the simulator starts a thread of the system for each
MOST_TEAM = min(32, THREADS)  # threads: wider values take several passes


class Made(NamedTuple):
    """What kernels of attention are compiled for.

    Attributes
    ----------
    dims : int
        Coordinates of a point.
    coordinate, sums : type
        Of points and of sums, as NumPy's.
    kind : int
        How values are kept.
    team : int
        Threads that have an item together, each a panel of its columns: a power of two, so that teams fill warps.
        Blocks have `THREADS` threads: along x a team, along y the items.
    """

    dims: int
    coordinate: Any
    sums: Any
    kind: int
    team: int


def blocks_of(made: Made, blocks: int) -> int:
    """Count the blocks that shall fit on a multiprocessor: fewer where points and sums take more registers."""
    return blocks if made.sums is np.float32 and made.dims <= 4 else 2


@lru_cache(maxsize=256)
def made_for(shapes: Shapes) -> Made:
    """Find what kernels a call needs."""
    coordinate, sums = (
        np.float64 if x == "float64" else np.float32 for x in (shapes.coordinate_dtype, shapes.sum_dtype)
    )
    # So many at least that the items of a block of threads lie in one block of entries.
    panels = max(-(-shapes.value_dim // COLUMNS), THREADS // BLOCK, 1)
    team = min(1 << (panels - 1).bit_length(), MOST_TEAM)
    return Made(shapes.key_dim, coordinate, sums, value_kind(shapes.value_dtype), team)


@device
def panels_of(value_dim):
    """Panels of a row of values; one where there are no columns, since weights belong to the first panel."""
    return max((value_dim + COLUMNS - 1) // COLUMNS, 1)


@device
def clear(columns, count):
    """Set all to 0."""
    for c in range(count):
        columns[c] = 0


@device
def leave_for_team(numbers, count, shared, thread):
    """Leave numbers of a thread of the block for the first of its team; a barrier has to follow."""
    for n in range(count):
        shared[thread * count + n] = numbers[n]


@device
def add_up_team(numbers, count, shared, thread, team):
    """Add to the numbers of a team's first thread what the others left."""
    for other in range(1, team):
        for n in range(count):
            numbers[n] += shared[(thread + other) * count + n]


@device
def write_part(out, number, panel, dim, kind, mean, weight, prior, earlier, before):
    """Write a panel of one part's mean, merged with the parts before; return the weight of all of them.

    Of the parts before, the mean is in `out` and the weight in `earlier`, which is another array than that in which
    this part's weight is left: other threads of the team may not have read it yet. `before` is scratch.
    """
    weights = weight
    if prior:
        weights = earlier[number] + weight
        load_columns(out, number * dim, panel * COLUMNS, dim, kind, before)
        for c in range(COLUMNS):
            if weights == 0:
                mean[c] = 0
            else:
                mean[c] = mean[c] * (weight / weights) + before[c] * (earlier[number] / weights)
    store_columns(out, number * dim, panel * COLUMNS, dim, kind, mean)
    return weights


@device
def write_query_gradients(number, pull, pulls, prior, dims, delta, squares, grad_q):
    """Complete the gradients of a query with its last part."""
    size = PULL + 2 * dims
    if prior:
        for n in range(size):
            pull[n] += pulls[number * size + n]
    delta[number] = pull[0]
    squares[number] = pull[0] * pull[2] - pull[1]
    for c in range(dims):
        half = pull[0] * pull[PULL + dims + c] - pull[PULL + c]
        grad_q[number * dims + c] = half + half
