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
from zeta_ops.backends.xla.terms import Call, call_of, folded, gather, products_with_values, row_of, weighted_values
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


def _forward(
    shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: Array, borders: Array | None
) -> tuple[Array, Array]:
    if _nothing_to_do(shapes):
        return jnp.zeros(shapes.out_shape, v.dtype), jnp.zeros(shapes.normalizer_shape, shapes.sum_dtype)
    call = call_of(shapes, indices.shape[-1], borders)

    def attend(q: Array, k: Array, v: Array, indices: Array, gamma: Array) -> tuple[Array, Array]:
        row = row_of(call, k, v, gamma)

        def step(carry: Any, q: Array, indices: Array, *spans: Array) -> Any:
            terms = gather(call, row, q, indices, spans)
            total, normalizer = weighted_values(terms.u, terms.at, row), terms.u.sum(-1)
            if terms.token is not None:
                total += terms.token.u[..., None] * terms.token.value
                normalizer += terms.token.u
            out = jnp.where(normalizer[..., None] == 0, 0, total / normalizer[..., None])
            return carry, (out.astype(v.dtype), normalizer)

        result: tuple[Array, Array] = over_blocks(step, call.block, (q, indices, *(call.spans or ())), fill=-1)[1]
        return result

    rows = _grouped(shapes, q), k, v, _grouped(shapes, indices), _gamma_of_rows(shapes, gamma)
    out, normalizer = jax.vmap(jax.vmap(attend))(*rows)
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
    row = row_of(call, k, v, gamma)

    def step(carry: Any, g: Array, q: Array, indices: Array, z: Array, *spans: Array) -> Any:
        grad_k, grad_v, grad_gamma, received = carry
        terms = gather(call, row, q, indices, spans)
        # Where all weights are zero, or there are none, the output is zero whatever the inputs are.
        weighted = z != 0
        g, z = g.astype(dtype), jnp.where(weighted, z, 1)
        p, products = terms.u / z[..., None], products_with_values(g, terms.at, row)
        mean_product = (p * products).sum(-1)
        if terms.token is not None:
            token_p, token_product = terms.token.u / z, folded(g * terms.token.value)
            mean_product += token_p * token_product
        exists = weighted[..., None] & (terms.at < k.shape[0])
        e, pull = _slopes(terms.u, products - mean_product[..., None], z[..., None], terms.difference, exists)
        grad_q = pull.sum(-1)
        # Where there is no key, the place is behind the last one, and what is added is dropped.
        grad_k = grad_k.at[:, terms.at].add(-pull, mode="drop")
        grad_v = grad_v.at[terms.at].add(p[..., None] * g[..., None, :], mode="drop")
        grad_gamma = grad_gamma + 2 * gamma * e.sum((-1, -2))
        if terms.token is not None:
            exists = weighted & terms.token.exists
            slopes = token_product - mean_product
            token_e, token_pull = _slopes(terms.token.u, slopes, z, terms.token.difference, exists)
            grad_q = grad_q + token_pull
            grad_gamma = grad_gamma + 2 * gamma * token_e.sum(-1)
            of_means = jnp.concatenate([jnp.moveaxis(-token_pull, 0, -1), token_p[..., None] * g], axis=-1)
            received = history.received(received, Spans(*spans), of_means)
        return (grad_k, grad_v, grad_gamma, received), jnp.moveaxis(grad_q, 0, -1)

    tokens = () if row.sums is None else jnp.zeros_like(row.sums)
    start = jnp.zeros(k.T.shape, dtype), jnp.zeros(v.shape, dtype), jnp.zeros_like(gamma), tokens
    by_query = grad_out, q, indices, normalizer, *(call.spans or ())
    (grad_k, grad_v, grad_gamma, received), grad_q = over_blocks(step, call.block, by_query, -1, start)
    grad_k = grad_k.T
    if row.sums is not None:
        of_k, of_v = history.handed_on(received, k.shape[-1], call.sequence)
        grad_k, grad_v = grad_k + of_k, grad_v + of_v
    return grad_q, grad_k, grad_v, grad_gamma


def _slopes(u: Array, products: Array, z: Array, difference: Array, exists: Array) -> tuple[Array, Array]:
    """Differentiate by squared distances, `e = -u**2 (g . v - g . out) / Z`, and by queries, `2 e (q - k)`."""
    e = jnp.where(exists, -u * u * products / z, 0)
    return e, jnp.where(exists, 2 * e * difference, 0)
