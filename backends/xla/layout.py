"""What every row of a call shares: spans of keys that its queries see, and how queries are cut into blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zeta_ops.options import Problem, Shapes
from zeta_ops.reference.selection import history_counts, positions, visible_counts

__all__ = ["Spans", "block_length", "over_blocks", "sequences_of", "spans_of"]

Array = jax.Array

BLOCK_ELEMENTS = 1 << 22  # of the largest array that is made for one block of queries


class Spans(NamedTuple):
    """For each query `(q_len,)` int32: where the keys lie that it may attend to.

    Attributes
    ----------
    first : array
        First key of the query's sequence.
    visible : array
        Number of keys, from the first on, among which it searches: t(i).
    history : array
        Number of keys, from the first on, whose mean is its history token.
    local_start, local_stop : array
        Keys of its local window.
    """

    first: Array
    visible: Array
    history: Array
    local_start: Array
    local_stop: Array


def sequences_of(problem: Problem, borders: Array | None) -> Array | None:
    """Tell which sequence each position is in; None where nothing is packed."""
    if borders is None:
        return None
    place = jnp.arange(problem.k_len, dtype=jnp.int32)
    return jnp.searchsorted(borders, place, side="right").astype(jnp.int32) - 1


def spans_of(problem: Problem, borders: Array | None, sequence: Array | None) -> Spans:
    """Find the spans of a call, whose keys are in the sequences that `sequences_of` tells.

    The definition's own functions count, in 64-bit integers, while JAX traces.
    """
    options, length = problem.options, problem.k_len
    end = positions(problem.q_len, options) + 1
    start = end - options.local_window
    by_place = [
        visible_counts(problem.q_len, length, options),
        history_counts(problem.q_len, length, options),
        np.clip(start, 0, length),
        np.clip(end, 0, length),
    ]
    tables = [jnp.asarray(table.astype(np.int32)) for table in by_place]
    if borders is None or sequence is None:
        return Spans(jnp.zeros(problem.q_len, jnp.int32), *tables)
    place = jnp.arange(problem.q_len, dtype=jnp.int32)
    first = borders[sequence]
    count = borders[sequence + 1] - first
    visible, history, local_start, local_stop = (jnp.minimum(table[place - first], count) for table in tables)
    return Spans(first, visible, history, first + local_start, first + local_stop)


def block_length(shapes: Shapes, elements_per_query: int) -> int:
    """Choose how many queries are worked on at a time, so that memory does not grow with the product of lengths."""
    rows = shapes.batch * shapes.q_heads
    return max(1, min(shapes.q_len, BLOCK_ELEMENTS // max(1, rows * elements_per_query)))


def over_blocks(
    function: Callable[..., tuple[Any, Any]], block: int, by_query: tuple[Array, ...], fill: int, carry: Any = ()
) -> tuple[Any, Any]:
    """Call `carry, results = function(carry, *blocks)` for one block of queries after another.

    Parameters
    ----------
    by_query : arrays (group, q_len, ...) or (q_len,)
        Cut along their queries.
    fill : int
        What stands in all arrays where the last block is longer than what is left. It has to mean: no keys.

    Returns
    -------
    carry : as the last call returns it
    results : arrays (group, q_len, ...)
    """

    def axis(x: Array) -> int:
        return min(x.ndim - 1, 1)

    length = by_query[0].shape[axis(by_query[0])]
    blocks = -(-length // block)

    def filled(x: Array) -> Array:
        padding = [(0, 0)] * x.ndim
        padding[axis(x)] = (0, blocks * block - length)
        return jnp.pad(x, padding, constant_values=fill)

    whole = [filled(x) for x in by_query]

    def step(carry: Any, number: Array) -> Any:
        return function(carry, *(lax.dynamic_slice_in_dim(x, number * block, block, axis(x)) for x in whole))

    carry, results = lax.scan(step, carry, jnp.arange(blocks, dtype=jnp.int32))

    def joined(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], blocks * block, *x.shape[3:])[:, :length]

    return carry, jax.tree.map(joined, results)
