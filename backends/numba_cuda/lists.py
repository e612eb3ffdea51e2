"""Lists in shared memory: what the items of a block select, found and weighed by their teams.

An item is a slot, which selects entries, or an entry, which slots select. The threads of its team look at candidates
side by side, and write down what belongs to the item with all that does not depend on columns; then each of them walks
over the whole list with columns of its own. So a pair is weighed once, and no thread waits while others look for
something.

The order of a list is that of threads, then that in which a thread finds things.
"""

from __future__ import annotations

import numpy as np

from zeta_ops.backends.numba_cuda.compiling import SIMULATED, device
from zeta_ops.backends.numba_cuda.parts import THREADS, Made

__all__ = ["ALIGNED", "list_room", "places_in_list", "tests_for"]

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
    """Where in its team's list a thread's finds begin, and how long that is; its team's `counts` begin at `first`."""
    before, total = np.int32(0), np.int32(0)
    for other in range(team):
        found = counts[np.uint32(first + other)]
        before = np.int32(before + (found if other < lane else 0))
        total = np.int32(total + found)
    return before, total
