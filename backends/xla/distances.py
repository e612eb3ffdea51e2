"""Squared distances that decide a selection, to the bit, computed in integers.

The definition rounds every operation for itself. XLA gives no such promise: its CPU compiler fuses a multiplication and
the addition after it into one rounding, across `reduce_precision` and `optimization_barrier` too, and takes subnormal
numbers for zero. Both change which of two keys is nearer. Integers it leaves alone, and squared distances need few
operations: signs play no part, sums never cancel, and whatever is not finite makes the distance infinite.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["infinity", "squared_distances"]

Array = jax.Array


class Format(NamedTuple):
    """A binary floating-point format: its width, and how many bits of significand it stores (without the leading 1)."""

    word: str
    width: int
    stored: int

    @property
    def bias(self) -> int:
        """The stored exponent of 1.0."""
        return (1 << (self.width - 2 - self.stored)) - 1

    @property
    def sign(self) -> Any:
        """The bit that is the sign."""
        return np.dtype(self.word).type(1 << (self.width - 1))

    @property
    def infinity(self) -> Any:
        """The bits of infinity; those of a finite magnitude are less, those of a NaN greater."""
        return np.dtype(self.word).type((2 * self.bias + 1) << self.stored)

    @property
    def spare(self) -> int:
        """Bits below a significand that is shifted to leave one bit above it free: they say how to round."""
        return self.width - 2 - self.stored


FORMATS = {"float32": Format("uint32", 32, 23), "float64": Format("uint64", 64, 52)}


def infinity(dtype: str) -> Any:
    """Bits of an infinite distance between points of a coordinate dtype."""
    return FORMATS[dtype].infinity


def squared_distances(q: Array, k: Array) -> Array:
    """Squared distances as the bits of floats, uint32 or uint64: they order as the distances do, NaN as infinity.

    Parameters
    ----------
    q, k : arrays (dk, ...), float32 or float64
        The coordinates one after another, each of shapes that broadcast against each other.
    """
    form = FORMATS[str(q.dtype)]
    q_bits, k_bits = (lax.bitcast_convert_type(x, jnp.dtype(form.word)) for x in (q, k))
    squares = [_square(form, *_difference(form, *coordinates)) for coordinates in zip(q_bits, k_bits, strict=True)]
    return reduce(partial(_sum, form), squares)


def _int(x: Array) -> Array:
    """Exponents and shifts, which may be negative."""
    return x.astype(jnp.int32)


def _shifted_right(x: Array, count: Array, width: int) -> Array:
    """Shift `x` to the right; what falls off the end is remembered in the last bit."""
    count = jnp.minimum(count, width - 1).astype(x.dtype)
    kept = x >> count
    return kept | ((kept << count) != x).astype(x.dtype)


def _parts(form: Format, magnitude: Array) -> tuple[Array, Array]:
    """Exponent (at least 1) and significand, with its leading 1 unless subnormal, of the bits of a magnitude."""
    exponent = magnitude >> form.stored
    normal = (exponent > 0).astype(magnitude.dtype)
    significand = (magnitude & np.dtype(form.word).type((1 << form.stored) - 1)) | (normal << form.stored)
    return _int(jnp.maximum(exponent, 1)), significand


def _rounded(form: Format, x: Array, spare: int) -> Array:
    """Divide by `2**spare`, to the nearest, ties to even."""
    rest, half = x & ((1 << spare) - 1), 1 << (spare - 1)
    down = x >> spare
    return down + ((rest > half) | ((rest == half) & ((down & 1) == 1))).astype(x.dtype)


def _packed(form: Format, exponent: Array, significand: Array) -> Array:
    """Bits of `significand` (with leading 1, or less at exponent 1); what is too large is infinite."""
    top = 2 * form.bias + 1
    bits = ((jnp.clip(exponent, 1, top) - 1).astype(significand.dtype) << form.stored) + significand
    return jnp.where(exponent >= top, form.infinity, jnp.minimum(bits, form.infinity))


def _difference(form: Format, a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Magnitude of `a - b`: exponent (any), significand (with leading 1, or zero), and whether it is not finite."""
    opposite = ((a ^ b) & form.sign) != 0
    a, b = a & ~form.sign, b & ~form.sign
    large, small = jnp.maximum(a, b), jnp.minimum(a, b)
    exponent, x = _parts(form, large)
    small_exponent, y = _parts(form, small)
    x, y = x << form.spare, _shifted_right(y << form.spare, exponent - small_exponent, form.width)
    exact = jnp.where(opposite, x + y, x - y)
    # A difference is exact where it is subnormal, so that a significand of any exponent is right.
    zeros = lax.clz(exact)
    significand = _rounded(form, exact << jnp.minimum(zeros, form.width - 1), form.spare + 1)
    carried = significand >> (form.stored + 1)
    exponent = exponent + 1 - _int(zeros) + _int(carried)
    return exponent, significand >> carried, (large >= form.infinity) | (exponent > 2 * form.bias)


def _square(form: Format, exponent: Array, significand: Array, not_finite: Array) -> Array:
    """Bits of a square."""
    bits = form.stored + 1
    low_bits = (bits + 1) // 2
    low_mask = (1 << low_bits) - 1
    # The product in two words of `high_bits` and `2 * low_bits` bits.
    high, low = significand >> low_bits, significand & low_mask
    squared = low * low
    middle = 2 * high * low + (squared >> low_bits)
    upper = high * high + (middle >> low_bits)
    lower = ((middle & low_mask) << low_bits) | (squared & low_mask)
    # Together, with the leading 1 in the uppermost bit but one or the one below; what falls off is remembered.
    place = form.width - 1 - 2 * (bits - low_bits)
    x = (upper << place) | _shifted_right(lower, jnp.asarray(2 * low_bits - place, jnp.int32), form.width)
    long = x >> (form.width - 2)
    x = x << (1 - long)
    exponent = 2 * exponent - form.bias + _int(long)
    x = _shifted_right(x, jnp.maximum(1 - exponent, 0), form.width)
    square = _packed(form, exponent, _rounded(form, x, form.spare))
    square = jnp.where(significand == 0, jnp.zeros_like(square), square)
    return jnp.where(not_finite, form.infinity, square)


def _sum(form: Format, a: Array, b: Array) -> Array:
    """Bits of a sum of two that are not negative."""
    large, small = jnp.maximum(a, b), jnp.minimum(a, b)
    exponent, x = _parts(form, large)
    small_exponent, y = _parts(form, small)
    x = (x << form.spare) + _shifted_right(y << form.spare, exponent - small_exponent, form.width)
    carried = x >> (form.width - 1)
    x = _shifted_right(x, carried, form.width)
    total = _packed(form, exponent + _int(carried), _rounded(form, x, form.spare))
    return jnp.where(large >= form.infinity, form.infinity, total)
