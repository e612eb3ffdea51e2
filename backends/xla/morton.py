"""Morton codes as one or two words of 32 bits: JAX has no integers of 64 bits while `jax_enable_x64` is off."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from zeta_ops.reference.morton import CURVE_SHIFT, HALF, U_MAX

__all__ = ["Words", "join", "morton_decode", "morton_encode", "split"]

Array = jax.Array
Words = tuple[Array, ...]  # uint32, the most significant first: one up to 32 bits, else two

NARROW = 2.0**-60  # bounds so close that subnormal numbers matter, which devices take for zero


def morton_encode(x: Array, *, bits: int, bounds: tuple[float, float] | None, num_curves: int, curve: int) -> Words:
    """Encode points `x (..., dk)` to the words of codes `(...)`; see `zeta_ops.reference.morton`."""
    cells = _quantise(x, bounds)
    cells = cells >> (27 - bits) if num_curves == 1 else (cells + np.uint32(curve * CURVE_SHIFT)) >> (28 - bits)
    place = _places(x.shape[-1], bits)
    spread = ((cells[..., None] >> np.arange(bits, dtype=np.uint32)) & 1) << (place % 32)
    words = range(place.max() // 32, -1, -1)
    return tuple(jnp.where(place // 32 == word, spread, 0).sum((-2, -1), dtype=jnp.uint32) for word in words)


def morton_decode(words: Words, *, dims: int, bits: int) -> Array:
    """Decode the words of codes `(...)` to integer coordinates `(..., dims)` uint32."""
    place = _places(dims, bits)
    spread = (jnp.stack(words[::-1], axis=-1)[..., place // 32] >> (place % 32)) & 1
    return (spread << np.arange(bits, dtype=np.uint32)).sum(-1, dtype=jnp.uint32)


def _places(dims: int, bits: int) -> npt.NDArray[np.uint32]:
    """Find the place in the code of each bit of each coordinate, `(dims, bits)`."""
    b, c = np.arange(bits, dtype=np.uint32), np.arange(dims, dtype=np.uint32)
    return b * np.uint32(dims) + (dims - 1 - c)[:, None]


def join(words: Words) -> Array:
    """Make codes of their words: uint32 of one, uint64 of two."""
    if len(words) == 1:
        return words[0]
    high, low = (word.astype(jnp.uint64) for word in words)
    return (high << 32) | low


def split(codes: Array) -> Words:
    """Split codes into words."""
    if codes.dtype == jnp.uint32:
        return (codes,)
    return (codes >> 32).astype(jnp.uint32), codes.astype(jnp.uint32)


def _quantise(x: Array, bounds: tuple[float, float] | None) -> Array:
    """Quantise coordinates to uint32 in [0, 2**27 - 1].

    Signs and NaN are read from bits, because comparisons take subnormal numbers for zero.
    """
    if x.dtype == jnp.float64:
        # Below half of the least float32 a number is zero there.
        negative = x < -(2.0**-150)
        x = x.astype(jnp.float32)
        pattern = lax.bitcast_convert_type(x, jnp.uint32)
    else:
        x = x.astype(jnp.float32)
        pattern = lax.bitcast_convert_type(x, jnp.uint32)
        negative = pattern > np.uint32(0x80000000)
    nan = (pattern & 0x7FFFFFFF) > 0x7F800000
    if bounds is None:
        magnitude = 1 + 4 * jnp.abs(x)  # multiplying by 4 is exact, so that a fused addition changes nothing
        m = lax.bitcast_convert_type(magnitude, jnp.uint32) - np.uint32(0x3F800000)
        m = jnp.minimum(m, HALF - 1)
        u = jnp.where(negative, HALF - 1 - m, HALF + m)
    else:
        u = jnp.minimum(jnp.clip(jnp.floor(_cells(x, pattern, bounds)), 0, 2**27).astype(jnp.uint32), U_MAX)
    return jnp.where(nan, np.uint32(U_MAX), u)


def _cells(x: Array, pattern: Array, bounds: tuple[float, float]) -> Array:
    """Place on the linear scale, in cells."""
    lo, hi = bounds
    origin, scale = np.float32(lo), np.float32(2**27 / (hi - lo))
    if hi - lo >= NARROW:
        return (x - origin) * scale
    # In units of 2**-64 nothing that is near the bounds is subnormal, and every rounding is the same.
    unit = np.float32(2.0**64)
    fraction = (pattern & 0x007FFFFF).astype(jnp.float32) * np.float32(2.0 ** (64 - 149))
    signed = jnp.where(pattern >> 31 == 1, -fraction, fraction)
    x = jnp.where((pattern & 0x7F800000) == 0, signed, x * unit)
    return (x - np.float32(origin * unit)) * np.float32(scale / unit)
