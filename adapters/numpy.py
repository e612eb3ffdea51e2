"""The public functions on NumPy arrays, and the measure of recall, which every adapter takes from here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from zeta_ops.adapters.arrays import ArrayAdapter
from zeta_ops.adapters.operations import result_specs, run
from zeta_ops.arguments import check_cu_seqlens, check_gamma, check_index_range, is_number
from zeta_ops.options import Problem, Shapes
from zeta_ops.registry import pick_backend

__all__ = ["ADAPTER", "recall_of"]

Array = npt.NDArray[Any]


class _NumpyAdapter(ArrayAdapter):
    module = np
    kind = "NumPy"

    def pick(self, name: str | None) -> Any:
        return pick_backend(name, "cpu")

    def is_array(self, x: object) -> bool:
        return isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray)

    def device_of(self, x: Array) -> AbstractContextManager[Any]:
        return nullcontext()

    def check_devices(self, **arrays: Any) -> None:
        """Nothing to check: there is one device."""

    def check_values(
        self, shapes: Shapes, *, gamma: Any = 1.0, cu_seqlens: Array | None = None, indices: Array | None = None
    ) -> None:
        _check_gamma_values(gamma, shapes)
        if cu_seqlens is not None:
            check_cu_seqlens(cu_seqlens.tolist(), shapes.k_len)
        if indices is not None and indices.size > 0:
            check_index_range(int(indices.min()), int(indices.max()), shapes.k_len)

    def compute(self, backend: Any, operation: str, shapes: Shapes, arguments: Sequence[Any]) -> list[Array]:
        results = [np.empty(spec.shape, spec.dtype) for spec in result_specs(backend, operation, shapes)]
        run(backend, operation, shapes, list(arguments), results)
        return results

    def morton_encode(
        self,
        x: Array,
        *,
        bits: int,
        bounds: tuple[float, float] | None,
        num_curves: int,
        curve: int,
        backend: str | None,
    ) -> Array:
        points = x.reshape(-1, x.shape[-1])
        codes = self.pick(backend).morton_encode(points, bits=bits, bounds=bounds, num_curves=num_curves, curve=curve)
        return np.asarray(codes.reshape(x.shape[:-1]))

    def morton_decode(self, codes: Array, *, dims: int, bits: int, backend: str | None) -> Array:
        cells = self.pick(backend).morton_decode(codes.reshape(-1), dims=dims, bits=bits)
        return np.asarray(cells.reshape(*codes.shape, dims))

    def selection_recall(
        self, problem: Problem, q: Array, k: Array, gamma: float | Array, cu_seqlens: Array | None, backend: str | None
    ) -> tuple[Array, Array]:
        def select(problem: Problem) -> Array:
            return np.asarray(self.causal_topk(problem, q, k, cu_seqlens, backend))

        return recall_of(select, problem, q, k, gamma)


ADAPTER = _NumpyAdapter()


def recall_of(
    select: Callable[[Problem], Array], problem: Problem, q: Array, k: Array, gamma: float | Array
) -> tuple[Array, Array]:
    """Measure the recall of selections on the CPU, in float64.

    Parameters
    ----------
    select : callable
        Makes the selection `(..., H, Nq, top_k)` of `q` and `k` for a problem.
    """
    _check_gamma_values(gamma, problem)
    gammas = np.broadcast_to(np.asarray(gamma, np.float64), problem.q_heads)
    exact = replace(problem, options=replace(problem.options, search="exact"))
    form = *problem.normalizer_shape, problem.options.top_k
    selected, nearest = select(problem).reshape(form), select(exact).reshape(form)
    front = q.shape[:-2]
    q, k = q.reshape(problem.q_shape), k.reshape(problem.k_shape)
    keys, mass = np.empty((2, problem.batch, problem.q_heads))
    for batch, head in np.ndindex(keys.shape):
        points = q[batch, head], k[batch, head // problem.group_size]
        keys[batch, head], mass[batch, head] = _shares(
            *points, float(gammas[head]), selected[batch, head], nearest[batch, head]
        )
    return keys.reshape(front), mass.reshape(front)


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


def _check_gamma_values(gamma: float | Array, shapes: Shapes) -> None:
    if not is_number(gamma):
        for value in np.ravel(gamma):
            check_gamma(float(value), shapes.coordinate_dtype)
