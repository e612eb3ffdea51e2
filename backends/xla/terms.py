"""What a block of queries attends to: keys, values and weights, gathered."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zeta_ops.backends.xla import history
from zeta_ops.backends.xla.layout import Spans, block_length, sequences_of, spans_of
from zeta_ops.options import Problem, Shapes

__all__ = ["Call", "Terms", "call_of", "gather"]

Array = jax.Array


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
    """Derive what all rows share from the problem, or the shapes where indices are given, and their number."""
    local_window, history_mean, spans, sequence = 0, False, None, None
    if isinstance(shapes, Problem):
        local_window, history_mean = min(shapes.options.local_window, shapes.k_len), shapes.options.history_mean
        spans, sequence = spans_of(shapes, borders), sequences_of(shapes, borders)
    terms = selected + local_window + history_mean
    block = block_length(shapes, terms * max(shapes.value_dim, shapes.key_dim))
    return Call(spans, sequence, shapes.sum_dtype, block, local_window, history_mean)


class Terms(NamedTuple):
    """Terms of the queries of a block, `n` each: the selection, then the local window, then the history token.

    Attributes
    ----------
    at : array (group, block, n) int32
        Position of the key; the length of the keys where there is none.
    valid : array (group, block, n) bool
        Whether there is such a term; one that is none has zeros in all that follows.
    keys : array (group, block, n, dk)
    values : array (group, block, n, dv)
    u : array (group, block, n)
    """

    at: Array
    valid: Array
    keys: Array
    values: Array
    u: Array


def gather(
    call: Call, q: Array, k: Array, v: Array, gamma: Array, indices: Array, spans: Spans | None, sums: Array | None
) -> Terms:
    """Gather the terms of a block of queries.

    Parameters
    ----------
    q : array (group, block, dk), k : array (k_len, dk), v : array (k_len, dv), gamma : array (group,)
    indices : array (group, block, selected) int32
        Those outside of `[0, k_len)` are nothing.
    spans : Spans
        Of the block's queries.
    sums : array or None
        Running sums of keys and values, where there is a history token.
    """
    at = indices
    if spans is not None and call.local_window > 0:
        local = spans.local_start[:, None] + jnp.arange(call.local_window, dtype=jnp.int32)
        local = jnp.where(local < spans.local_stop[:, None], local, -1)
        at = jnp.concatenate([at, jnp.broadcast_to(local, (*at.shape[:-1], call.local_window))], axis=-1)
    valid = (at >= 0) & (at < k.shape[0])
    keys, values = (_rows(x, at, valid).astype(call.sum_dtype) for x in (k, v))
    at = jnp.where(valid, at, k.shape[0])
    if spans is not None and sums is not None:
        token, exists = history.tokens(sums, spans)
        shape = (*at.shape[:-1], 1)
        token = jnp.broadcast_to(token[:, None], (*shape, token.shape[-1]))
        keys = jnp.concatenate([keys, token[..., : k.shape[-1]]], axis=-2)
        values = jnp.concatenate([values, token[..., k.shape[-1] :]], axis=-2)
        valid = jnp.concatenate([valid, jnp.broadcast_to(exists[:, None], shape)], axis=-1)
        at = jnp.concatenate([at, jnp.full(shape, k.shape[0], at.dtype)], axis=-1)
    difference = q.astype(call.sum_dtype)[..., None, :] - keys
    squared = (difference * difference).sum(-1)
    u = jnp.where(valid, 1 / (squared + (gamma * gamma)[:, None, None]), 0)
    return Terms(at, valid, keys, values, u)


def _rows(x: Array, at: Array, valid: Array) -> Array:
    return jnp.where(valid[..., None], x[jnp.where(valid, at, 0)], 0)
