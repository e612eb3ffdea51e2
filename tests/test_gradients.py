"""Gradients against central differences in float64, and the functions that pull them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import calls
import numpy as np
import pytest
from calls import attend
from cases import Array, example
from checks import assert_all_same_bits, assert_all_unchanged, assert_unchanged
from kinds import Target

NAMES = ("q", "k", "v", "gamma")


def problem(heads: int = 4, kv_heads: int = 2, n: int = 24) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {
        "q": rng.standard_normal((1, heads, n, 3)),
        "k": rng.standard_normal((1, kv_heads, n, 3)),
        "v": rng.standard_normal((1, kv_heads, n, 4)),
        "gamma": rng.uniform(0.3, 0.8, heads),
    }


def assert_slopes(function: Callable[..., Array], gradients: tuple[Array, ...], grad_out: Array, arrays: dict) -> None:
    """Along random directions in each array, gradients are what central differences of the output say."""
    rng = np.random.default_rng(4)
    step = 1e-6
    for name, gradient in zip(NAMES, gradients, strict=True):
        for _ in range(3):
            direction = rng.standard_normal(arrays[name].shape)
            ahead, behind = (function(**{**arrays, name: arrays[name] + s * direction}) for s in (step, -step))
            slope = ((ahead - behind) * grad_out).sum() / (2 * step)
            assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-8), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"history_mean": True},
        {"history_mean": True, "include_self": False},
        {"local_window": 5, "history_mean": True},
        {"num_curves": 3, "window": 8},
        {"num_curves": 2, "window": 4, "chunk_size": 4, "include_self": False},
        {"search": "exact", "local_window": 3, "history_mean": True},
        {"causal": False, "history_mean": True},
        {"cu_seqlens": np.array([0, 5, 5, 24], np.int32), "history_mean": True, "local_window": 2},
        {"q_offset": -7, "history_mean": True, "window": 9},
        {"q_offset": 7, "history_mean": True, "bounds": (-1, 1), "bits": 4},
    ],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_gradients_are_central_differences(backend: Target, options: dict[str, Any]) -> None:
    arrays, options = problem(), {"top_k": 6, "backend": backend, **options}
    out, pullback = calls.zeta_attention_vjp(**arrays, **options)
    grad_out = np.random.default_rng(5).standard_normal(out.shape)
    # A selection is constant but for steps, and none lies within a step of these points.
    assert_slopes(lambda **xs: calls.zeta_attention(**xs, **options), pullback(grad_out), grad_out, arrays)


def test_gradients_over_given_keys_are_central_differences(backend: Target) -> None:
    arrays = problem()
    rng = np.random.default_rng(6)
    indices = rng.integers(-1, 24, (1, 4, 24, 7), dtype=np.int32)  # with repetitions, gaps and the future
    indices[..., 3, :] = -1
    out, pullback = calls.cauchy_attention_vjp(**arrays, indices=indices, backend=backend)
    grad_out = rng.standard_normal(out.shape)

    def function(**xs: Array) -> Array:
        return calls.cauchy_attention(**xs, indices=indices, backend=backend)

    assert_slopes(function, pullback(grad_out), grad_out, arrays)


def test_a_wrong_gradient_is_noticed() -> None:
    arrays = problem()
    out, pullback = calls.zeta_attention_vjp(**arrays, top_k=6, backend="numpy")
    right = pullback(np.ones_like(out))

    def function(**xs: Array) -> Array:
        return calls.zeta_attention(**xs, top_k=6, backend="numpy")

    assert_slopes(function, right, np.ones_like(out), arrays)
    for wrong in range(4):
        gradients = tuple(g * (1 + 1e-4 * (i == wrong)) for i, g in enumerate(right))
        with pytest.raises(AssertionError, match=NAMES[wrong]):
            assert_slopes(function, gradients, np.ones_like(out), arrays)


def test_pulling_back_is_linear_and_repeatable(backend: Target) -> None:
    case = example(history_mean=True, local_window=2)
    out, pullback = calls.zeta_attention_vjp(case.q, case.k, case.v, case.gamma, backend=backend, **case.options)
    first, twice, again = pullback(out), pullback(2 * out), pullback(out)
    for a, b, c in zip(first, twice, again, strict=True):
        assert_unchanged(b, 2 * a, backend.one_order)
        assert_unchanged(c, a, backend.one_order)
    for gradient in pullback(np.zeros_like(out)):
        assert (gradient == 0).all()


@pytest.mark.parametrize("options", [{"num_curves": 3, "history_mean": True}, {"search": "exact"}])
def test_gradients_have_the_same_bits_every_time(backend: Target, options: dict[str, Any]) -> None:
    case = example(dtype=np.float32, length=200, **options)
    first = attend(case, backend)
    case.options["deterministic"] = True
    assert_all_unchanged(attend(case, backend), first, backend.one_order)
    assert_all_same_bits(attend(case, backend), attend(case, backend))
