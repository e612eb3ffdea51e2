"""Models that count bytes, compiled: what attention is compared and mixed with.

Counts start afresh in each block. A model's guess is the most likely byte of its distribution, the lowest on ties.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["mixture_hits", "order_0", "order_3"]

Array = npt.NDArray[Any]

# Weight of order 0 in order 3, in counts; it may not exceed 1, so that order 0 decides between equal counts only.
ESCAPE = 1.0

_Function = TypeVar("_Function", bound=Callable[..., Any])
compiled: Callable[[_Function], _Function] = njit(cache=True, nogil=True, error_model="numpy")


def order_0(blocks: Array, alphabet: int) -> tuple[Array, Array]:
    """Count single bytes, each once in advance.

    Parameters
    ----------
    blocks : ndarray (batch, n), uint8
        Bytes numbered below `alphabet`.

    Returns
    -------
    probability : ndarray (batch, n), float64
        Of each actual byte, from those before it.
    hits : ndarray (batch, n), bool
        Whether it was the most likely one.
    """
    probability, hits = np.empty(blocks.shape), np.empty(blocks.shape, np.bool_)
    _order_0_kernel(blocks, alphabet, probability, hits)
    return probability, hits


def order_3(blocks: Array, alphabet: int) -> tuple[Array, Array]:
    """Count bytes after the same three bytes, backed by order 0; arguments and results as for `order_0`."""
    batch, length = blocks.shape
    padded = np.concatenate([np.zeros((batch, 3), np.int64), blocks.astype(np.int64)], axis=1)
    contexts = np.arange(batch)[:, None] * alphabet**3
    for back in range(3):
        contexts = contexts + padded[:, back : back + length] * alphabet**back
    probability, hits = np.empty(blocks.shape), np.empty(blocks.shape, np.bool_)
    _order_3_kernel(blocks, alphabet, _number(contexts), _number(contexts * alphabet + blocks), probability, hits)
    return probability, hits


def mixture_hits(blocks: Array, weights: Array, shares: Array) -> Array:
    """Whether each byte was the most likely one of `(1 - shares) * weights + shares * order_0`.

    Parameters
    ----------
    weights : ndarray (batch, n, alphabet)
        Distributions to mix with those of order 0.
    shares : ndarray (batch, n)
        Of order 0.

    Returns
    -------
    ndarray (batch, n), bool
    """
    hits = np.empty(blocks.shape, np.bool_)
    _mixture_kernel(blocks, weights, shares, hits)
    return hits


def _number(keys: Array) -> Array:
    """Replace keys by numbers from 0, the same for equal ones."""
    return np.asarray(np.unique(keys, return_inverse=True)[1].reshape(keys.shape))


@compiled
def _order_0_kernel(blocks: Array, alphabet: int, probability: Array, hits: Array) -> None:
    for row in range(blocks.shape[0]):
        counts = np.ones(alphabet, np.int64)
        guess = 0
        for i in range(blocks.shape[1]):
            byte = blocks[row, i]
            probability[row, i] = counts[byte] / (i + alphabet)
            hits[row, i] = guess == byte
            counts[byte] += 1
            guess = _likelier(counts, byte, guess)


@compiled
def _order_3_kernel(
    blocks: Array, alphabet: int, contexts: Array, pairs: Array, probability: Array, hits: Array
) -> None:
    """Keep the pairs of a context and a byte after it that have been seen in a linked list for each context.

    `contexts (batch, n)` numbers the context of each byte, `pairs (batch, n)` it together with the byte.
    """
    seen = np.zeros(contexts.max() + 1, np.int64)  # times of a context
    first = np.full(len(seen), -1)  # pair of a context
    times = np.zeros(pairs.max() + 1, np.int64)  # of a pair
    following = np.empty(len(times), np.int64)  # pair of the same context
    byte_of = np.empty(len(times), np.uint8)
    for row in range(blocks.shape[0]):
        counts = np.ones(alphabet, np.int64)
        most_frequent = 0
        for i in range(blocks.shape[1]):
            byte, context, actual = blocks[row, i], contexts[row, i], pairs[row, i]
            guess, most = most_frequent, 0
            pair = first[context]
            while pair >= 0:
                if times[pair] > most:
                    guess, most = byte_of[pair], times[pair]
                elif times[pair] == most:
                    guess = _likelier(counts, byte_of[pair], guess)
                pair = following[pair]
            hits[row, i] = guess == byte
            order_0 = counts[byte] / (i + alphabet)
            probability[row, i] = (times[actual] + ESCAPE * order_0) / (seen[context] + ESCAPE)
            if times[actual] == 0:
                byte_of[actual] = byte
                following[actual] = first[context]
                first[context] = actual
            times[actual] += 1
            seen[context] += 1
            counts[byte] += 1
            most_frequent = _likelier(counts, byte, most_frequent)


@compiled
def _mixture_kernel(blocks: Array, weights: Array, shares: Array, hits: Array) -> None:
    alphabet = weights.shape[2]
    for row in range(blocks.shape[0]):
        counts = np.ones(alphabet, np.int64)
        for i in range(blocks.shape[1]):
            of_weight, of_count = 1 - shares[row, i], shares[row, i] / (i + alphabet)
            guess, most = 0, -1.0
            for byte in range(alphabet):
                mixed = of_weight * weights[row, i, byte] + of_count * counts[byte]
                if mixed > most:
                    guess, most = byte, mixed
            hits[row, i] = guess == blocks[row, i]
            counts[blocks[row, i]] += 1


@compiled
def _likelier(counts: Array, byte: int, other: int) -> int:
    """Return which of two bytes was counted more often, the lower on ties."""
    if counts[byte] > counts[other] or (counts[byte] == counts[other] and byte < other):
        return byte
    return other
