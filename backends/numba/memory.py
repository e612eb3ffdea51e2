"""NumPy arrays as the kernels want them: flat, contiguous, of one type whatever flags the caller's have."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Gradients", "Inputs", "Strided", "contiguous", "strided"]

Array = npt.NDArray[Any]


class _Memory:
    """A stretch of another array's memory.

    Read-only arrays are a type of their own to Numba, for which every kernel would be compiled again. So
    all inputs are presented as writable; no kernel writes to an input.
    """

    def __init__(self, owner: Array, elements: int) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (owner.__array_interface__["data"][0], False),
            "shape": (elements,),
            "strides": None,
            "typestr": owner.dtype.str,
            "version": 3,
        }


class Strided(NamedTuple):
    """Memory of an array `(batch, heads, length, dim)` whose last dimension is contiguous, and its strides.

    Element `[b, h, n, c]` is `flat[b * strides[0] + h * strides[1] + n * strides[2] + c]`.
    """

    flat: Array
    strides: tuple[int, int, int]


def contiguous(array: Array, dtype: str) -> Array:
    """Give an array's elements as a flat array of `dtype`; a copy only if layout or dtype call for one."""
    cast = np.ascontiguousarray(array, dtype)
    return np.asarray(_Memory(cast, cast.size)) if cast.size else np.zeros(0, dtype)


def strided(array: Array, dtype: str) -> Strided:
    """Give a four-dimensional array as memory and strides; a copy only if layout or dtype call for one."""
    if array.dtype != dtype or not _fits(array):
        array = np.ascontiguousarray(array, dtype)
    if array.size == 0:
        return Strided(np.zeros(0, dtype), (0, 0, 0))
    size = array.itemsize
    reach = sum((n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True))
    b, h, n, _ = (stride // size for stride in array.strides)
    return Strided(np.asarray(_Memory(array, reach // size + 1)), (b, h, n))


def _fits(array: Array) -> bool:
    size = array.itemsize
    return (
        array.flags.aligned
        and (array.shape[-1] <= 1 or array.strides[-1] == size)
        and all(stride >= 0 and stride % size == 0 for stride in array.strides)
    )


class Inputs(NamedTuple):
    """What every part of the backward pass reads. All flat; `v` and `grad_out` with strides as in `Strided`.

    Values, gradients and the normalizer are in the sum dtype, the others in the coordinate dtype.
    """

    q: Array
    k: Array
    v: Array
    v_strides: tuple[int, int, int]
    gamma: Array
    normalizer: Array
    grad_out: Array
    grad_strides: tuple[int, int, int]


class Gradients(NamedTuple):
    """What the backward pass writes, flat and contiguous, in the sum dtype.

    Attributes
    ----------
    q : ndarray (queries * dk,), k : ndarray (keys * dk,), v : ndarray (keys * dv,)
        The passes at the keys add to `k` and `v`, which begin as zeros.
    squares : ndarray (queries,)
        Each query's part of `dL / d gamma^2`.
    delta : ndarray (queries,)
        `D = g . out`, which the pass over queries leaves for those over keys.
    """

    q: Array
    k: Array
    v: Array
    squares: Array
    delta: Array
