"""Lists in shared memory: what the items of a block select, found and weighed by their teams.

An item is a slot, which selects entries, or an entry, which slots select. The threads of its team look at candidates
side by side, and write down what belongs to the item with all that does not depend on columns; then each of them walks
over the whole list with columns of its own. So a pair is weighed once, and no thread waits while others look for
something.

The order of a list is that of threads, then that in which a thread finds things.
"""

from __future__ import annotations

import numpy as np

from zeta_ops.backends.numba_cuda.arithmetic import comparable, reciprocal, squared_distance
from zeta_ops.backends.numba_cuda.compiling import SIMULATED, device
from zeta_ops.backends.numba_cuda.constants import COLUMNS, PULL
from zeta_ops.backends.numba_cuda.parts import THREADS, Made
from zeta_ops.backends.numba_cuda.values import load_columns

__all__ = [
    "ALIGNED",
    "add_products",
    "add_rows",
    "add_weighted",
    "list_room",
    "places_in_list",
    "tests_for",
    "weigh_key",
    "weigh_query",
]

ALIGNED = None if SIMULATED else 16  # bytes: pairs of four numbers are read at once
_MOST_TESTS = 8
_MOST_BYTES = 40 << 10  # of a block's lists


def tests_for(made: Made, numbers: int) -> int:
    """Say how many candidates a thread looks at before lists are read: a pair takes an offset and some numbers."""
    tests, pair = _MOST_TESTS, 8 + numbers * made.sums(0).itemsize
    while THREADS * tests * pair > _MOST_BYTES:
        tests //= 2
    return tests


def list_room(made: Made, tests: int) -> tuple[int, int]:
    """Say how many pairs a list has room for, and all of a block's; one more, so that they begin in different banks."""
    room = made.team * tests + 1
    return room, THREADS // made.team * room


@device
def places_in_list(counts, first, lane, team):
    """Where in its team's list a thread's finds begin, and how long that is; the team's `counts` begin at `first`."""
    before, total = np.int32(0), np.int32(0)
    for other in range(team):
        found = counts[np.uint32(first + other)]
        before = np.int32(before + (found if other < lane else 0))
        total = np.int32(total + found)
    return before, total


@device
def add_weighted(v, rows, weights, at, stop, column, dim, kind, mean, columns, zero):
    """Add up the weighted rows of a list, [at, stop), in `mean`; return the sum of weights."""
    total = zero
    while at < stop:
        load_columns(v, rows[at], column, dim, kind, columns)
        weight = weights[at]
        total += weight
        for c in range(COLUMNS):
            mean[c] += weight * columns[c]
        at = np.uint32(at + 1)
    return total


@device
def weigh_key(numbers, at, x, points, point, dims, inverse, square, infinity, zero, pull, first_pass):
    """Write a key, at `points[point]`, in the list of the query at `x`: what each pull is for each unit of the product.

    What does not depend on the product is added to the pull.
    """
    u = reciprocal(comparable(squared_distance(x, points, point, dims), infinity) + zero + square)
    plain = u * (u * inverse)
    to = at * (2 + dims)
    numbers[to] = u * inverse
    numbers[to + 1] = plain
    if first_pass:
        pull[2] += plain
    for c in range(dims):
        part = plain * (x[c] + zero - points[point + c])
        numbers[to + 2 + c] = part
        if first_pass:
            pull[PULL + dims + c] += part


@device
def add_products(v, rows, numbers, at, stop, column, dim, dims, kind, g, columns, pull, zero):
    """Add the keys of a query's list to its pull; `g` are columns of its row of `grad_out`."""
    while at < stop:
        load_columns(v, rows[at], column, dim, kind, columns)
        product = zero
        for c in range(COLUMNS):
            product += g[c] * columns[c]
        pull[0] += product * numbers[at * (2 + dims)]
        pull[1] += product * numbers[at * (2 + dims) + 1]
        for c in range(dims):
            pull[PULL + c] += product * numbers[at * (2 + dims) + 2 + c]
        at = np.uint32(at + 1)


@device
def weigh_query(
    numbers, at, x, points, point, dims, inverse, delta, square, infinity, zero, difference, pull, first_pass
):
    """Write a query, at `points[point]`, in the list of the key at `x`: p, and the pull for each unit of the product.

    The query's D is taken off the pull. `difference (dims,)` is scratch.
    """
    distance = zero
    for c in range(dims):
        difference[c] = points[point + c] - x[c]
        distance += difference[c] * difference[c]
    u = reciprocal(comparable(distance, infinity) + square)
    p = u * inverse
    slope = (u + u) * p
    numbers[at * (1 + dims)] = p
    for c in range(dims):
        numbers[at * (1 + dims) + 1 + c] = slope * difference[c]
        if first_pass:
            pull[c] -= delta * (slope * difference[c])


@device
def add_rows(grad_out, rows, numbers, at, stop, column, dim, dims, kind, values, columns, total, pull, zero):
    """Add the queries of a key's list to `total` and to its pull; `values` are columns of its row of `v`."""
    while at < stop:
        load_columns(grad_out, rows[at], column, dim, kind, columns)
        product, p = zero, numbers[at * (1 + dims)]
        for c in range(COLUMNS):
            product += columns[c] * values[c]
            total[c] += p * columns[c]
        for c in range(dims):
            pull[c] += product * numbers[at * (1 + dims) + 1 + c]
        at = np.uint32(at + 1)
