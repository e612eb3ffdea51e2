"""Selections and how good they are: the public functions."""

from __future__ import annotations

from typing import Any, NamedTuple

from zeta_ops.arguments import attention_shapes, search_problem
from zeta_ops.registry import adapter_of, array_kind, named_arrays

__all__ = ["SelectionRecall", "causal_topk", "selection_recall"]

Array = Any


class SelectionRecall(NamedTuple):
    """How much of an exact search a selection has, `(..., H)` each; NaN where no query sees a key.

    Attributes
    ----------
    keys : array
        Share of the true nearest `top_k` visible keys that are selected, mean over queries.
    mass : array
        Cauchy mass (the sum of the weights `u_ij`) of the selected keys as a share of the mass of the true
        nearest `top_k`, mean over queries.
    """

    keys: Array
    mass: Array


def causal_topk(
    q: Array,
    k: Array,
    *,
    top_k: int = 32,
    window: int | None = None,
    num_curves: int = 1,
    search: str = "zorder",
    causal: bool = True,
    chunk_size: int = 1,
    include_self: bool = True,
    local_window: int = 0,
    bits: int | None = None,
    bounds: tuple[float, float] | None = None,
    q_offset: int | None = None,
    cu_seqlens: Array | None = None,
    backend: str | None = None,
) -> Array:
    """Select the keys that `zeta_attention` attends to.

    Parameters
    ----------
    q, k, top_k, window, num_curves, search, causal, chunk_size, include_self, local_window, bits, bounds, \
q_offset, cu_seqlens, backend
        As for `zeta_attention`.

    Returns
    -------
    array (..., H, Nq, top_k), int32
        Positions along the keys' axis (with `cu_seqlens` too), ascending, padded with -1. The local window
        is not among them; it only limits what the search sees.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong, what was got and what was expected.

    See Also
    --------
    selection_recall : how close a selection comes to the exact one.

    References
    ----------
    arXiv 2501.14577, section 3.2.

    Examples
    --------
    >>> import numpy as np, zeta_ops
    >>> x = np.array([[[0.0], [3.0], [1.0], [2.9]]], dtype=np.float32)
    >>> zeta_ops.causal_topk(x, x, top_k=2)
    array([[[ 0, -1],
            [ 0,  1],
            [ 1,  2],
            [ 1,  3]]], dtype=int32)
    """
    kind = array_kind(named_arrays(q=q, k=k, cu_seqlens=cu_seqlens))
    problem = search_problem(
        attention_shapes(q, k, None, 1.0),
        cu_seqlens,
        top_k=top_k,
        window=window,
        num_curves=num_curves,
        search=search,
        causal=causal,
        chunk_size=chunk_size,
        include_self=include_self,
        local_window=local_window,
        bits=bits,
        bounds=bounds,
        q_offset=q_offset,
    )
    return adapter_of(kind).causal_topk(problem, q, k, cu_seqlens, backend)


def selection_recall(
    q: Array,
    k: Array,
    gamma: float | Array = 1.0,
    *,
    top_k: int = 32,
    window: int | None = None,
    num_curves: int = 1,
    search: str = "zorder",
    causal: bool = True,
    chunk_size: int = 1,
    include_self: bool = True,
    local_window: int = 0,
    bits: int | None = None,
    bounds: tuple[float, float] | None = None,
    q_offset: int | None = None,
    cu_seqlens: Array | None = None,
    backend: str | None = None,
) -> SelectionRecall:
    """Measure how much of the true nearest keys a selection has.

    Parameters
    ----------
    q, k, gamma, top_k, window, num_curves, search, causal, chunk_size, include_self, local_window, bits, \
bounds, q_offset, cu_seqlens, backend
        As for `zeta_attention`.

    Returns
    -------
    SelectionRecall
        Named tuple `(keys, mass)` of arrays `(..., H)`: the share of the true `top_k` nearest visible keys,
        and of their Cauchy mass, that the selection has; each a mean over the queries that see a key.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong, what was got and what was expected.

    Examples
    --------
    >>> import numpy as np, zeta_ops
    >>> rng = np.random.default_rng(0)
    >>> q, k = rng.standard_normal((2, 1, 512, 3), dtype=np.float32)
    >>> one = zeta_ops.selection_recall(q, k, 0.1, top_k=8)
    >>> three = zeta_ops.selection_recall(q, k, 0.1, top_k=8, window=16, num_curves=3)
    >>> bool(one.keys[0] < three.keys[0] <= 1)
    True
    """
    kind = array_kind(named_arrays(q=q, k=k, gamma=gamma, cu_seqlens=cu_seqlens))
    problem = search_problem(
        attention_shapes(q, k, None, gamma),
        cu_seqlens,
        top_k=top_k,
        window=window,
        num_curves=num_curves,
        search=search,
        causal=causal,
        chunk_size=chunk_size,
        include_self=include_self,
        local_window=local_window,
        bits=bits,
        bounds=bounds,
        q_offset=q_offset,
    )
    keys, mass = adapter_of(kind).selection_recall(problem, q, k, gamma, cu_seqlens, backend)
    return SelectionRecall(keys, mass)
