"""Numbers: operations that round for themselves, and bits of floats and of words.

Each function is plain Python, which the simulator runs, and has a second body for the device where Python's operators
do not say what is meant there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zeta_ops.backends.numba_cuda.compiling import SIMULATED, device

__all__ = [
    "add_rounded",
    "comparable",
    "count_bits",
    "float_bits",
    "floor",
    "highest_bit",
    "lowest_bit",
    "multiply_rounded",
    "reciprocal",
    "squared_distance",
    "subtract_rounded",
]


def add_rounded(a: Any, b: Any) -> Any:
    """Add, and round."""
    return a + b


def subtract_rounded(a: Any, b: Any) -> Any:
    """Subtract, and round."""
    return a - b


def multiply_rounded(a: Any, b: Any) -> Any:
    """Multiply, and round."""
    return a * b


def reciprocal(x: Any) -> Any:
    """Invert, to the last bits: weights need no more, and IEEE division takes ten times as long."""
    return type(x)(1) / x


@device
def float_bits(x):
    """Bits of a float32, as an integer that can be negative."""
    return np.int64(np.float32(x).view(np.int32))


@device
def comparable(distance, infinity):
    """NaN counts as infinitely far."""
    return distance if distance == distance else infinity


@device
def squared_distance(x, points, at, dims):
    """Squared distance of `x (dims,)` and `points[at : at + dims]`: each operation rounded, first coordinate first."""
    difference = subtract_rounded(x[0], points[at])
    total = multiply_rounded(difference, difference)
    for c in range(1, dims):
        difference = subtract_rounded(x[c], points[at + c])
        total = add_rounded(total, multiply_rounded(difference, difference))
    return total


def floor(x: Any) -> Any:
    """Round down, as a float."""
    return np.floor(x)


def count_bits(bits: Any) -> Any:
    """Count the bits of a word of 32 that are set."""
    return int(bits).bit_count()


def lowest_bit(bits: Any) -> Any:
    """Place of the lowest bit that is set; one is."""
    return (int(bits) & -int(bits)).bit_length() - 1


def highest_bit(bits: Any) -> Any:
    """Place of the highest one."""
    return int(bits).bit_length() - 1


if not SIMULATED:
    from numba import types
    from numba.cuda import libdevice
    from numba.cuda.extending import overload

    # Numba inlines what an overload returns; which one it is depends on the types of the arguments.

    @overload(add_rounded, target="cuda")
    def _add_rounded(a, b):
        if a == types.float32:
            return lambda a, b: libdevice.fadd_rn(a, b)
        return lambda a, b: libdevice.dadd_rn(a, b)

    @overload(subtract_rounded, target="cuda")
    def _subtract_rounded(a, b):
        if a == types.float32:
            return lambda a, b: libdevice.fadd_rn(a, -b)
        return lambda a, b: libdevice.dadd_rn(a, -b)

    @overload(multiply_rounded, target="cuda")
    def _multiply_rounded(a, b):
        if a == types.float32:
            return lambda a, b: libdevice.fmul_rn(a, b)
        return lambda a, b: libdevice.dmul_rn(a, b)

    @overload(reciprocal, target="cuda")
    def _reciprocal(x):
        if x == types.float32:
            return lambda x: libdevice.fast_fdividef(np.float32(1), x)
        return lambda x: 1.0 / x

    @overload(floor, target="cuda")
    def _floor(x):
        return lambda x: libdevice.floorf(x)

    @overload(count_bits, target="cuda")
    def _count_bits(bits):
        return lambda bits: libdevice.popc(np.int32(bits))

    @overload(lowest_bit, target="cuda")
    def _lowest_bit(bits):
        return lambda bits: libdevice.ffs(np.int32(bits)) - 1

    @overload(highest_bit, target="cuda")
    def _highest_bit(bits):
        return lambda bits: 31 - libdevice.clz(np.int32(bits))
