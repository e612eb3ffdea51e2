"""Attention over selected or given keys, and its gradients, one block of queries at a time.

Each function returns what its namesake in `zeta_ops.backends.Backend` writes. Indices of the selection are kept for the
backward pass, as many as a query attends to; all else is gathered again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from zeta_ops.backends.xla import history
from zeta_ops.backends.xla.layout import Spans, over_blocks
from zeta_ops.backends.xla.selection import select
from zeta_ops.backends.xla.terms import Call, call_of, gather
from zeta_ops.options import Problem, Shapes

__all__ = ["attention_backward", "attention_forward", "cauchy_backward", "cauchy_forward"]

Array = jax.Array
Gradients = tuple[Array, Array, Array, Array]


def attention_forward(
    problem: Problem, q: Array, k: Array, v: Array, gamma: Array, cu_seqlens: Array | None
) -> tuple[Array, Array, Array]:
    """Attend over the selection; returns output, normalizer and selection."""
    selected = select(problem, q, k, cu_seqlens)
    return *_forward(problem, q, k, v, selected, gamma, cu_seqlens), selected


def attention_backward(
    problem: Problem,
    grad_out: Array,
    q: Array,
    k: Array,
    v: Array,
    gamma: Array,
    cu_seqlens: Array | None,
    normalizer: Array,
    selected: Array,
) -> Gradients:
    """Differentiate `attention_forward`: gradients of q, k, v and gamma."""
    return _backward(problem, grad_out, q, k, v, selected, gamma, normalizer, cu_seqlens)


def cauchy_forward(shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: Array) -> tuple[Array, Array]:
    """Attend over given indices; returns output and normalizer. Positions that do not exist are nothing."""
    return _forward(shapes, q, k, v, indices, gamma, None)


def cauchy_backward(
    shapes: Shapes, grad_out: Array, q: Array, k: Array, v: Array, indices: Array, gamma: Array, normalizer: Array
) -> Gradients:
    """Differentiate `cauchy_forward`: gradients of q, k, v and gamma."""
    return _backward(shapes, grad_out, q, k, v, indices, gamma, normalizer, None)


def _grouped(shapes: Shapes, x: Array) -> Array:
    """Bring the query heads of each key head together: `(batch, kv_heads, group, ...)`."""
    return x.reshape(x.shape[0], shapes.kv_heads, shapes.group_size, *x.shape[2:])


def _gamma_of_rows(shapes: Shapes, gamma: Array) -> Array:
    per_head = gamma.astype(shapes.sum_dtype).reshape(shapes.kv_heads, shapes.group_size)
    return jnp.broadcast_to(per_head, (shapes.batch, *per_head.shape))


def _nothing_to_do(shapes: Shapes) -> bool:
    return 0 in (shapes.batch, shapes.q_len, shapes.k_len)


def _running_sums(call: Call, k: Array, v: Array) -> Array | None:
    return history.running_sums(k, v, call.sequence, call.sum_dtype) if call.history_mean else None


def _forward(
    shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: Array, borders: Array | None
) -> tuple[Array, Array]:
    if _nothing_to_do(shapes):
        return jnp.zeros(shapes.out_shape, v.dtype), jnp.zeros(shapes.normalizer_shape, shapes.sum_dtype)
    call = call_of(shapes, indices.shape[-1], borders)

    def row(q: Array, k: Array, v: Array, indices: Array, gamma: Array) -> tuple[Array, Array]:
        sums = _running_sums(call, k, v)

        def step(carry: Any, q: Array, indices: Array, *spans: Array) -> Any:
            terms = gather(call, q, k, v, gamma, indices, Spans(*spans) if spans else None, sums)
            normalizer = terms.u.sum(-1)
            total = (terms.u[..., None] * terms.values).sum(-2)
            out = jnp.where(terms.valid.any(-1)[..., None], total / normalizer[..., None], 0)
            return carry, (out.astype(v.dtype), normalizer)

        result: tuple[Array, Array] = over_blocks(step, call.block, (q, indices, *(call.spans or ())))[1]
        return result

    rows = _grouped(shapes, q), k, v, _grouped(shapes, indices), _gamma_of_rows(shapes, gamma)
    out, normalizer = jax.vmap(jax.vmap(row))(*rows)
    return out.reshape(shapes.out_shape), normalizer.reshape(shapes.normalizer_shape)


def _backward(
    shapes: Shapes,
    grad_out: Array,
    q: Array,
    k: Array,
    v: Array,
    indices: Array,
    gamma: Array,
    normalizer: Array,
    borders: Array | None,
) -> Gradients:
    if _nothing_to_do(shapes):
        return jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v), jnp.zeros_like(gamma)
    call = call_of(shapes, indices.shape[-1], borders)
    rows = (
        _grouped(shapes, grad_out),
        _grouped(shapes, q),
        k,
        v,
        _grouped(shapes, indices),
        _gamma_of_rows(shapes, gamma),
        _grouped(shapes, normalizer),
    )
    grad_q, grad_k, grad_v, grad_gamma = jax.vmap(jax.vmap(partial(_backward_of_row, call)))(*rows)
    return (
        grad_q.reshape(shapes.q_shape).astype(q.dtype),
        grad_k.astype(k.dtype),
        grad_v.astype(v.dtype),
        grad_gamma.sum(0).reshape(shapes.q_heads).astype(gamma.dtype),
    )


def _backward_of_row(
    call: Call, grad_out: Array, q: Array, k: Array, v: Array, indices: Array, gamma: Array, normalizer: Array
) -> Gradients:
    """Gradients of one key head and its group of query heads, added up in place from block to block."""
    dtype = jnp.dtype(call.sum_dtype)
    sums = _running_sums(call, k, v)

    def step(carry: Any, g: Array, q: Array, indices: Array, z: Array, *spans: Array) -> Any:
        grad_k, grad_v, grad_gamma, received = carry
        terms = gather(call, q, k, v, gamma, indices, Spans(*spans) if spans else None, sums)
        g = g.astype(dtype)[..., None, :]
        p = jnp.where(terms.valid, terms.u / z[..., None], 0)
        products = (g * terms.values).sum(-1)
        slopes = products - (p * products).sum(-1, keepdims=True)
        e = jnp.where(terms.valid, -terms.u * terms.u * slopes / z[..., None], 0)
        difference = q.astype(dtype)[..., None, :] - terms.keys
        pull = jnp.where(terms.valid[..., None], 2 * e[..., None] * difference, 0)
        share = jnp.where(terms.valid[..., None], p[..., None] * g, 0)
        # What is no key stands behind the last one, where it is dropped.
        grad_k = grad_k.at[terms.at].add(-pull, mode="drop")
        grad_v = grad_v.at[terms.at].add(share, mode="drop")
        if sums is not None:
            received = history.received(received, Spans(*spans), -pull[..., -1, :], share[..., -1, :])
        return (grad_k, grad_v, grad_gamma + 2 * gamma * e.sum((-1, -2)), received), pull.sum(-2)

    start = jnp.zeros(k.shape, dtype), jnp.zeros(v.shape, dtype), jnp.zeros_like(gamma)
    start = *start, () if sums is None else jnp.zeros_like(sums)
    by_query = grad_out, q, indices, normalizer, *(call.spans or ())
    (grad_k, grad_v, grad_gamma, received), grad_q = over_blocks(step, call.block, by_query, start)
    if sums is not None:
        of_k, of_v = history.handed_on(received, k.shape[-1], call.sequence)
        grad_k, grad_v = grad_k + of_k, grad_v + of_v
    return grad_q, grad_k, grad_v, grad_gamma
