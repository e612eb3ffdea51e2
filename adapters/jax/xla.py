"""The operations as JAX functions of plain XLA, in place of those of `ops`: nothing foreign is called.

XLA maps and partitions them by itself. They are compiled, so that eager calls are too. Their derivatives are those of
`ops`: reversing the loops over blocks once more would keep what every block gathers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import jax

from zeta_ops.adapters.jax.ffi import Place
from zeta_ops.adapters.jax.ops import differentiated_once, shapes_of
from zeta_ops.backends.xla import attention, morton, selection
from zeta_ops.options import Options, Problem

__all__ = [
    "given_backward",
    "given_forward",
    "morton_decode",
    "morton_encode",
    "search_backward",
    "search_forward",
    "select",
]

Array = jax.Array
Results = tuple[Array, ...]


def _problem(q: Array, k: Array, v: Array, borders: Results, options: Options) -> Problem:
    sequences = borders[0].shape[0] - 1 if borders else None
    return shapes_of(q, k, v).searched(sequences, options)


@lru_cache(maxsize=256)
def _search(operation: str, options: Options, packed: bool) -> Callable[..., Results]:
    def select(q: Array, k: Array, *borders: Array) -> Results:
        return (selection.causal_topk(_problem(q, k, k, borders, options), q, k, *(borders or (None,))),)

    def forward(q: Array, k: Array, v: Array, gamma: Array, *borders: Array) -> Results:
        problem = _problem(q, k, v, borders, options)
        return attention.attention_forward(problem, q, k, v, gamma, *(borders or (None,)))

    def backward(grad_out: Array, q: Array, k: Array, v: Array, gamma: Array, *others: Array) -> Results:
        borders, kept = others[:packed], others[packed:]
        problem = _problem(q, k, v, borders, options)
        return attention.attention_backward(problem, grad_out, q, k, v, gamma, *(borders or (None,)), *kept)

    operations: dict[str, Callable[..., Results]] = {
        "select": select,
        "search_forward": forward,
        "search_backward": backward,
    }
    return differentiated_once(jax.jit(operations[operation]))


def select(q: Array, k: Array, borders: Results, options: Options, place: Place) -> Array:
    """See `ops.select`."""
    return _search("select", options, bool(borders))(q, k, *borders)[0]


def search_forward(*arguments: Array, options: Options, packed: bool, place: Place) -> Results:
    """See `ops.search_forward`."""
    return _search("search_forward", options, packed)(*arguments)


def search_backward(*arguments: Array, options: Options, packed: bool, place: Place) -> Results:
    """See `ops.search_backward`."""
    return _search("search_backward", options, packed)(*arguments)


@differentiated_once
@jax.jit
def _given_forward(q: Array, k: Array, v: Array, indices: Array, gamma: Array) -> Results:
    return attention.cauchy_forward(shapes_of(q, k, v), q, k, v, indices, gamma)


@differentiated_once
@jax.jit
def _given_backward(grad_out: Array, q: Array, k: Array, v: Array, *others: Array) -> Results:
    return attention.cauchy_backward(shapes_of(q, k, v), grad_out, q, k, v, *others)


def given_forward(*arguments: Array, place: Place) -> Results:
    """See `ops.given_forward`."""
    return _given_forward(*arguments)


def given_backward(*arguments: Array, place: Place) -> Results:
    """See `ops.given_backward`."""
    return _given_backward(*arguments)


morton_encode = jax.jit(morton.morton_encode, static_argnames=("bits", "bounds", "num_curves", "curve"))
morton_decode = jax.jit(morton.morton_decode, static_argnames=("dims", "bits"))
