"""Models of the next byte: attention over suffixes, and counts to compare it with.

All see, for each byte, the bytes before it in its own block only. Each gives, for every byte of its blocks, the bits
that the byte costs and whether it was the most likely one; `Score.of` sums them up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import zeta_ops
from zeta_ops.demo.text import OPTIONS, suffix_points

__all__ = ["Score", "attention_costs", "attention_distribution", "order_0_costs", "order_3_costs"]

Array = npt.NDArray[Any]

GAMMA = 1e-4  # much less than the distance of suffixes that differ in their last three bytes
SHARE_OF_ORDER_0 = 0.02  # mixed in, so that no byte gets probability 0
ESCAPE = 1.0  # weight of order 0 in order 3, in counts
PIECE = 1 << 17  # positions whose distributions are looked at together, which bounds memory


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
    def of(cls, bits: Array, hits: Array) -> Score:
        """Score the second half of each block `(batch, n)`, where at least half the context lies before a byte."""
        half = bits.shape[1] // 2
        return cls(float(bits[:, half:].mean()), float(hits[:, half:].mean()))


def previous_equal(keys: Array) -> Array:
    """Count, for each place of `keys (n,)`, the equal keys before it."""
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    first = np.searchsorted(in_order, in_order)
    counts = np.empty(len(keys), np.int64)
    counts[order] = np.arange(len(keys)) - first
    return counts


def attention_distribution(blocks: Array, alphabet: int, **options: Any) -> Array:
    """Compute for each byte of `blocks (batch, n)`, numbered below `alphabet`, attention's distribution.

    Returns
    -------
    ndarray (batch, n, alphabet) float32
        Weights that add up to 1 where anything came before, else 0.
    """
    points = suffix_points(blocks)[:, None]
    one_hot = np.zeros((*blocks.shape, alphabet), np.float32)
    np.put_along_axis(one_hot, blocks[..., None].astype(np.int64), 1, axis=-1)
    return np.asarray(zeta_ops.zeta_attention(points, points, one_hot[:, None], GAMMA, **OPTIONS, **options)[:, 0])


def order_0_probabilities(blocks: Array, alphabet: int) -> Array:
    """Probability of each actual byte under adaptive counts, every byte counted once from the start."""
    batch, length = blocks.shape
    keys = np.arange(batch)[:, None] * alphabet + blocks
    seen = previous_equal(keys.reshape(-1)).reshape(batch, length)
    return np.asarray((seen + 1) / (np.arange(length) + alphabet))


def order_0_tables(block: Array, alphabet: int, start: int, stop: int) -> Array:
    """Distributions of order 0 at positions `[start, stop)` of one block, `(stop - start, alphabet)`."""
    before = np.bincount(block[:start], minlength=alphabet)
    step = np.zeros((stop - start, alphabet), np.int32)
    step[np.arange(1, stop - start), block[start : stop - 1]] = 1
    counts = before + 1 + np.cumsum(step, axis=0)
    return np.asarray(counts / (np.arange(start, stop)[:, None] + alphabet), np.float32)


def attention_costs(blocks: Array, alphabet: int, **options: Any) -> tuple[Array, Array]:
    """Bits and hits of attention, mixed with a little order 0."""
    weights = attention_distribution(blocks, alphabet, **options)
    bits, hits = np.empty(blocks.shape), np.empty(blocks.shape, bool)
    for row, block in enumerate(blocks):
        for start in range(0, len(block), PIECE):
            stop = min(start + PIECE, len(block))
            order_0 = order_0_tables(block, alphabet, start, stop)
            mixed = (1 - SHARE_OF_ORDER_0) * weights[row, start:stop] + SHARE_OF_ORDER_0 * order_0
            mixed /= mixed.sum(axis=1, keepdims=True)  # nothing came before the first byte: order 0 alone
            actual = block[start:stop].astype(np.int64)
            bits[row, start:stop] = -np.log2(mixed[np.arange(stop - start), actual])
            hits[row, start:stop] = mixed.argmax(axis=1) == actual
    return bits, hits


def order_0_costs(blocks: Array, alphabet: int) -> tuple[Array, Array]:
    """Bits and hits of adaptive counts of single bytes."""
    row = np.broadcast_to(np.arange(len(blocks))[:, None], blocks.shape)
    return -np.log2(order_0_probabilities(blocks, alphabet)), _most_frequent_hits(row, blocks)


def order_3_costs(blocks: Array, alphabet: int) -> tuple[Array, Array]:
    """Bits and hits of adaptive counts of bytes after the same three bytes, backed by order 0."""
    batch, length = blocks.shape
    padded = np.concatenate([np.zeros((batch, 3), np.int64), blocks.astype(np.int64)], axis=1)
    contexts = np.arange(batch)[:, None] * alphabet**3
    for back in range(3):
        contexts = contexts + padded[:, back : back + length] * alphabet**back
    of_context = previous_equal(contexts.reshape(-1)).reshape(blocks.shape)
    of_byte = previous_equal((contexts * alphabet + blocks).reshape(-1)).reshape(blocks.shape)
    order_0 = order_0_probabilities(blocks, alphabet)
    probability = (of_byte + ESCAPE * order_0) / (of_context + ESCAPE)
    return -np.log2(probability), _most_frequent_hits(contexts, blocks)


def _most_frequent_hits(contexts: Array, actual: Array) -> Array:
    """Whether each byte is the one seen most often in its context so far, the first to get there on ties."""
    shape, contexts, actual = actual.shape, contexts.reshape(-1), actual.reshape(-1)
    _, number = np.unique(contexts, return_inverse=True)
    best = np.full(number.max() + 1, -1)
    best_count = np.zeros(number.max() + 1, np.int64)
    counts = previous_equal(contexts * (int(actual.max()) + 1) + actual) + 1
    hits = np.zeros(len(actual), bool)
    for i, (context, byte, count) in enumerate(
        zip(number.reshape(-1).tolist(), actual.tolist(), counts.tolist(), strict=True)
    ):
        hits[i] = best[context] == byte
        if count > best_count[context]:
            best[context], best_count[context] = byte, count
    return hits.reshape(shape)
