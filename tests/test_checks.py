"""Every assertion helper fails on a wrong answer."""

from __future__ import annotations

import numpy as np
import pytest
from checks import (
    assert_all_close,
    assert_all_same_bits,
    assert_all_unchanged,
    assert_close,
    assert_same_bits,
    assert_unchanged,
    assert_within_policy,
)

RIGHT = np.array([1.0, -2.0, 0.0], np.float32)


@pytest.mark.parametrize(
    "wrong",
    [
        np.array([1.0, -2.0, -0.0], np.float32),
        np.array([np.nextafter(np.float32(1), np.float32(2)), -2.0, 0.0], np.float32),
        np.array([np.nan, -2.0, 0.0], np.float32),
        RIGHT.astype(np.float64),
        RIGHT[:2],
    ],
    ids=["sign of zero", "last bit", "nan", "dtype", "shape"],
)
def test_same_bits_fails(wrong: np.ndarray) -> None:
    assert_same_bits(RIGHT, RIGHT.copy())
    with pytest.raises(AssertionError):
        assert_same_bits(wrong, RIGHT)
    with pytest.raises(AssertionError):
        assert_all_same_bits({"a": RIGHT, "b": wrong}, {"a": RIGHT, "b": RIGHT})


@pytest.mark.parametrize(
    "wrong",
    [RIGHT + np.float32(1e-3), np.array([1.0, np.nan, 0.0], np.float32), np.array([1, -2, np.inf]), RIGHT[:2]],
    ids=["off", "nan", "inf", "shape"],
)
def test_close_fails(wrong: np.ndarray) -> None:
    assert_close(RIGHT, RIGHT + np.float32(1e-7), 1e-6)
    with pytest.raises(AssertionError):
        assert_close(wrong, RIGHT, 1e-6)
    with pytest.raises(AssertionError):
        assert_all_close({"a": RIGHT, "b": wrong}, {"a": RIGHT, "b": RIGHT}, 1e-6)


@pytest.mark.parametrize("results", [{}, {"a": RIGHT}, {"a": RIGHT, "b": RIGHT, "c": RIGHT}])
def test_missing_and_surplus_results_fail(results: dict[str, np.ndarray]) -> None:
    expected = {"a": RIGHT, "b": RIGHT}
    assert_all_same_bits(expected, expected)
    assert_all_close(expected, expected, 0)
    with pytest.raises(AssertionError):
        assert_all_same_bits(results, expected)
    with pytest.raises(AssertionError):
        assert_all_close(results, expected, 1)


def test_within_policy_fails() -> None:
    exact = RIGHT.astype(np.float64)
    assert_within_policy(RIGHT + np.float32(1.9e-3), RIGHT + np.float32(1e-3), exact, 0.0)
    with pytest.raises(AssertionError):
        assert_within_policy(RIGHT + np.float32(2.1e-3), RIGHT + np.float32(1e-3), exact, 0.0)
    with pytest.raises(AssertionError):
        assert_within_policy(np.full(3, np.nan, np.float32), RIGHT, exact, 1.0)
    with pytest.raises(AssertionError):
        assert_within_policy(exact, RIGHT, exact, 1.0)
    with pytest.raises(AssertionError):
        assert_within_policy(RIGHT[:1], RIGHT, exact, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [RIGHT + np.float32(1e-3), np.array([1.0, np.nan, 0.0], np.float32), RIGHT.astype(np.float64), RIGHT[:2]],
    ids=["off", "nan", "dtype", "shape"],
)
@pytest.mark.parametrize("one_order", [True, False])
def test_unchanged_fails(wrong: np.ndarray, one_order: bool) -> None:
    assert_unchanged(RIGHT, RIGHT.copy(), one_order)
    with pytest.raises(AssertionError):
        assert_unchanged(wrong, RIGHT, one_order)
    with pytest.raises(AssertionError):
        assert_all_unchanged({"a": RIGHT, "b": wrong}, {"a": RIGHT, "b": RIGHT}, one_order)


def test_unchanged_allows_rounding_of_floats_where_sums_have_no_fixed_order() -> None:
    rounded = np.nextafter(RIGHT, np.float32(9))
    assert_unchanged(rounded, RIGHT, one_order=False)
    with pytest.raises(AssertionError):
        assert_unchanged(rounded, RIGHT, one_order=True)
    with pytest.raises(AssertionError):
        assert_unchanged(np.array([3]), np.array([4]), one_order=False)
    nan = np.array([np.nan, 1])
    assert_unchanged(nan, nan.copy(), one_order=False)
