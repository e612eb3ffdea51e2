"""Morton codes: quantise each coordinate to 27 bits, shift by the curve, keep the top bits, interleave.

Only IEEE additions, multiplications, comparisons and bit operations in float32 and integers, so that the
codes are the same bits on every machine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["CURVE_SHIFT", "morton_decode", "morton_encode", "quantise"]

U_MAX = 2**27 - 1  # the largest quantised coordinate
HALF = 2**26  # where zero lies on the log-linear scale
CURVE_SHIFT = 44739242  # a third of the range; a half or a quarter would align the curves with the grid


def quantise(x: npt.NDArray[np.float32], bounds: tuple[float, float] | None) -> npt.NDArray[np.int64]:
    """Quantise coordinates to integers in [0, 2**27 - 1]; NaN gets 2**27 - 1.

    Parameters
    ----------
    x : ndarray, any shape, float32
    bounds : (lo, hi) or None
        None is the log-linear scale: the exponent and mantissa bits of `1 + 4|x|` are a monotone,
        piecewise linear log2, which gives every finite float a place without a range. Otherwise
        `[lo, hi)` is divided into 2**27 equal cells; what lies outside goes to the first or last cell.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if bounds is None:
            magnitude = np.float32(1) + np.float32(4) * np.abs(x)
            m = magnitude.view(np.int32).astype(np.int64) - np.float32(1).view(np.int32)
            m = np.minimum(m, HALF - 1)
            u = np.where(x >= 0, HALF + m, HALF - 1 - m)
        else:
            lo, hi = bounds
            cell = np.floor((x - np.float32(lo)) * np.float32(2**27 / (hi - lo)))
            # Clipping happens in float32, which cannot hold 2**27 - 1; the last step is one of integers.
            clipped = np.clip(np.where(np.isnan(cell), 0, cell), 0, 2**27)
            u = np.minimum(clipped.astype(np.int64), U_MAX)
    return np.where(np.isnan(x), U_MAX, u)


def morton_encode(
    x: npt.NDArray[np.floating], *, bits: int, bounds: tuple[float, float] | None, num_curves: int, curve: int
) -> npt.NDArray[np.unsignedinteger]:
    """Encode points `x (n, dk)` to codes `(n,)`, uint32 if `dk * bits <= 32`, else uint64.

    Bit b of coordinate c goes to bit `b * dk + (dk - 1 - c)`: coordinate 0 is the most significant.
    """
    n, dk = x.shape
    with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes inf, which has a code
        u = quantise(x.astype(np.float32), bounds)
    cells = u >> (27 - bits) if num_curves == 1 else (u + curve * CURVE_SHIFT) >> (28 - bits)
    codes = np.zeros(n, dtype=np.uint64)
    for b in range(bits):
        for c in range(dk):
            bit = (cells[:, c].astype(np.uint64) >> np.uint64(b)) & np.uint64(1)
            codes |= bit << np.uint64(b * dk + (dk - 1 - c))
    return codes.astype(np.uint32) if dk * bits <= 32 else codes


def morton_decode(codes: npt.NDArray[np.unsignedinteger], *, dims: int, bits: int) -> npt.NDArray[np.uint32]:
    """Decode `codes (n,)` to the integer coordinates `(n, dims)`: the inverse of the interleaving."""
    cells = np.zeros((len(codes), dims), dtype=np.uint32)
    for b in range(bits):
        for c in range(dims):
            bit = (codes.astype(np.uint64) >> np.uint64(b * dims + (dims - 1 - c))) & np.uint64(1)
            cells[:, c] |= bit.astype(np.uint32) << np.uint32(b)
    return cells
