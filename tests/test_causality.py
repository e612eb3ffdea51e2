"""No leak from the future: what comes later changes no bit of what may not depend on it.

On targets whose sums have no fixed order, outputs may change by rounding; codes and selections may not.
"""

from __future__ import annotations

from dataclasses import replace

import calls
import numpy as np
import pytest
from cases import FINITE_KINDS, KINDS, Case, cases, points
from checks import assert_all_unchanged, assert_unchanged
from hypothesis import given
from hypothesis import strategies as st
from kinds import Target

SEEDS = st.integers(0, 2**32 - 1)
CAUSAL = {"causal": (True,)}


def first_query_after(case: Case, p: int) -> int:
    """Number of the first query at a position `>= p`; packed sequences keep the order of their positions."""
    q_len, k_len = case.q.shape[-2], case.k.shape[-2]
    q_offset = case.options.get("q_offset", k_len - q_len)
    return min(max(p - q_offset, 0), q_len)


def with_other_future(case: Case, p: int, kind: str, rng: np.random.Generator) -> Case:
    """Replace every query, key and value at a position `>= p`."""

    def replaced(x: np.ndarray, first: int) -> np.ndarray:
        x = x.copy()
        x[..., first:, :] = points(kind, x[..., first:, :].shape, rng)
        return x

    return replace(case, q=replaced(case.q, first_query_after(case, p)), k=replaced(case.k, p), v=replaced(case.v, p))


def past_results(case: Case, backend: Target, p: int) -> dict[str, np.ndarray]:
    """Codes, selections, outputs and normalizers before position p."""
    queries = slice(0, first_query_after(case, p))
    out, z = calls.zeta_attention(
        case.q, case.k, case.v, case.gamma, return_normalizer=True, backend=backend, **case.options
    )
    codes = {"bits": case.options.get("bits"), "bounds": case.options.get("bounds"), "backend": backend}
    return {
        "codes of q": calls.morton_encode(case.q, **codes)[..., queries],
        "codes of k": calls.morton_encode(case.k, **codes)[..., :p],
        "selection": calls.causal_topk(case.q, case.k, backend=backend, **case.selection_options)[..., queries, :],
        "out": out[..., queries, :],
        "normalizer": z[..., queries],
    }


def past_gradients(case: Case, backend: Target, p: int) -> dict[str, np.ndarray]:
    """Gradients, before position p, of a loss that sees outputs before p only."""
    end = first_query_after(case, p)
    out, pullback = calls.zeta_attention_vjp(case.q, case.k, case.v, case.gamma, backend=backend, **case.options)
    grad_out = np.random.default_rng(5).standard_normal(out.shape).astype(out.dtype)
    grad_out[..., end:, :] = 0
    grad_q, grad_k, grad_v, grad_gamma = pullback(grad_out)
    return {
        "gradient of q": grad_q[..., :end, :],
        "gradient of k": grad_k[..., :p, :],
        "gradient of v": grad_v[..., :p, :],
        "gradient of gamma": grad_gamma,
    }


@given(case=cases(kinds=KINDS, **CAUSAL), seed=SEEDS, kind=st.sampled_from(KINDS), share=st.floats(0, 1))
def test_the_future_changes_no_output(backend: Target, case: Case, seed: int, kind: str, share: float) -> None:
    p = round(share * case.k.shape[-2])
    later = with_other_future(case, p, kind, np.random.default_rng(seed))
    assert_all_unchanged(past_results(later, backend, p), past_results(case, backend, p), backend.one_order)


# Finite futures only: a gradient of 0 times NaN is NaN, in any attention.
@given(case=cases(**CAUSAL), seed=SEEDS, kind=st.sampled_from(FINITE_KINDS), share=st.floats(0, 1))
def test_the_future_changes_no_gradient(backend: Target, case: Case, seed: int, kind: str, share: float) -> None:
    p = round(share * case.k.shape[-2])
    later = with_other_future(case, p, kind, np.random.default_rng(seed))
    assert_all_unchanged(past_gradients(later, backend, p), past_gradients(case, backend, p), backend.one_order)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_curves": 3, "window": 12},
        {"search": "exact"},
        {"history_mean": True, "local_window": 3},
        {"chunk_size": 16, "include_self": False, "history_mean": True},
    ],
    ids=["plain", "curves", "exact", "history", "chunks"],
)
def test_poison_in_the_future_changes_nothing(backend: Target, poison: float, options: dict) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 2, 80, 3)).astype(np.float32)
    v = rng.standard_normal((2, 80, 16)).astype(np.float32)
    case = Case(q, k, v, np.array([0.5, 0.7], np.float32), {"top_k": 8, **options})
    later = replace(case, q=q.copy(), k=k.copy(), v=v.copy())
    for x in (later.q, later.k, later.v):
        x[:, 50:] = poison
    assert_all_unchanged(past_results(later, backend, 50), past_results(case, backend, 50), backend.one_order)
    grad_q = past_gradients(later, backend, 50)["gradient of q"]
    assert_unchanged(grad_q, past_gradients(case, backend, 50)["gradient of q"], backend.one_order)


@pytest.mark.parametrize("kind", FINITE_KINDS)
def test_the_future_changes_nothing_over_many_levels(backend: Target, kind: str) -> None:
    if backend.backend in ("numpy", "cuda_host"):
        n, p = 300, 170
    elif backend.backend == "numba_cuda_sim":
        n, p = 100, 60
    else:
        n, p = (40000, 22000) if backend.kind.on_gpu else (3000, 1700)
    rng = np.random.default_rng(0)
    q, k = points("drift", (2, 1, n, 3), rng)
    v = rng.standard_normal((1, n, 16)).astype(np.float32)
    options = {"top_k": 16, "num_curves": 2, "history_mean": True, "local_window": 4}
    case = Case(q, k, v, np.array([0.5], np.float32), options)
    later = with_other_future(case, p, kind, rng)
    assert_all_unchanged(past_results(later, backend, p), past_results(case, backend, p), backend.one_order)
    assert_all_unchanged(past_gradients(later, backend, p), past_gradients(case, backend, p), backend.one_order)
