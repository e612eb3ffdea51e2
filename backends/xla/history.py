"""History tokens: means of all keys and values so far, from running sums along a row that restart at every sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from zeta_ops.backends.xla.layout import Spans

__all__ = ["handed_on", "received", "running_sums", "tokens"]

Array = jax.Array


def running_sums(k: Array, v: Array, sequence: Array | None, dtype: str) -> Array:
    """Sum up, `(k_len, dk + dv)`, the keys and values of a sequence up to each of its positions.

    `sequence (k_len,)` numbers the sequences of packed keys.
    """
    return _running(jnp.concatenate([k.astype(dtype), v.astype(dtype)], axis=-1), sequence, reverse=False)


def tokens(sums: Array, spans: Spans) -> tuple[Array, Array]:
    """Token `(block, dk + dv)` of each query of a block, zero where there is none, and whether there is one."""
    exists = spans.history > 0
    token = sums[_last(spans)] / jnp.maximum(spans.history, 1).astype(sums.dtype)[:, None]
    return jnp.where(exists[:, None], token, 0), exists


def received(carry: Array, spans: Spans, gradient: Array) -> Array:
    """Add the gradients `(group, block, dk + dv)` of a block's tokens where their means end."""
    exists = spans.history > 0
    each = gradient.sum(0) / jnp.maximum(spans.history, 1).astype(gradient.dtype)[:, None]
    return carry.at[jnp.where(exists, _last(spans), carry.shape[0])].add(each, mode="drop")


def handed_on(carry: Array, key_dim: int, sequence: Array | None) -> tuple[Array, Array]:
    """Hand what tokens have received on to every key and value of their means."""
    total = _running(carry, sequence, reverse=True)
    return total[:, :key_dim], total[:, key_dim:]


def _last(spans: Spans) -> Array:
    return spans.first + jnp.maximum(spans.history - 1, 0)


def _running(x: Array, sequence: Array | None, *, reverse: bool) -> Array:
    if sequence is None:
        return lax.associative_scan(jnp.add, x, reverse=reverse)

    def joined(before: tuple[Array, Array], after: tuple[Array, Array]) -> tuple[Array, Array]:
        same = (before[0] == after[0])[:, None]
        return after[0], jnp.where(same, before[1] + after[1], after[1])

    return lax.associative_scan(joined, (sequence, x), reverse=reverse)[1]
