"""Which keys each query selects: windows of curves by counting, the nearest by bisection."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zeta_ops.backends.xla import wavelet
from zeta_ops.backends.xla.candidates import nearest
from zeta_ops.backends.xla.distances import squared_distances
from zeta_ops.backends.xla.layout import Spans, block_length, over_blocks, sequences_of, spans_of
from zeta_ops.backends.xla.morton import Words, morton_encode
from zeta_ops.options import Options, Problem

__all__ = ["NOTHING", "causal_topk", "select"]

Array = jax.Array

NOTHING = -1


class Curve(NamedTuple):
    """One curve's order of the keys of a row, and where its queries `(group, q_len)` belong in it."""

    tree: wavelet.Tree
    insertion: Array  # number of keys of any time that come before the query


def causal_topk(problem: Problem, q: Array, k: Array, cu_seqlens: Array | None) -> Array:
    """Select keys: `(batch, q_heads, q_len, top_k)` int32, ascending, padded with -1."""
    top_k = problem.options.top_k
    selected = select(problem, q, k, cu_seqlens)
    last = jnp.iinfo(jnp.int32).max
    selected = jnp.sort(jnp.where(selected < 0, last, selected), axis=-1)[..., :top_k]
    selected = jnp.where(selected == last, NOTHING, selected)
    return jnp.pad(selected, [(0, 0)] * 3 + [(0, top_k - selected.shape[-1])], constant_values=NOTHING)


def select(problem: Problem, q: Array, k: Array, cu_seqlens: Array | None) -> Array:
    """Select keys: `(batch, q_heads, q_len, any number)` int32 in any order, -1 where there is none."""
    options = problem.options
    if 0 in (problem.batch, problem.q_len, problem.k_len):
        return jnp.full((*problem.normalizer_shape, 0), NOTHING, jnp.int32)
    width = min(options.window, problem.k_len) * options.num_curves
    exact = options.search == "exact"
    block = block_length(problem, problem.k_len if exact else width)
    sequence = sequences_of(problem, cu_seqlens)
    spans = spans_of(problem, cu_seqlens, sequence)

    def row(q: Array, k: Array) -> Array:
        if exact:
            return _nearest_of_all(q, k, spans, options, block)
        return _by_curves(q, k, spans, sequence, options, block)

    grouped = q.reshape(problem.batch, problem.kv_heads, problem.group_size, problem.q_len, problem.key_dim)
    selected = jax.vmap(jax.vmap(row))(grouped, k)
    return selected.reshape(*problem.normalizer_shape, selected.shape[-1])


def _nearest_of_all(q: Array, k: Array, spans: Spans, options: Options, block: int) -> Array:
    """Take the nearest of all visible keys of one row, `q (group, q_len, dk)` and `k (k_len, dk)`."""
    coordinates = k.T[:, None, None, :]
    position = jnp.arange(k.shape[0], dtype=jnp.int32)

    def step(carry: tuple[()], q: Array, first: Array, visible: Array) -> tuple[tuple[()], Array]:
        distance = squared_distances(jnp.moveaxis(q, -1, 0)[..., None], coordinates)
        seen = (position >= first[:, None]) & (position < (first + visible)[:, None])
        place, taken = nearest(distance, position, jnp.broadcast_to(seen, distance.shape), options.top_k, k.shape[0])
        return carry, jnp.where(taken, place, NOTHING)

    return over_blocks(step, block, (q, spans.first, spans.visible), fill=0)[1]


def _by_curves(q: Array, k: Array, spans: Spans, sequence: Array | None, options: Options, block: int) -> Array:
    """Take the union of the curves' windows of one row, cut to the nearest if it is too large."""
    curves = [_curve(q, k, sequence, options, number) for number in range(options.num_curves)]
    coordinates = k.T
    width = min(options.window, k.shape[0])

    def step(carry: tuple[()], q: Array, first: Array, visible: Array, *insertions: Array) -> tuple[tuple[()], Array]:
        found, valid = _windows([curve.tree for curve in curves], insertions, first, visible, options.window, width)
        if found.shape[-1] > options.top_k:
            distance = squared_distances(jnp.moveaxis(q, -1, 0)[..., None], coordinates[:, found])
            place, valid = nearest(distance, found, valid, options.top_k, k.shape[0])
            found = jnp.take_along_axis(found, place, axis=-1)
        return carry, jnp.where(valid, found, NOTHING)

    by_query = (q, spans.first, spans.visible, *(curve.insertion for curve in curves))
    return over_blocks(step, block, by_query, fill=0)[1]


def _curve(q: Array, k: Array, sequence: Array | None, options: Options, number: int) -> Curve:
    """Sort the keys of a row by (sequence, code, position), and look up its queries."""

    def encode(x: Array) -> Words:
        return morton_encode(x, bits=options.bits, bounds=options.bounds, num_curves=options.num_curves, curve=number)

    codes, query_codes = encode(k), encode(q)
    if sequence is not None:  # queries are packed as keys are
        codes = sequence.astype(jnp.uint32), *codes
        query_codes = jnp.broadcast_to(codes[0], q.shape[:-1]), *query_codes
    position = jnp.arange(k.shape[0], dtype=jnp.int32)
    *in_order, key = lax.sort((*codes, position), num_keys=len(codes), is_stable=True)
    return Curve(wavelet.build(key), _insertion(tuple(in_order), query_codes))


def _insertion(in_order: Words, wanted: Words) -> Array:
    """Count the sorted codes that are not greater than each of those `wanted`, by bisection."""
    length = in_order[0].shape[0]
    steps = length.bit_length()

    def halve(step: Array, count: Array) -> Array:
        probe = count + (jnp.int32(1) << (steps - 1 - step))
        at = jnp.minimum(probe, length) - 1
        before = jnp.ones(count.shape, bool)
        for word, other in zip(reversed(in_order), reversed(wanted), strict=True):
            mine = word[at]
            before = (mine < other) | ((mine == other) & before)
        return jnp.where((probe <= length) & before, probe, count)

    return lax.fori_loop(0, steps, halve, jnp.zeros(wanted[0].shape, jnp.int32))


def _windows(
    trees: list[wavelet.Tree], insertions: tuple[Array, ...], first: Array, visible: Array, window: int, width: int
) -> tuple[Array, Array]:
    """Keys of all windows `(group, block, curves * width)` and which count: each key once.

    Keys of sequences before the query's come before it in every order. They are among the first
    `first + visible` keys, and there are `first` of them.
    """
    seen = first + visible
    column = jnp.arange(width, dtype=jnp.int32)
    keys: list[Array] = []
    valid: list[Array] = []
    ends: list[tuple[Array, Array]] = []
    for tree, insertion in zip(trees, insertions, strict=True):
        before = wavelet.count_below(tree, insertion, seen) - first
        lo = jnp.clip(before - (window + 1) // 2, 0, jnp.maximum(visible - window, 0))
        n = lo[..., None] + column
        inside = n < visible[:, None]
        rank = wavelet.nth(tree, first[:, None] + jnp.where(inside, n, 0), seen[:, None])
        key = tree.key[rank]
        for other, (least, greatest) in zip(trees, ends, strict=False):
            place = other.rank[key]
            inside &= (place < least[..., None]) | (place > greatest[..., None])
        ends.append((rank[..., 0], jnp.where(n < visible[:, None], rank, -1).max(-1)))
        keys.append(key)
        valid.append(inside)
    return jnp.concatenate(keys, -1), jnp.concatenate(valid, -1)
