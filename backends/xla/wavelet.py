"""Ranks and the n-th in order among the first keys only: a wavelet tree over the keys' ranks.

Every node stands for a range of ranks whose length is a power of two, and lists its keys by position, so that those
that a query sees are the first ones of each node. How many of them lie in the lower half is a count of bits; with it a
query descends to what it looks for in `log2(N)` steps, wherever its keys lie. The tree takes N bits a level and as
much again for counts.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["Tree", "bit_words", "build", "count_below", "nth"]

Array = jax.Array

WORD = 32


class Tree(NamedTuple):
    """A wavelet tree of one row of keys, with its length padded to a power of two that is larger.

    Attributes
    ----------
    key : array (padded,) int32
        The key at each rank.
    rank : array (padded,) int32
        The rank of each key.
    words : array (levels, padded / 32) uint32
        From the root's level on: a bit for each key of each node, whether it lies in the upper half.
    ones : array (levels, padded / 32) int32
        Number of bits set in the level's words before.
    """

    key: Array
    rank: Array
    words: Array
    ones: Array


def bit_words(bits: Array) -> Array:
    """Pack bits `(..., 32 * n)` into words `(..., n)` uint32."""
    grouped = bits.astype(jnp.uint32).reshape(*bits.shape[:-1], -1, WORD)
    return (grouped << jnp.arange(WORD, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)


def _ones_in(word: Array, below: Array) -> Array:
    """Count the bits of `word` that are set at places less than `below` (0 to 31)."""
    mask = (jnp.uint32(1) << below.astype(jnp.uint32)) - 1
    return lax.population_count(word & mask).astype(jnp.int32)


def build(key: Array) -> Tree:
    """Build the tree of keys `(n,)` int32 that are given in order, without repetition, from 0 to n - 1."""
    padded = WORD
    while padded <= key.shape[0]:  # at least one rank is left over, so that no descent ends behind the last
        padded *= 2
    levels = padded.bit_length() - 1
    place = jnp.arange(padded, dtype=jnp.int32)
    key = jnp.concatenate([key, place[key.shape[0] :]])
    rank = jnp.zeros_like(key).at[key].set(place, unique_indices=True)

    def split(ranks: Array, half: Array) -> tuple[Array, tuple[Array, Array]]:
        upper = (ranks >> half) & 1
        words = bit_words(upper)
        counts = lax.population_count(words).astype(jnp.int32)
        ones = jnp.cumsum(counts, dtype=jnp.int32) - counts
        start = (place >> (half + 1)) << (half + 1)
        before = jnp.repeat(ones, WORD) + _ones_in(jnp.repeat(words, WORD), place & (WORD - 1)) - (start >> 1)
        target = jnp.where(upper == 1, start + (1 << half) + before, place - before)
        return jnp.zeros_like(ranks).at[target].set(ranks, unique_indices=True), (words, ones)

    _, (words, ones) = lax.scan(split, rank, jnp.arange(levels - 1, -1, -1, dtype=jnp.int32))
    return Tree(key, rank, words, ones)


def _in_lower_half(tree: Tree, level: Array, node: Array, seen: Array) -> Array:
    """Of the first `seen` keys of a node, the number that lie in its lower half."""
    levels, words = tree.words.shape
    half = levels - 1 - level
    end = (node << (half + 1)) + seen
    at = level * words + (end >> 5)
    ones = tree.ones.reshape(-1)[at] + _ones_in(tree.words.reshape(-1)[at], end & (WORD - 1))
    return seen - (ones - (node << half))


def count_below(tree: Tree, rank: Array, visible: Array) -> Array:
    """Count the keys among the first `visible` whose rank is less than `rank`."""
    levels = tree.words.shape[0]

    def descend(level: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        node, seen, count = state
        lower = _in_lower_half(tree, level, node, seen)
        upper = (rank >> (levels - 1 - level)) & 1
        return 2 * node + upper, jnp.where(upper == 1, seen - lower, lower), count + upper * lower

    zero = jnp.zeros_like(rank)
    return lax.fori_loop(0, levels, descend, (zero, jnp.broadcast_to(visible, rank.shape), zero))[2]


def nth(tree: Tree, n: Array, visible: Array) -> Array:
    """Rank of the n-th (from 0, less than `visible`) in order among the first `visible` keys."""

    def descend(level: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        node, seen, left = state
        lower = _in_lower_half(tree, level, node, seen)
        upper = (left >= lower).astype(jnp.int32)
        return 2 * node + upper, jnp.where(upper == 1, seen - lower, lower), left - upper * lower

    start = jnp.zeros_like(n), jnp.broadcast_to(visible, n.shape), n
    return lax.fori_loop(0, tree.words.shape[0], descend, start)[0]
