"""ZETA attention and attention over given indices: the public functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zeta_ops.arguments import attention_shapes, check_indices
from zeta_ops.checks import check_search
from zeta_ops.registry import adapter_of, array_kind, named_arrays

__all__ = ["cauchy_attention", "cauchy_attention_vjp", "zeta_attention", "zeta_attention_vjp"]

Array = Any
Pullback = Callable[[Array], tuple[Array, Array, Array, Array]]


def zeta_attention(
    q: Array,
    k: Array,
    v: Array,
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
    history_mean: bool = False,
    bits: int | None = None,
    bounds: tuple[float, float] | None = None,
    q_offset: int | None = None,
    cu_seqlens: Array | None = None,
    deterministic: bool = False,
    return_normalizer: bool = False,
    backend: str | None = None,
) -> Any:
    """Attend to the nearest visible keys, found along Z-order curves, with Cauchy weights.

    Query i, at position `pos = q_offset + i`, searches among the keys at positions `j < t(i)` (see
    `causal`). Each curve sorts them by Morton code and proposes a window around the query's own code. The
    union of the windows, cut to the `top_k` nearest, is attended to with weights
    `u_ij = 1 / (|q_i - k_j|^2 + gamma^2)`; the output is `sum_j u_ij v_j / sum_j u_ij`.

    Parameters
    ----------
    q : array (..., H, Nq, dk)
        Queries with dk = 1 to 8 coordinates (the paper uses 3). Any number of batch dimensions leads.
    k : array (..., Hkv, Nk, dk)
        Keys. Query head h reads key head `h // (H // Hkv)`. `q` and `k` are used in float32, in float64 if
        both are float64.
    v : array (..., Hkv, Nk, dv)
        Values: float16, bfloat16, float32 or float64. Sums are float32, or float64 where an input is.
    gamma : float or array (H,)
        Width of the weights, positive; between 2**-63 and 2**63 (2**-511 and 2**511 in float64). Values on a
        GPU are not checked, nor are those of `cu_seqlens`: reading them would wait for the device.
    top_k : int
        Keys that a query attends to at most (without `local_window`); ties go to the most recent.
    window : int, optional
        Keys that each curve proposes; default `top_k`. With one curve at least `top_k`.
    num_curves : int
        1, 2 or 3 shifted curves. More find more of the true nearest keys.
    search : {"zorder", "exact"}
        "exact" selects the true `top_k` nearest visible keys.
    causal : bool
        True: `t(i) = min(M * floor(P / M), pos + 1 - local_window)`, at least 0, with `M = chunk_size` and
        `P = pos + 1`, or `pos` without `include_self`. False: every key is visible, and neither
        `chunk_size` nor `include_self` matters.
    chunk_size : int
        More than 1 hides the keys of the chunk that is not complete (the paper's causality, with
        `include_self=False`). It costs recent keys, which are those that matter most.
    include_self : bool
        Whether a query sees the key at its own position.
    local_window : int
        The last so many positions up to and including the query's own are attended to in any case.
    history_mean : bool
        Attend once more to the mean of all keys and values so far (the paper's section 3.4), which gives
        every past token a gradient. The mean covers `j <= pos`, `j < pos` without `include_self`, or all
        keys if not causal.
    bits, bounds
        How coordinates are quantised; see `morton_encode`.
    q_offset : int, optional
        Position of the first query; default `Nk - Nq`, which aligns the ends. Counted in each packed sequence.
    cu_seqlens : array (S + 1,), int32, optional
        Borders of S sequences that are packed along N in a batch of one; nothing crosses them.
    deterministic : bool
        Make the backward pass bit-reproducible where it is not already (the CPU backends always are).
    return_normalizer : bool
        Return `(out, Z)`, with `Z_i = sum_j u_ij`. Outputs over disjoint keys merge as
        `(out_a Z_a + out_b Z_b) / (Z_a + Z_b)`. Z is not differentiated.
    backend : str, optional
        Name of a backend; None chooses the preferred one for the arrays' device.

    Returns
    -------
    out : array (..., H, Nq, dv)
        In the dtype of `v`, the same kind of array on the same device. A query with nothing to attend to
        gets 0.
    Z : array (..., H, Nq)
        Only with `return_normalizer`: in the dtype of the sums.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong, what was got and what was expected.

    See Also
    --------
    zeta_attention_vjp : the same with its gradients, for arrays without automatic differentiation.
    causal_topk : the selection alone.
    cauchy_attention : the attention over a selection of your own.

    References
    ----------
    arXiv 2501.14577, section 3. The defaults are exact causality (`chunk_size=1`), the own token included and
    no history token; the paper's are `chunk_size > 1`, `include_self=False`, `history_mean=True`.

    Examples
    --------
    >>> import numpy as np, zeta_ops
    >>> rng = np.random.default_rng(0)
    >>> q, k = rng.standard_normal((2, 1, 4, 256, 3), dtype=np.float32)
    >>> v = rng.standard_normal((1, 4, 256, 64), dtype=np.float32)
    >>> zeta_ops.zeta_attention(q, k, v, gamma=0.5, top_k=16).shape
    (1, 4, 256, 64)
    """
    kind, problem = check_search(
        q,
        k,
        v,
        gamma,
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
        history_mean=history_mean,
        deterministic=deterministic,
    )
    return adapter_of(kind).zeta_attention(problem, q, k, v, gamma, cu_seqlens, backend, return_normalizer)


def zeta_attention_vjp(
    q: Array,
    k: Array,
    v: Array,
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
    history_mean: bool = False,
    bits: int | None = None,
    bounds: tuple[float, float] | None = None,
    q_offset: int | None = None,
    cu_seqlens: Array | None = None,
    deterministic: bool = False,
    backend: str | None = None,
) -> tuple[Array, Pullback]:
    """Compute `zeta_attention` and a function that pulls a gradient of its output back to its inputs.

    For arrays without automatic differentiation (NumPy, CuPy). PyTorch and JAX differentiate
    `zeta_attention` themselves. The selection is piecewise constant and has no gradient.

    Parameters
    ----------
    q, k, v, gamma, top_k, window, num_curves, search, causal, chunk_size, include_self, local_window, \
history_mean, bits, bounds, q_offset, cu_seqlens, deterministic, backend
        As for `zeta_attention`.

    Returns
    -------
    out : array (..., H, Nq, dv)
    pullback : callable
        `pullback(grad_out)`, with `grad_out` of the shape and dtype of `out`, returns
        `(grad_q, grad_k, grad_v, grad_gamma)`, each of the shape and dtype of its input. `grad_gamma` has
        the shape of `gamma`, () for a number. It may be called any number of times.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong, what was got and what was expected.

    References
    ----------
    arXiv 2501.14577, section 3.

    Examples
    --------
    >>> import numpy as np, zeta_ops
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 2, 64, 3), dtype=np.float32)
    >>> out, pullback = zeta_ops.zeta_attention_vjp(q, k, v, gamma=0.5, top_k=8)
    >>> grad_q, grad_k, grad_v, grad_gamma = pullback(np.ones_like(out))
    >>> grad_k.shape
    (1, 2, 64, 3)
    """
    kind, problem = check_search(
        q,
        k,
        v,
        gamma,
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
        history_mean=history_mean,
        deterministic=deterministic,
    )
    out, pullback = adapter_of(kind).zeta_attention_vjp(problem, q, k, v, gamma, cu_seqlens, backend)
    return out, pullback


def cauchy_attention(
    q: Array, k: Array, v: Array, indices: Array, gamma: float | Array = 1.0, *, backend: str | None = None
) -> Array:
    """Attend to given keys with Cauchy weights: anyone's selection.

    Parameters
    ----------
    q, k, v, gamma
        As for `zeta_attention`.
    indices : array (..., H, Nq, K), int32
        Positions of the keys that each query attends to; -1 is nothing. A position that stands twice counts
        twice. Values on a GPU are not checked: those out of range give meaningless results.
    backend : str, optional
        Name of a backend; None chooses the preferred one for the arrays' device.

    Returns
    -------
    array (..., H, Nq, dv)
        In the dtype of `v`. A query with nothing to attend to gets 0.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong, what was got and what was expected.

    See Also
    --------
    causal_topk : selections along Z-order curves, or exact ones.

    References
    ----------
    arXiv 2501.14577, section 3.3 (Adaptive Cauchy-Softmax).

    Examples
    --------
    >>> import numpy as np, zeta_ops
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 2, 64, 3), dtype=np.float32)
    >>> indices = zeta_ops.causal_topk(q, k, top_k=8)
    >>> out = zeta_ops.cauchy_attention(q, k, v, indices, gamma=0.5)
    >>> np.allclose(out, zeta_ops.zeta_attention(q, k, v, gamma=0.5, top_k=8), atol=1e-6)
    True
    """
    kind = array_kind(named_arrays(q=q, k=k, v=v, indices=indices, gamma=gamma))
    shapes = attention_shapes(q, k, v, gamma)
    check_indices(indices, shapes)
    return adapter_of(kind).cauchy_attention(shapes, q, k, v, indices, gamma, backend)


def cauchy_attention_vjp(
    q: Array, k: Array, v: Array, indices: Array, gamma: float | Array = 1.0, *, backend: str | None = None
) -> tuple[Array, Pullback]:
    """Compute `cauchy_attention` and a function that pulls a gradient of its output back to its inputs.

    Parameters
    ----------
    q, k, v, indices, gamma, backend
        As for `cauchy_attention`.

    Returns
    -------
    out : array (..., H, Nq, dv)
    pullback : callable
        `pullback(grad_out)` returns `(grad_q, grad_k, grad_v, grad_gamma)`, as for `zeta_attention_vjp`.

    Raises
    ------
    TypeError, ValueError
        Naming the argument that is wrong, what was got and what was expected.

    References
    ----------
    arXiv 2501.14577, section 3.3.

    Examples
    --------
    >>> import numpy as np, zeta_ops
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 2, 64, 3), dtype=np.float32)
    >>> indices = zeta_ops.causal_topk(q, k, top_k=8)
    >>> out, pullback = zeta_ops.cauchy_attention_vjp(q, k, v, indices, gamma=0.5)
    >>> [gradient.shape for gradient in pullback(np.ones_like(out))]
    [(1, 2, 64, 3), (1, 2, 64, 3), (1, 2, 64, 3), ()]
    """
    kind = array_kind(named_arrays(q=q, k=k, v=v, indices=indices, gamma=gamma))
    shapes = attention_shapes(q, k, v, gamma)
    check_indices(indices, shapes)
    out, pullback = adapter_of(kind).cauchy_attention_vjp(shapes, q, k, v, indices, gamma, backend)
    return out, pullback
