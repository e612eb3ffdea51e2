"""The reference as a backend: loops over rows, `zeta_ops.reference` on each.

O(N^2) and slow on purpose. Use it to check other backends and to read what they compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from zeta_ops.backends import ArraySpec
from zeta_ops.options import Options, Problem, Shapes
from zeta_ops.reference import morton
from zeta_ops.reference.attention import attend_backward, attend_forward
from zeta_ops.reference.selection import history_counts, local_keys, select

Array = npt.NDArray[Any]

# NaN, infinity and overflow are results like others: IEEE arithmetic says what they become, as on any backend.
without_warnings = np.errstate(invalid="ignore", over="ignore")

morton_encode = morton.morton_encode
morton_decode = morton.morton_decode


def unavailable_reason() -> None:
    """NumPy is a core dependency: always available."""


@dataclass(frozen=True)
class Row:
    """One query head of one sequence: where it lies in the canonical arrays.

    `q[row.queries]` and `k[row.keys]` are its queries and keys; `start` is the position of its first key.
    """

    head: int
    queries: tuple[int, int, slice]
    keys: tuple[int, int, slice]
    start: int


def rows(shapes: Shapes, cu_seqlens: Array | None) -> Iterator[Row]:
    """Walk over all rows. Packed sequences are rows of their own: nothing crosses their borders."""
    if cu_seqlens is None:
        spans = [(slice(0, shapes.q_len), slice(0, shapes.k_len))]
    else:
        spans = [(slice(a, b), slice(a, b)) for a, b in pairwise(cu_seqlens.tolist())]
    for batch in range(shapes.batch):
        for head in range(shapes.q_heads):
            for queries, keys in spans:
                kv_head = head // shapes.group_size
                yield Row(head, (batch, head, queries), (batch, kv_head, keys), int(keys.start))


def causal_topk(problem: Problem, q: Array, k: Array, cu_seqlens: Array | None, indices: Array) -> None:
    """Write the selection of every query; see `zeta_ops.backends.Backend`."""
    indices[...] = -1
    for row in rows(problem, cu_seqlens):
        selected = _select(problem, q[row.queries], k[row.keys])
        for target, positions in zip(indices[row.queries], selected, strict=True):
            target[: len(positions)] = row.start + positions


def residual_specs(problem: Problem) -> tuple[ArraySpec, ...]:
    """Nothing is kept: the backward pass selects again."""
    return ()


@without_warnings
def attention_forward(
    problem: Problem,
    q: Array,
    k: Array,
    v: Array,
    gamma: Array,
    cu_seqlens: Array | None,
    out: Array,
    normalizer: Array,
    residuals: tuple[Array, ...],
) -> None:
    """Attend over the selection; see `zeta_ops.backends.Backend`."""
    for row in rows(problem, cu_seqlens):
        qr, kr, vr = _in_sum_dtype(problem, q[row.queries], k[row.keys], v[row.keys])
        attended, history = _attended(problem, q[row.queries], k[row.keys])
        out[row.queries], normalizer[row.queries] = attend_forward(
            qr, kr, vr, qr.dtype.type(gamma[row.head]), attended, history
        )


@without_warnings
def attention_backward(
    problem: Problem,
    grad_out: Array,
    q: Array,
    k: Array,
    v: Array,
    gamma: Array,
    cu_seqlens: Array | None,
    normalizer: Array,
    residuals: tuple[Array, ...],
    grad_q: Array,
    grad_k: Array,
    grad_v: Array,
    grad_gamma: Array,
) -> None:
    """Write the gradients of `attention_forward`; see `zeta_ops.backends.Backend`."""
    sums = _Gradients(problem)
    for row in rows(problem, cu_seqlens):
        g, qr, kr, vr = _in_sum_dtype(problem, grad_out[row.queries], q[row.queries], k[row.keys], v[row.keys])
        attended, history = _attended(problem, q[row.queries], k[row.keys])
        sums.add(row, attend_backward(g, qr, kr, vr, qr.dtype.type(gamma[row.head]), attended, history))
    sums.write(grad_q, grad_k, grad_v, grad_gamma)


@without_warnings
def cauchy_forward(
    shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: Array, out: Array, normalizer: Array
) -> None:
    """Attend over given indices; see `zeta_ops.backends.Backend`."""
    for row in rows(shapes, None):
        qr, kr, vr = _in_sum_dtype(shapes, q[row.queries], k[row.keys], v[row.keys])
        out[row.queries], normalizer[row.queries] = attend_forward(
            qr, kr, vr, qr.dtype.type(gamma[row.head]), _given(indices[row.queries]), None
        )


@without_warnings
def cauchy_backward(
    shapes: Shapes,
    grad_out: Array,
    q: Array,
    k: Array,
    v: Array,
    indices: Array,
    gamma: Array,
    normalizer: Array,
    grad_q: Array,
    grad_k: Array,
    grad_v: Array,
    grad_gamma: Array,
) -> None:
    """Write the gradients of `cauchy_forward`; see `zeta_ops.backends.Backend`."""
    sums = _Gradients(shapes)
    for row in rows(shapes, None):
        g, qr, kr, vr = _in_sum_dtype(shapes, grad_out[row.queries], q[row.queries], k[row.keys], v[row.keys])
        given = _given(indices[row.queries])
        sums.add(row, attend_backward(g, qr, kr, vr, qr.dtype.type(gamma[row.head]), given, None))
    sums.write(grad_q, grad_k, grad_v, grad_gamma)


class _Gradients:
    """Sums over rows: heads of one group share their key head, all rows of a head share its gamma."""

    def __init__(self, shapes: Shapes) -> None:
        dtype = shapes.sum_dtype
        self.q = np.zeros(shapes.q_shape, dtype)
        self.k = np.zeros(shapes.k_shape, dtype)
        self.v = np.zeros(shapes.v_shape, dtype)
        self.gamma = np.zeros(shapes.q_heads, dtype)

    def add(self, row: Row, gradients: tuple[Array, Array, Array, float]) -> None:
        grad_q, grad_k, grad_v, grad_gamma = gradients
        self.q[row.queries] = grad_q
        self.k[row.keys] += grad_k
        self.v[row.keys] += grad_v
        self.gamma[row.head] += grad_gamma

    def write(self, grad_q: Array, grad_k: Array, grad_v: Array, grad_gamma: Array) -> None:
        grad_q[...] = self.q
        grad_k[...] = self.k
        grad_v[...] = self.v
        grad_gamma[...] = self.gamma


def _select(problem: Problem, q: Array, k: Array) -> list[Array]:
    dtype = problem.coordinate_dtype
    return select(q.astype(dtype), k.astype(dtype), problem.options)


def _in_sum_dtype(shapes: Shapes, *arrays: Array) -> list[Array]:
    return [array.astype(shapes.sum_dtype, order="C") for array in arrays]


def _attended(problem: Problem, q: Array, k: Array) -> tuple[list[Array], Array | None]:
    options: Options = problem.options
    selected = _select(problem, q, k)
    attended = [np.concatenate([s, local_keys(i, len(k), options)]) for i, s in enumerate(selected)]
    return attended, history_counts(len(q), len(k), options) if options.history_mean else None


def _given(indices: Array) -> list[Array]:
    return [row[row >= 0] for row in indices]
