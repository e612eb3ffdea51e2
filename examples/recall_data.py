"""Multi-query associative recall: the task of Zoology (arXiv 2312.04927), generated from its definition.

A sequence is key-value pairs, then the keys again at random gaps, short ones more often (a power law); at each of
these the model has to name the key's value. Keys are from one half of the vocabulary, each at most once in a sequence;
values are from the other. All other places hold random values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NO_TARGET", "recall_batch"]

Array = npt.NDArray[Any]

NO_TARGET = -1  # where nothing is to be predicted


def recall_batch(
    rng: np.random.Generator, batch: int, *, length: int, num_pairs: int, vocab_size: int, power: float = 0.01
) -> tuple[Array, Array]:
    """Draw sequences with their targets.

    Parameters
    ----------
    rng : numpy.random.Generator
        What everything is drawn from.
    batch : int
        Number of sequences.
    length : int
        Tokens of each; at least `4 * num_pairs`.
    num_pairs : int
        Pairs, each of which is asked for once; at most half of `vocab_size`.
    vocab_size : int
        Tokens 0 to `vocab_size // 2 - 1` are keys, the others values.
    power : float
        A query stands at the g-th place after the pairs with a probability that is proportional to `g**(power - 1)`.

    Returns
    -------
    tokens : array (batch, length), int64
    targets : array (batch, length), int64
        The value at each query's place, elsewhere `NO_TARGET`.
    """
    half = vocab_size // 2
    if length < 4 * num_pairs:
        raise ValueError(f"length must be at least 4 * num_pairs = {4 * num_pairs}; got {length}")
    if num_pairs > half:
        raise ValueError(f"num_pairs must be at most half of vocab_size, {half}; got {num_pairs}")
    keys = rng.random((batch, half)).argpartition(num_pairs - 1, axis=1)[:, :num_pairs]
    rng.permuted(keys, axis=1, out=keys)
    values = rng.integers(half, vocab_size, (batch, num_pairs))
    tokens = rng.integers(half, vocab_size, (batch, length))
    tokens[:, 0 : 2 * num_pairs : 2] = keys
    tokens[:, 1 : 2 * num_pairs : 2] = values
    gaps = np.arange(1, length // 2 - num_pairs + 1)
    # The places of the largest sums of log-weights and Gumbel noise are a draw without replacement. In that order the
    # first pair would most often be asked for first; shuffled, a pair's place says nothing about its query's.
    order = (power - 1) * np.log(gaps) + rng.gumbel(size=(batch, len(gaps)))
    places = rng.permuted(2 * (num_pairs + np.argsort(-order, axis=1)[:, :num_pairs]), axis=1)
    targets = np.full_like(tokens, NO_TARGET)
    np.put_along_axis(tokens, places, keys, axis=1)
    np.put_along_axis(targets, places, values, axis=1)
    return tokens, targets
