"""The public functions on NumPy arrays.

Each function gets arguments whose shapes, dtypes and options are valid, checks what needs values, brings the
arrays into canonical form, allocates what the backend writes, and calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from zeta_ops.arguments import check_cu_seqlens, check_gamma, check_index_range, is_number
from zeta_ops.backends import Backend
from zeta_ops.options import Problem, Shapes
from zeta_ops.registry import pick_backend

Array = npt.NDArray[Any]
Pullback = Callable[[Array], tuple[Array, Array, Array, Array]]


def morton_encode(
    x: Array, *, bits: int, bounds: tuple[float, float] | None, num_curves: int, curve: int, backend: str | None
) -> Array:
    """See `zeta_ops.morton_encode`."""
    points = x.reshape(-1, x.shape[-1])
    codes = pick_backend(backend, "cpu").morton_encode(
        points, bits=bits, bounds=bounds, num_curves=num_curves, curve=curve
    )
    return np.asarray(codes.reshape(x.shape[:-1]))


def morton_decode(codes: Array, *, dims: int, bits: int, backend: str | None) -> Array:
    """See `zeta_ops.morton_decode`."""
    cells = pick_backend(backend, "cpu").morton_decode(codes.reshape(-1), dims=dims, bits=bits)
    return np.asarray(cells.reshape(*codes.shape, dims))


def causal_topk(problem: Problem, q: Array, k: Array, cu_seqlens: Array | None, backend: str | None) -> Array:
    """See `zeta_ops.causal_topk`."""
    chosen = pick_backend(backend, "cpu")
    _check_sequences(cu_seqlens, problem)
    indices = _select(chosen, problem, q.reshape(problem.q_shape), k.reshape(problem.k_shape), cu_seqlens)
    return indices.reshape(*q.shape[:-1], problem.options.top_k)


def selection_recall(
    problem: Problem, q: Array, k: Array, gamma: float | Array, cu_seqlens: Array | None, backend: str | None
) -> tuple[Array, Array]:
    """See `zeta_ops.selection_recall`."""
    chosen = pick_backend(backend, "cpu")
    _check_sequences(cu_seqlens, problem)

    def select(problem: Problem) -> Array:
        return _select(chosen, problem, q.reshape(problem.q_shape), k.reshape(problem.k_shape), cu_seqlens)

    return recall_of(select, problem, q, k, gamma)


def recall_of(
    select: Callable[[Problem], Array], problem: Problem, q: Array, k: Array, gamma: float | Array
) -> tuple[Array, Array]:
    """Measure the recall of selections, given what selects `(batch, q_heads, q_len, top_k)` for a problem."""
    gammas = _gamma_per_head(gamma, problem)
    selected = select(problem)
    nearest = select(replace(problem, options=replace(problem.options, search="exact")))
    front = q.shape[:-2]
    q, k = q.reshape(problem.q_shape), k.reshape(problem.k_shape)
    keys, mass = np.empty((2, problem.batch, problem.q_heads))
    for batch, head in np.ndindex(keys.shape):
        points = q[batch, head], k[batch, head // problem.group_size]
        keys[batch, head], mass[batch, head] = _shares(
            *points, gammas[head], selected[batch, head], nearest[batch, head]
        )
    return keys.reshape(front), mass.reshape(front)


def zeta_attention(
    problem: Problem, q: Array, k: Array, v: Array, gamma: float | Array, cu_seqlens: Array | None, backend: str | None
) -> tuple[Array, Array]:
    """See `zeta_ops.zeta_attention`."""
    return _Search(problem, q, k, v, gamma, cu_seqlens, backend).forward()


def zeta_attention_vjp(
    problem: Problem, q: Array, k: Array, v: Array, gamma: float | Array, cu_seqlens: Array | None, backend: str | None
) -> tuple[Array, Pullback]:
    """See `zeta_ops.zeta_attention_vjp`."""
    search = _Search(problem, q, k, v, gamma, cu_seqlens, backend)
    out, _ = search.forward()
    return out, search.pullback


def cauchy_attention(
    shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: float | Array, backend: str | None
) -> Array:
    """See `zeta_ops.cauchy_attention`."""
    return _Given(shapes, q, k, v, indices, gamma, backend).forward()[0]


def cauchy_attention_vjp(
    shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: float | Array, backend: str | None
) -> tuple[Array, Pullback]:
    """See `zeta_ops.cauchy_attention_vjp`."""
    given = _Given(shapes, q, k, v, indices, gamma, backend)
    out, _ = given.forward()
    return out, given.pullback


class _Call:
    """Arrays of one call in canonical form, and what its forward pass leaves for the backward pass."""

    def __init__(self, shapes: Shapes, q: Array, k: Array, v: Array, gamma: float | Array, backend: str | None) -> None:
        self.backend = pick_backend(backend, "cpu")
        self.inputs = q, k, v, gamma
        self.gamma = _gamma_per_head(gamma, shapes)
        self.q = q.reshape(shapes.q_shape)
        self.k = k.reshape(shapes.k_shape)
        self.v = v.reshape(shapes.v_shape)
        self.shapes = shapes
        self.normalizer = np.empty(shapes.normalizer_shape, shapes.sum_dtype)

    def forward(self) -> tuple[Array, Array]:
        q, _, v, _ = self.inputs
        out = np.empty(self.shapes.out_shape, v.dtype)
        self.run_forward(out)
        return out.reshape(*q.shape[:-1], v.shape[-1]), self.normalizer.reshape(q.shape[:-1])

    def pullback(self, grad_out: Array) -> tuple[Array, Array, Array, Array]:
        q, k, v, gamma = self.inputs
        _check_grad_out(grad_out, (*q.shape[:-1], v.shape[-1]), v.dtype)
        gradients = np.empty_like(self.q), np.empty_like(self.k), np.empty_like(self.v), np.empty_like(self.gamma)
        self.run_backward(grad_out.reshape(self.shapes.out_shape), gradients)
        grad_q, grad_k, grad_v, per_head = gradients
        grad_gamma = per_head if np.shape(gamma) else per_head.sum()
        dtype = gamma.dtype if isinstance(gamma, np.ndarray) else per_head.dtype
        return grad_q.reshape(q.shape), grad_k.reshape(k.shape), grad_v.reshape(v.shape), np.asarray(grad_gamma, dtype)

    def run_forward(self, out: Array) -> None:
        raise NotImplementedError

    def run_backward(self, grad_out: Array, gradients: tuple[Array, Array, Array, Array]) -> None:
        raise NotImplementedError


class _Search(_Call):
    """A call that selects its keys."""

    def __init__(
        self,
        problem: Problem,
        q: Array,
        k: Array,
        v: Array,
        gamma: float | Array,
        cu_seqlens: Array | None,
        backend: str | None,
    ) -> None:
        super().__init__(problem, q, k, v, gamma, backend)
        _check_sequences(cu_seqlens, problem)
        self.problem = problem
        self.cu_seqlens = cu_seqlens
        self.residuals = tuple(np.empty(spec.shape, spec.dtype) for spec in self.backend.residual_specs(problem))

    def run_forward(self, out: Array) -> None:
        self.backend.attention_forward(
            self.problem, self.q, self.k, self.v, self.gamma, self.cu_seqlens, out, self.normalizer, self.residuals
        )

    def run_backward(self, grad_out: Array, gradients: tuple[Array, Array, Array, Array]) -> None:
        arrays = self.q, self.k, self.v, self.gamma, self.cu_seqlens, self.normalizer, self.residuals
        self.backend.attention_backward(self.problem, grad_out, *arrays, *gradients)


class _Given(_Call):
    """A call with a selection of the caller's."""

    def __init__(
        self, shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: float | Array, backend: str | None
    ) -> None:
        super().__init__(shapes, q, k, v, gamma, backend)
        if indices.size > 0:
            check_index_range(int(indices.min()), int(indices.max()), shapes.k_len)
        self.indices = indices.reshape(*shapes.normalizer_shape, indices.shape[-1])

    def run_forward(self, out: Array) -> None:
        arrays = self.q, self.k, self.v, self.indices, self.gamma
        self.backend.cauchy_forward(self.shapes, *arrays, out, self.normalizer)

    def run_backward(self, grad_out: Array, gradients: tuple[Array, Array, Array, Array]) -> None:
        arrays = self.q, self.k, self.v, self.indices, self.gamma, self.normalizer
        self.backend.cauchy_backward(self.shapes, grad_out, *arrays, *gradients)


def _select(backend: Backend, problem: Problem, q: Array, k: Array, cu_seqlens: Array | None) -> Array:
    indices = np.empty((*problem.normalizer_shape, problem.options.top_k), np.int32)
    backend.causal_topk(problem, q, k, cu_seqlens, indices)
    return indices


def _shares(q: Array, k: Array, gamma: float, selected: Array, nearest: Array) -> tuple[float, float]:
    """Share of the nearest keys, and of their mass, that are selected; a block of queries at a time."""
    block = 1024  # bounds the memory of the comparison of every selected with every nearest key
    seen = nearest[:, 0] >= 0
    if not seen.any():
        return np.nan, np.nan
    keys = mass = 0.0
    for start in range(0, len(q), block):
        part = slice(start, start + block)
        mine, true, valid = selected[part], nearest[part], seen[part]
        found = (true[:, :, None] == mine[:, None, :]).any(axis=2) & (true >= 0)
        keys += float((found.sum(axis=1)[valid] / (true >= 0).sum(axis=1)[valid]).sum())
        mine_mass, true_mass = (_mass(q[part], k, gamma, some) for some in (mine, true))
        mass += float((mine_mass[valid] / true_mass[valid]).sum())
    return keys / int(seen.sum()), mass / int(seen.sum())


def _mass(q: Array, k: Array, gamma: float, indices: Array) -> Array:
    """Sum of the weights of the given keys for each query, in float64."""
    difference = q[:, None, :].astype(np.float64) - k[indices].astype(np.float64)
    weights = 1 / ((difference**2).sum(axis=-1) + gamma**2)
    return np.asarray(np.where(indices >= 0, weights, 0).sum(axis=-1))


def _gamma_per_head(gamma: float | Array, shapes: Shapes) -> Array:
    """Bring gamma to `(q_heads,)` in the coordinate dtype, once its values are checked."""
    if not is_number(gamma):
        for value in np.ravel(gamma):
            check_gamma(float(value), shapes.coordinate_dtype)
    per_head = np.empty(shapes.q_heads, shapes.coordinate_dtype)
    per_head[...] = gamma
    return per_head


def _check_sequences(cu_seqlens: Array | None, problem: Problem) -> None:
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens.tolist(), problem.k_len)


def _check_grad_out(grad_out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if not isinstance(grad_out, np.ndarray) or isinstance(grad_out, np.ma.MaskedArray) or grad_out.dtype != dtype:
        got = grad_out.dtype if type(grad_out) is np.ndarray else type(grad_out).__name__
        raise TypeError(f"grad_out must be a NumPy array of {dtype}, as the output; got {got}")
    if grad_out.shape != shape:
        raise ValueError(f"grad_out must have the output's shape {shape}; got {grad_out.shape}")
