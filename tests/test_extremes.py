"""Distances that overflow, weights that underflow, infinities and NaN: results without a warning, and which."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from calls import attend, attend_to
from cases import Case
from checks import assert_all_close, assert_unchanged
from kinds import Target

OPTION_SETS: list[dict[str, Any]] = [
    {},
    {"num_curves": 2},
    {"search": "exact"},
    {"local_window": 2},
    {"history_mean": True},
    {"causal": False, "history_mean": True},
]
ALL_OPTIONS = pytest.mark.parametrize("options", OPTION_SETS, ids=lambda options: ", ".join(options) or "plain")
FAR = np.float32(3e38)  # the square of it overflows


def far_apart(options: dict[str, Any]) -> Case:
    """Queries on one side, keys on the other, and a value that is NaN."""
    q = np.full((1, 5, 2), FAR)
    v = np.ones((1, 5, 2), np.float32)
    v[0, 1] = np.nan
    return Case(q, -q, v, np.array([0.5], np.float32), {"top_k": 3, **options})


@ALL_OPTIONS
def test_weights_that_are_all_zero_give_zero(backend: Target, options: dict[str, Any]) -> None:
    for array in attend(far_apart(options), backend).values():
        assert (array == 0).all()


def test_weights_of_given_keys_that_are_all_zero_give_zero(backend: Target) -> None:
    case, indices = far_apart({}), np.arange(5, dtype=np.int32).reshape(1, 5, 1)
    for array in attend_to(case, indices, backend).values():
        assert (array == 0).all()


def test_keys_without_weight_beside_one_with(backend: Target) -> None:
    near_and_far = np.array([[[0.0, 0.0], [FAR, 0.0], [1.0, 0.0]]], np.float32)
    case = Case(near_and_far, near_and_far, np.ones((1, 3, 2), np.float32), np.array([1.0], np.float32), {"top_k": 3})
    assert_all_close(attend(case, backend), attend(case, "numpy"), 1e-6)
    without = Case(*(x[:, ::2] for x in (case.q, case.k, case.v)), case.gamma, {"top_k": 3})
    expected = attend(without, backend)["out"]
    assert_unchanged(attend(case, backend)["out"][:, ::2], expected, backend.one_order)


def test_a_history_token_whose_weight_underflows(backend: Target) -> None:
    q = np.array([[[0], [0]]], np.float32)
    k = np.array([[[0], [1e24]]], np.float32)
    v = np.array([[[1], [2]]], np.float32)
    case = Case(q, k, v, np.array([1], np.float32), {"top_k": 1, "history_mean": True})
    assert_all_close(attend(case, backend), attend(case, "numpy"), 1e-6)


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan, FAR], ids=str)
@ALL_OPTIONS
def test_nothing_warns(backend: Target, poison: float, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 9, 3)).astype(np.float32)
    for x in (q, k, v):
        x[0, 3], x[0, 5] = poison, -poison
    case = Case(q, k, v, np.array([0.5], np.float32), {"top_k": 3, **options})
    assert np.isfinite(attend(case, backend)["out"][0, :3]).all() or not options.get("causal", True)
    attend_to(case, np.arange(9, dtype=np.int32).reshape(1, 9, 1), backend)
