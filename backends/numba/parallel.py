"""Kernels on several threads: numbered units of work, handed out by an atomic counter.

A kernel is compiled without the GIL and has the form `kernel(counter, units, *arguments)`: it takes units
with `next_unit(counter)` until they are used up. What a unit computes depends on its number alone, so results
are the same bits whatever the number of threads.

Plain threads, and not Numba's parallel loops: these compile several times slower, their layers depend on
what else is installed, the default one aborts under concurrent calls, and OpenMP's does not survive a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import config, types
from numba.extending import intrinsic

__all__ = ["for_each", "get_num_threads", "next_unit", "run", "set_num_threads"]

_pool: ThreadPoolExecutor | None = None
_num_threads: int = config.NUMBA_NUM_THREADS


def get_num_threads() -> int:
    """Return the number of threads that a call may use; by default NUMBA_NUM_THREADS, or one a core."""
    return _num_threads


def set_num_threads(count: int) -> None:
    """Set the number of threads for all later calls in this process; results do not depend on it.

    Raises
    ------
    ValueError
        If `count` is less than 1.
    """
    global _num_threads, _pool
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    _num_threads = count
    _pool = None  # made anew with the right size; running calls keep the one they have


@intrinsic
def next_unit(typing_context: Any, counter: Any) -> Any:
    """Take the next unit's number from `counter (1,)` int64, atomically."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        one = context.get_constant(types.int64, 1)
        return builder.atomic_rmw("add", array.data, one, "monotonic")

    return types.int64(counter), generate


def run(kernel: Callable[..., None], units: int, *arguments: Any) -> None:
    """Run all units of a kernel. The calling thread works too, so a busy pool delays but never blocks."""
    if units <= 0:
        return
    counter = np.zeros(1, np.int64)
    helpers = min(_num_threads, units) - 1
    futures = [_threads().submit(kernel, counter, units, *arguments) for _ in range(helpers)]
    kernel(counter, units, *arguments)
    for future in futures:
        if not future.cancel():
            future.result()


def for_each(function: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Call a function that releases the GIL, such as a NumPy sort, on every item."""
    if len(items) > 1 and _num_threads > 1:
        list(_threads().map(function, items))
    else:
        for item in items:
            function(item)


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, _num_threads - 1), thread_name_prefix="zeta_ops")
    return _pool


def _forget_threads() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)  # a fork copies the pool, but not its threads
