"""Assertions that every test uses; test_checks.py shows that each can fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def assert_same_bits(actual: Array, expected: Array, what: str = "result") -> None:
    """Shapes, dtypes and bits are equal; NaN equals the same NaN, 0.0 differs from -0.0."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape} instead of {expected.shape}"
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype} instead of {expected.dtype}"
    same = np.ascontiguousarray(actual).view(np.uint8) == np.ascontiguousarray(expected).view(np.uint8)
    assert same.all(), f"{what}: {int((~same).sum())} of {same.size} bytes differ"


def assert_all_same_bits(actual: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """The same names, each with the same bits."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert_same_bits(actual[name], array, name)


def assert_unchanged(actual: Array, expected: Array, one_order: bool, what: str = "result") -> None:
    """The same bits; floats may differ by rounding where sums have no fixed order, but not in where they are finite."""
    if one_order or not _is_float(expected):
        assert_same_bits(actual, expected, what)
        return
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype} instead of {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape} instead of {expected.shape}"
    finite = np.abs(np.asarray(expected, np.float64)[np.isfinite(np.asarray(expected, np.float64))]).max(initial=1)
    error, allowed = largest_error(actual, expected), ROUNDING[expected.dtype.name] * finite
    assert error <= allowed, f"{what}: error {error:.3e}, allowed {allowed:.3e}"


def assert_all_unchanged(actual: Mapping[str, Array], expected: Mapping[str, Array], one_order: bool) -> None:
    """The same names, each unchanged."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert_unchanged(actual[name], array, one_order, name)


# Far below what another selection changes; with room for products that cancel.
ROUNDING = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 1e-4, "float64": 1e-11}


def _is_float(x: Array) -> bool:
    return x.dtype.name in ROUNDING


def assert_close(actual: Array, expected: Array, tolerance: float, what: str = "result") -> None:
    """The largest deviation is at most `tolerance` times the largest expected magnitude (at least 1)."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape} instead of {expected.shape}"
    error, scale = largest_error(actual, expected), max(1.0, float(np.abs(expected).max(initial=0)))
    assert error <= tolerance * scale, f"{what}: error {error:.3e}, allowed {tolerance * scale:.3e}"


def assert_all_close(actual: Mapping[str, Array], expected: Mapping[str, Array], tolerance: float) -> None:
    """The same names, each close."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert_close(actual[name], array, tolerance, name)


def assert_within_policy(actual: Array, plain: Array, exact: Array, floor: float, what: str = "result") -> None:
    """The error against `exact` (float64) is at most twice that of the plain expression in the same precision.

    `floor` is for cases in which the plain expression happens to be right to the last bit.
    """
    assert actual.shape == exact.shape, f"{what}: shape {actual.shape} instead of {exact.shape}"
    assert actual.dtype == plain.dtype, f"{what}: dtype {actual.dtype} instead of {plain.dtype}"
    error, allowed = largest_error(actual, exact), 2 * largest_error(plain, exact) + floor
    assert error <= allowed, f"{what}: error {error:.3e}, allowed {allowed:.3e}"


def largest_error(actual: Array, expected: Array) -> float:
    """Largest absolute deviation, in float64; infinite where the two are not finite in the same places."""
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return np.inf
    finite = np.isfinite(b)
    return float(np.abs(a[finite] - b[finite]).max(initial=0))
