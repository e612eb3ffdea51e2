"""The nearest among candidates, exactly: bisection of the bits of distances and positions, without sorting."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zeta_ops.backends.xla.wavelet import WORD, bit_words

__all__ = ["nearest"]

Array = jax.Array


def nearest(distance: Array, position: Array, valid: Array, count: int, length: int) -> tuple[Array, Array]:
    """Places of the `count` candidates of smallest distance, ties to the most recent.

    Parameters
    ----------
    distance : array (..., n), uint32 or uint64
        As `squared_distances` returns them.
    position : array (..., n) int32
        Positions of the keys, none twice, below `length`; shapes broadcast.
    valid : array (..., n) bool
        What is no candidate has any distance and position.

    Returns
    -------
    place : array (..., count) int32
        Places along the last axis, ascending.
    taken : array (..., count) bool
        Whether there is such a candidate.
    """
    wanted = jnp.minimum(valid.sum(-1, dtype=jnp.int32), count)
    never = ~distance.dtype.type(0)  # more than infinity
    distance = jnp.where(valid, distance, never)
    farthest = _smallest_with(distance, wanted, distance.dtype.itemsize * 8)[..., None]
    nearer, tied = valid & (distance < farthest), valid & (distance == farthest)
    remaining = wanted - nearer.sum(-1, dtype=jnp.int32)
    # Counted down from the last position the most recent come first.
    age = jnp.where(tied, jnp.uint32(length) - position.astype(jnp.uint32), ~np.uint32(0))
    oldest = _smallest_with(age, remaining, length.bit_length())[..., None]
    kept = nearer | (tied & (age <= oldest) & (remaining > 0)[..., None])
    return _places_of(kept, wanted, count)


def _smallest_with(x: Array, wanted: Array, width: int) -> Array:
    """Find the smallest number of `width` bits that at least `wanted` of the unsigned `x (..., n)` do not exceed."""

    def halve(step: Array, number: Array) -> Array:
        bit = jnp.asarray(1, x.dtype) << (width - 1 - step).astype(x.dtype)
        enough = (x <= (number | (bit - 1))[..., None]).sum(-1, dtype=jnp.int32) >= wanted
        return jnp.where(enough, number, number | bit)

    return lax.fori_loop(0, width, halve, jnp.zeros(wanted.shape, x.dtype))


def _places_of(kept: Array, total: Array, count: int) -> tuple[Array, Array]:
    """List the places of the first `count` true values along the last axis, of which there are `total`."""
    size = kept.shape[-1]
    kept = jnp.pad(kept, [(0, 0)] * (kept.ndim - 1) + [(0, -size % WORD)])
    words = bit_words(kept)
    end = jnp.cumsum(lax.population_count(words).astype(jnp.int32), axis=-1)  # values up to the end of each word
    target = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (*total.shape, count))
    taken = target < total[..., None]
    steps = max(end.shape[-1] - 1, 0).bit_length()

    def halve(step: Array, word: Array) -> Array:
        half = jnp.int32(1) << (steps - 1 - step)
        probe = word + half
        before = jnp.take_along_axis(end, jnp.minimum(probe, end.shape[-1]) - 1, axis=-1)
        return jnp.where((probe < end.shape[-1]) & (before <= target), probe, word)

    word = lax.fori_loop(0, steps, halve, jnp.zeros_like(target))
    bits = jnp.take_along_axis(words, word, axis=-1)
    rest = target - (jnp.take_along_axis(end, word, axis=-1) - lax.population_count(bits).astype(jnp.int32))
    bit = jnp.zeros_like(target)
    for half in (16, 8, 4, 2, 1):
        mask = (jnp.uint32(1) << (bit + half).astype(jnp.uint32)) - 1
        bit = jnp.where(lax.population_count(bits & mask).astype(jnp.int32) <= rest, bit + half, bit)
    return jnp.where(taken, word * WORD + bit, 0), taken
