"""Copies of arrays into another layout and dtype, and what else arrays of Numba cannot do themselves."""

from __future__ import annotations

from functools import cache

from numba import cuda

from zeta_ops.backends.numba_cuda.compiling import Kernel, kernel
from zeta_ops.backends.numba_cuda.values import store_value, widened

__all__ = ["copy_kernel", "fill_kernel", "sum_kernel"]


@cache
def copy_kernel(kind: int, to_kind: int) -> Kernel:
    """Make the kernel that copies an array with strides, of values kept in one way, to a contiguous one of another."""

    @kernel
    def copy_kernel(source, to, count, shape, strides):
        n = cuda.grid(1)
        if n >= count:
            return
        at, rest = 0, n
        for axis in range(len(shape) - 1, -1, -1):
            at += rest % shape[axis] * strides[axis]
            rest //= shape[axis]
        store_value(to, n, widened(source[at], kind), to_kind)

    return copy_kernel


@kernel
def fill_kernel(to, count, value):
    """Write one number everywhere."""
    n = cuda.grid(1)
    if n < count:
        to[n] = value


@kernel
def sum_kernel(source, to, count):
    """Add up a few numbers."""
    total = 0.0
    for n in range(count):
        total += source[n]
    to[0] = total
