"""What a block of queries attends to: positions, differences and weights, gathered; and walks over the value rows."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zeta_ops.backends.xla import history
from zeta_ops.backends.xla.layout import Spans, block_length, sequences_of, spans_of
from zeta_ops.options import Problem, Shapes

__all__ = ["Call", "Row", "Terms", "call_of", "folded", "gather", "products_with_values", "row_of", "weighted_values"]

Array = jax.Array

UNROLLED = 8  # steps of a walk over terms that are compiled together


class Call(NamedTuple):
    """What all rows of a call share.

    Attributes
    ----------
    spans : Spans or None
        None where indices are given.
    sequence : array (k_len,) or None
        The sequence of each key, where several are packed.
    block : int
        Queries at a time.
    """

    spans: Spans | None
    sequence: Array | None
    sum_dtype: str
    block: int
    local_window: int
    history_mean: bool


def call_of(shapes: Shapes, selected: int, borders: Array | None) -> Call:
    """Derive what all rows share, for `selected` indices a query, from a problem, or shapes where they are given."""
    local_window, history_mean, spans, sequence = 0, False, None, None
    if isinstance(shapes, Problem):
        local_window, history_mean = min(shapes.options.local_window, shapes.k_len), shapes.options.history_mean
        sequence = sequences_of(shapes, borders)
        spans = spans_of(shapes, borders, sequence)
    block = block_length(shapes, (selected + local_window) * max(shapes.value_dim, shapes.key_dim))
    return Call(spans, sequence, shapes.sum_dtype, block, local_window, history_mean)


class Row(NamedTuple):
    """Keys and values of one key head, as walks over terms read them.

    Attributes
    ----------
    k : array (dk, k_len + 1), v : array (k_len + 1, dv)
        With a zero at the end: what a term that is none reads.
    gamma : array (group,)
    sums : array (k_len, dk + dv) or None
        Running sums, where there is a history token.
    """

    k: Array
    v: Array
    gamma: Array
    sums: Array | None


def row_of(call: Call, k: Array, v: Array, gamma: Array) -> Row:
    """Prepare `k (k_len, dk)` and `v (k_len, dv)`."""
    sums = history.running_sums(k, v, call.sequence, call.sum_dtype) if call.history_mean else None
    padding = ((0, 1), (0, 0))
    return Row(jnp.pad(k, padding).T.astype(call.sum_dtype), jnp.pad(v, padding), gamma, sums)


class Terms(NamedTuple):
    """Terms of the queries of a block, `n` each: first the selection, then the local window.

    Attributes
    ----------
    at : array (group, block, n) int32
        Position of the key; the number of keys where there is none, which has zeros in all that follows.
    difference : array (dk, group, block, n)
        Query minus key.
    u : array (group, block, n)
    token : Token or None
    """

    at: Array
    difference: Array
    u: Array
    token: Token | None


class Token(NamedTuple):
    """The history tokens of a block: `exists (block,)`, `value (block, dv)`, the rest as in `Terms` without `n`."""

    exists: Array
    value: Array
    difference: Array
    u: Array


def gather(call: Call, row: Row, q: Array, indices: Array, spans: tuple[Array, ...]) -> Terms:
    """Gather the terms of a block of queries.

    Parameters
    ----------
    q : array (group, block, dk)
    indices : array (group, block, selected) int32
        Those outside of `[0, k_len)` are nothing.
    spans : tuple
        Fields of `Spans` for the block's queries; empty where indices are given.
    """
    key_dim, length = row.k.shape[0], row.k.shape[1] - 1
    at = indices
    if call.local_window > 0:
        of_block = Spans(*spans)
        local = of_block.local_start[:, None] + jnp.arange(call.local_window, dtype=jnp.int32)
        local = jnp.where(local < of_block.local_stop[:, None], local, length)
        at = jnp.concatenate([at, jnp.broadcast_to(local, (*at.shape[:-1], call.local_window))], axis=-1)
    at = jnp.where((at >= 0) & (at < length), at, length)
    query = jnp.moveaxis(q.astype(call.sum_dtype), -1, 0)
    keys = row.k.at[:, at].get(mode="promise_in_bounds")
    difference = jnp.where(at < length, query[..., None] - keys, 0)
    u = jnp.where(at < length, _weights(difference, row.gamma[:, None, None]), 0)
    if row.sums is None:
        return Terms(at, difference, u, None)
    mean, has_token = history.tokens(row.sums, Spans(*spans))
    difference_to_mean = jnp.where(has_token, query - mean[:, :key_dim].T[:, None], 0)
    token_u = jnp.where(has_token, _weights(difference_to_mean, row.gamma[:, None]), 0)
    token = Token(has_token, mean[:, key_dim:], difference_to_mean, token_u)
    return Terms(at, difference, u, token)


def _weights(difference: Array, gamma: Array) -> Array:
    return 1 / ((difference * difference).sum(0) + gamma * gamma)


def weighted_values(weights: Array, at: Array, row: Row) -> Array:
    """Sum `weights (group, block, n)` times value rows over the terms: `(group, block, dv)`, one after another."""

    def add(total: Array, term: tuple[Array, Array]) -> tuple[Array, None]:
        weight, at = term
        return total + weight[..., None] * _values(row, at, weight.dtype), None

    start = jnp.zeros((*at.shape[:-1], row.v.shape[-1]), weights.dtype)
    terms = jnp.moveaxis(weights, -1, 0), jnp.moveaxis(at, -1, 0)
    return lax.scan(add, start, terms, unroll=UNROLLED)[0]


def products_with_values(g: Array, at: Array, row: Row) -> Array:
    """Products of `g (group, block, dv)` with the value row of each term: `(group, block, n)`."""

    def multiply(_: None, at: Array) -> tuple[None, Array]:
        return None, folded(g * _values(row, at, g.dtype))

    return jnp.moveaxis(lax.scan(multiply, None, jnp.moveaxis(at, -1, 0))[1], 0, -1)


def _values(row: Row, at: Array, dtype: jnp.dtype) -> Array:
    return row.v.at[at].get(mode="promise_in_bounds").astype(dtype)


def folded(x: Array) -> Array:
    """Sum over the last axis by halves: XLA's CPU compiler vectorises additions, but no sum of neighbours."""
    while x.shape[-1] > 1:
        half = (x.shape[-1] + 1) // 2
        upper = jnp.pad(x[..., half:], [(0, 0)] * (x.ndim - 1) + [(0, 2 * half - x.shape[-1])])
        x = x[..., :half] + upper
    return x.sum(-1)
