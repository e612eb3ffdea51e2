"""No leak from the future: what comes later changes no bit of what may not depend on it."""

from __future__ import annotations

import numpy as np
import pytest
from cases import KINDS, Case, cases, points
from checks import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

import zeta_ops


def changed_from(x: np.ndarray, p: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Replace all tokens at positions >= p."""
    x = x.copy()
    x[..., p:, :] = points(kind, x[..., p:, :].shape, rng)
    return x


def run(case: Case, backend: str, p: int) -> tuple[np.ndarray, ...]:
    """Outputs before p, and all gradients of a loss that only sees these."""
    out, pullback = zeta_ops.zeta_attention_vjp(case.q, case.k, case.v, case.gamma, backend=backend, **case.options)
    grad_out = np.random.default_rng(5).standard_normal(out.shape).astype(np.float32)
    grad_out[..., p:, :] = 0
    *gradients, grad_gamma = pullback(grad_out)
    return out[..., :p, :], *(gradient[..., :p, :] for gradient in gradients), grad_gamma


@given(case=cases(), seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS[:-1]), share=st.floats(0, 1))
def test_the_future_changes_nothing(backend: str, case: Case, seed: int, kind: str, share: float) -> None:
    options = case.options
    if not options["causal"] or options.get("q_offset") or case.q.shape[-2] != case.k.shape[-2]:
        return
    rng = np.random.default_rng(seed)
    p = int(share * case.k.shape[-2])
    later = Case(*(changed_from(x, p, kind, rng) for x in (case.q, case.k, case.v)), case.gamma, options)
    for name, before, after in zip(
        ("out", "q", "k", "v", "gamma"), run(case, backend, p), run(later, backend, p), strict=True
    ):
        assert_same_bits(np.ascontiguousarray(after), np.ascontiguousarray(before), name)
    first, second = (
        zeta_ops.causal_topk(c.q, c.k, backend=backend, **case.selection_options)[..., :p, :] for c in (case, later)
    )
    assert_same_bits(np.ascontiguousarray(second), np.ascontiguousarray(first))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_curves": 3, "window": 12}, {"search": "exact"}, {"history_mean": True, "local_window": 3}],
    ids=["plain", "curves", "exact", "history"],
)
def test_nan_in_the_future_changes_nothing(backend: str, poison: float, options: dict) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 2, 80, 3)).astype(np.float32)
    v = rng.standard_normal((2, 80, 16)).astype(np.float32)
    expected = zeta_ops.zeta_attention(q, k, v, 0.5, top_k=8, backend=backend, **options)
    for x in (q, k, v):
        x[:, 50:] = poison
    out = zeta_ops.zeta_attention(q, k, v, 0.5, top_k=8, backend=backend, **options)
    assert_same_bits(out[:, :50].copy(), expected[:, :50].copy())


def test_the_future_changes_nothing_over_many_levels(backend: str) -> None:
    n, p = (3000, 1700) if backend != "numpy" else (300, 170)
    rng = np.random.default_rng(0)
    q, k = points("drift", (2, 1, n, 3), rng)
    v = rng.standard_normal((1, n, 16)).astype(np.float32)
    case = Case(q, k, v, np.array([0.5], np.float32), {"top_k": 16, "num_curves": 2, "history_mean": True})
    later = Case(*(changed_from(x, p, "ties", rng) for x in (q, k, v)), case.gamma, case.options)
    for before, after in zip(run(case, backend, p), run(later, backend, p), strict=True):
        assert_same_bits(np.ascontiguousarray(after), np.ascontiguousarray(before))
