"""How kernels of this backend are written and compiled.

A kernel is a plain function. Memory is flat: an argument is a pointer, and `points[entry * dims + c]` is all the
indexing there is. What is known when a kernel is compiled (key dimension, dtypes) are variables of the function around
it, so that loops over them are unrolled and arrays of them are registers. The names of a kernel's arguments say which
arrays of a call it takes (see `calls`).

Numba contracts `a * b + c` into one operation with one rounding wherever it can. Where a result decides what is
selected, every operation has to round for itself: that is what the functions of `arithmetic` are for.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types
from numba.core import config as numba_config

__all__ = ["SIMULATED", "Kernel", "Memory", "device", "kernel", "kernel_within", "numba_type", "signature_of"]

SIMULATED = bool(numba_config.ENABLE_CUDASIM)  # Numba's simulator: kernels are Python, memory is NumPy's

_LOGGER = logging.getLogger("zeta_ops")
_WORTH_A_LINE = 1.0  # seconds


class Memory:
    """An array of the device, as kernels take it: flat, from its first element on.

    Attributes
    ----------
    address : int
    count : int
        Elements that can be reached.
    dtype : str
        16-bit floats are "uint16": they travel as their bits.
    """

    __slots__ = ("address", "count", "dtype")

    def __init__(self, address: int, count: int, dtype: str) -> None:
        self.address, self.count, self.dtype = address, count, dtype


def device(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call. The simulator calls it as it is."""
    return function if SIMULATED else cuda.jit(device=True)(function)


class Kernel:
    """A kernel, compiled for each list of types of arguments when it is first launched with them.

    What is compiled is launched without Numba's dispatcher, which takes longer than the launch and warns where a grid
    is small.
    """

    def __init__(self, function: Callable[..., Any], bounds: tuple[int, int] | None) -> None:
        self.function, self.name, self.bounds = function, function.__name__, bounds
        self.arguments = tuple(inspect.signature(function).parameters)
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def compiled_for(self, signature: tuple[Any, ...]) -> Any:
        """Find what can be launched with arguments of these types: dtypes of memory, and kinds of numbers."""
        found = self._compiled.get(signature)
        if found is None:
            found = self._compiled[signature] = self._compile(signature)
        return found

    def _compile(self, signature: tuple[Any, ...]) -> Any:
        if SIMULATED:
            return cuda.jit(self.function)
        started = time.perf_counter()
        types_of_arguments = types.void(*map(numba_type, signature))
        dispatcher = cuda.jit(types_of_arguments, cache=True, launch_bounds=self.bounds)(self.function)
        (compiled,) = dispatcher.overloads.values()
        seconds = time.perf_counter() - started
        if seconds > _WORTH_A_LINE:
            _LOGGER.warning("compiled %s in %.1f s; the next process finds it on disk", self.name, seconds)
        return compiled


def kernel(function: Callable[..., Any]) -> Kernel:
    """Make a kernel of a function."""
    return Kernel(function, None)


def kernel_within(threads: int, blocks: int) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a kernel that takes so few registers that `blocks` blocks of `threads` fit on a multiprocessor."""
    return lambda function: Kernel(function, (threads, blocks))


def signature_of(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Say of what types arguments are: dtypes of memory, counts of tuples, Python types of numbers."""
    return tuple(x.dtype if type(x) is Memory else len(x) if type(x) is tuple else type(x) for x in arguments)


def numba_type(of: Any) -> Any:
    """Find Numba's type of an argument: a dtype stands for memory, a Python type or a count of integers for numbers."""
    if isinstance(of, str):
        return types.CPointer(getattr(types, of))
    if isinstance(of, int):
        return types.UniTuple(types.int64, of)
    return {int: types.int64, float: types.float64, np.float32: types.float32}[of]
