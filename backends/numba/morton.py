"""Morton codes of points, a block of points at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zeta_ops.backends.numba.compiling import compiled, interleave, quantise_linear, quantise_loglinear
from zeta_ops.backends.numba.memory import contiguous
from zeta_ops.backends.numba.parallel import next_unit, run
from zeta_ops.backends.scalars import CURVE_SHIFT

__all__ = ["encode", "morton_decode", "morton_encode"]

Array = npt.NDArray[Any]

POINTS = 2048  # per unit of work


def encode(
    points: Array, dims: int, bits: int, bounds: tuple[float, float] | None, num_curves: int, curve: int, codes: Array
) -> None:
    """Encode flat `points (n * dims,)`, float32 or float64, into `codes (n,)`."""
    lo, hi = (0.0, 1.0) if bounds is None else bounds
    run(
        encode_kernel,
        -(-len(codes) // POINTS),
        points,
        dims,
        bounds is not None,
        np.float32(lo),
        np.float32(2**27 / (hi - lo)),
        0 if num_curves == 1 else curve * CURVE_SHIFT,
        (27 if num_curves == 1 else 28) - bits,
        bits,
        codes,
    )


@compiled
def encode_kernel(counter, units, points, dims, linear, lo, scale, shift, drop, bits, codes):
    """Encode points: quantise, shift, keep the top bits, interleave."""
    magnitude = np.empty(1, np.float32)
    magnitude_bits = magnitude.view(np.int32)
    cells = np.empty(dims, np.int64)
    unit = next_unit(counter)
    while unit < units:
        for n in range(unit * POINTS, min((unit + 1) * POINTS, len(codes))):
            for c in range(dims):
                x = np.float32(points[n * dims + c])
                if linear:
                    u = quantise_linear(np.floor((x - lo) * scale))
                else:
                    magnitude[0] = np.float32(1) + np.float32(4) * abs(x)
                    u = quantise_loglinear(np.int64(magnitude_bits[0]), x < 0, np.isnan(x))
                cells[c] = (u + shift) >> drop
            codes[n] = interleave(cells, 0, dims, bits)
        unit = next_unit(counter)


def morton_encode(x: Array, *, bits: int, bounds: tuple[float, float] | None, num_curves: int, curve: int) -> Array:
    """Encode `x (n, dk)`; see `zeta_ops.backends.Backend`."""
    n, dims = x.shape
    codes = np.empty(n, np.uint32 if dims * bits <= 32 else np.uint64)
    with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes inf, which has a code
        points = contiguous(x, "float32")
    encode(points, dims, bits, bounds, num_curves, curve, codes)
    return codes


def morton_decode(codes: Array, *, dims: int, bits: int) -> Array:
    """Decode `codes (n,)`; see `zeta_ops.backends.Backend`."""
    cells = np.zeros((len(codes), dims), np.uint32)
    run(decode_kernel, -(-len(codes) // POINTS), contiguous(codes, "uint64"), dims, bits, cells)
    return cells


@compiled
def decode_kernel(counter, units, codes, dims, bits, cells):
    """Take the interleaved bits of each code apart."""
    unit = next_unit(counter)
    while unit < units:
        for n in range(unit * POINTS, min((unit + 1) * POINTS, len(codes))):
            for b in range(bits):
                for c in range(dims):
                    bit = (codes[n] >> np.uint64(b * dims + (dims - 1 - c))) & np.uint64(1)
                    cells[n, c] |= np.uint32(bit) << np.uint32(b)
        unit = next_unit(counter)
