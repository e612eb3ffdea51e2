"""Models of the next byte: attention over suffixes, and counts to compare it with.

All see, for each byte, the bytes before it in its own block only. Each gives, for every byte of its blocks, the bits
that the byte costs and whether it was the most likely one; `Score.of` sums them up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import zeta_ops
from zeta_ops.demo.counts import mixture_hits, order_0, order_3
from zeta_ops.demo.text import OPTIONS

__all__ = ["GAMMA", "Score", "attend", "attention_costs", "one_hot", "order_0_costs", "order_3_costs"]

Array = npt.NDArray[Any]

GAMMA = 1e-4  # much less than the distance of suffixes that differ in their last three bytes


class Score(NamedTuple):
    """How well a model predicts.

    Attributes
    ----------
    bits : float
        Bits per byte: the mean of -log2 of the probability that the actual byte was given.
    accuracy : float
        Share of bytes that were given the largest probability.
    """

    bits: float
    accuracy: float

    @classmethod
    def of(cls, bits: Array, hits: Array, end: int) -> Score:
        """Score the last `end` bytes of each block `(batch, n)`; those before them are their context."""
        return cls(float(bits[:, -end:].mean()), float(hits[:, -end:].mean()))


def one_hot(blocks: Array, alphabet: int) -> Array:
    """Represent the bytes of `blocks (batch, n)`, numbered below `alphabet`, as `(batch, n, alphabet)` float32."""
    values = np.zeros((*blocks.shape, alphabet), np.float32)
    np.put_along_axis(values, blocks[..., None].astype(np.int64), 1, axis=-1)
    return values


def attend(points: Array, values: Array, **options: Any) -> Array:
    """Attend from the suffix before each byte to the suffixes before earlier bytes, whose values are those bytes.

    Parameters
    ----------
    points : ndarray (batch, n, 3)
        `suffix_points` of the blocks.
    values : ndarray (batch, n, alphabet)
        `one_hot` of the blocks.

    Returns
    -------
    ndarray (batch, n, alphabet)
        Distributions of the next byte; 0 where nothing came before.
    """
    points = points[:, None]
    return np.asarray(zeta_ops.zeta_attention(points, points, values[:, None], GAMMA, **OPTIONS, **options)[:, 0])


def order_0_shares(given: Array, order_0: Array) -> Array:
    """Share of order 0 in the mixture with attention: how often it was the better of the two so far.

    `given` and `order_0 (batch, n)` are the probabilities of the actual bytes. One time is counted in advance, so that
    the share is never 0, and the first byte, before which there is nothing to attend to, is left to order 0 alone.
    """
    better = given < order_0
    times: Array = np.cumsum(better, axis=1) - better
    return np.asarray((times + 1) / (np.arange(given.shape[1]) + 1))


def attention_costs(blocks: Array, weights: Array) -> tuple[Array, Array]:
    """Bits and hits of attention's distributions `weights (batch, n, alphabet)`, mixed with a little order 0."""
    given = np.take_along_axis(weights, blocks[..., None].astype(np.int64), axis=-1)[..., 0].astype(np.float64)
    counted, _ = order_0(blocks, weights.shape[-1])
    shares = order_0_shares(given, counted)
    return -np.log2((1 - shares) * given + shares * counted), mixture_hits(blocks, weights, shares)


def order_0_costs(blocks: Array, alphabet: int) -> tuple[Array, Array]:
    """Bits and hits of adaptive counts of single bytes."""
    probability, hits = order_0(blocks, alphabet)
    return -np.log2(probability), hits


def order_3_costs(blocks: Array, alphabet: int) -> tuple[Array, Array]:
    """Bits and hits of adaptive counts of bytes after the same three bytes, backed by order 0."""
    probability, hits = order_3(blocks, alphabet)
    return -np.log2(probability), hits
