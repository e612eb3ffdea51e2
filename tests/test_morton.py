"""Morton codes: known answers, round trips, order, the same bits on every backend."""

from __future__ import annotations

import calls
import ml_dtypes
import numpy as np
import oracle
import pytest
from cases import points
from checks import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from kinds import Target

SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("x", "options", "expected"),
    [
        ([[0.0]], {"bits": 27}, 2**26),
        ([[-0.0]], {"bits": 27}, 2**26),
        ([[np.float32(-1e-45)]], {"bits": 27}, 2**26 - 1),
        ([[0.25]], {"bits": 27}, 2**26 + 2**23),
        ([[-0.25]], {"bits": 27}, 2**26 - 1 - 2**23),
        ([[np.inf]], {"bits": 27}, 2**27 - 1),
        ([[-np.inf]], {"bits": 27}, 0),
        ([[np.nan]], {"bits": 27}, 2**27 - 1),
        ([[np.nan]], {"bits": 27, "bounds": (0, 1)}, 2**27 - 1),
        ([[1.0]], {"bits": 27, "bounds": (0, 1)}, 2**27 - 1),
        ([[-3.0]], {"bits": 27, "bounds": (0, 1)}, 0),
        ([[0.5, 0.25]], {"bits": 2, "bounds": (0, 1)}, 0b1001),
        ([[0.5, 0.25, 0.75]], {"bits": 2, "bounds": (0, 1)}, 0b101011),
        ([[0.0]], {"bits": 27, "num_curves": 2, "curve": 1}, (2**26 + 44739242) >> 1),
    ],
)
def test_known_codes(backend: Target, x: list, options: dict, expected: int) -> None:
    codes = calls.morton_encode(np.array(x, np.float32), backend=backend, **options)
    assert codes.tolist() == [expected]


@given(seed=SEEDS, dims=st.integers(1, 8), data=st.data())
def test_codes_are_the_oracles(backend: Target, seed: int, dims: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    bits = data.draw(st.integers(1, min(27, 64 // dims)))
    num_curves = data.draw(st.integers(1, 3))
    options = {
        "bits": bits,
        "bounds": data.draw(st.sampled_from([None, (0, 1), (-3.5, 1e9)])),
        "num_curves": num_curves,
        "curve": data.draw(st.integers(0, num_curves - 1)),
    }
    x = np.concatenate([points(kind, (4, dims), rng) for kind in ("random", "lattice", "wild")])
    codes = calls.morton_encode(x, backend=backend, **options)
    assert codes.dtype == (np.uint32 if dims * bits <= 32 else np.uint64)
    assert codes.tolist() == [oracle.code(point, **options) for point in x]


@given(seed=SEEDS, dims=st.integers(1, 8))
def test_backends_agree_on_any_bits(backend: Target, seed: int, dims: int) -> None:
    x = points("wild", (200, dims), np.random.default_rng(seed))
    for bounds in (None, (-1.0, 2.0)):
        for curves in (1, 3):
            options = {"bounds": bounds, "num_curves": curves, "curve": curves - 1}
            reference = calls.morton_encode(x, backend="numpy", **options)
            assert_same_bits(calls.morton_encode(x, backend=backend, **options), reference)


@given(seed=SEEDS, dims=st.integers(1, 8), data=st.data())
def test_round_trip(backend: Target, seed: int, dims: int, data: st.DataObject) -> None:
    bits = data.draw(st.integers(1, min(27, 64 // dims)))
    cells = np.random.default_rng(seed).integers(0, 2**bits, (50, dims), dtype=np.int64)
    middles = ((cells + 0.5) / 2**bits).astype(np.float32)
    if bits <= 22:  # beyond, float32 cannot hold the middle of a cell
        codes = calls.morton_encode(middles, bits=bits, bounds=(0, 1), backend=backend)
        assert (calls.morton_decode(codes, dims=dims, bits=bits, backend=backend) == cells).all()
    codes = np.random.default_rng(seed).integers(0, 2 ** (dims * bits), 50, dtype=np.uint64)
    decoded = calls.morton_decode(codes, dims=dims, bits=bits, backend=backend)
    again = [int("".join(f"{c:0{bits}b}"[b] for b in range(bits) for c in row), 2) for row in decoded]
    assert again == codes.tolist()


@given(seed=SEEDS, dims=st.integers(1, 8), axis=st.integers(0, 7), bounds=st.sampled_from([None, (-2.0, 2.0)]))
def test_monotone_along_each_axis(backend: Target, seed: int, dims: int, axis: int, bounds: tuple | None) -> None:
    rng = np.random.default_rng(seed)
    values = points("wild", (60, 1), rng)[:, 0]
    values = np.sort(np.concatenate([values[~np.isnan(values)], points("random", (60, 1), rng)[:, 0]]))
    x = np.repeat(points("random", (1, dims), rng), len(values), axis=0)
    x[:, axis % dims] = values
    for bits in (None, min(27, 64 // dims)):
        codes = calls.morton_encode(x, bits=bits, bounds=bounds, backend=backend)
        assert (codes[1:] >= codes[:-1]).all()
        assert codes[0] < codes[-1]


def test_narrow_and_wide_inputs_are_quantised_in_float32(backend: Target) -> None:
    x = points("random", (64, 3), np.random.default_rng(0))
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        same = calls.morton_encode(x.astype(dtype).astype(np.float32), backend=backend)
        assert_same_bits(calls.morton_encode(x.astype(dtype), backend=backend), same)


def test_shapes(backend: Target) -> None:
    x = np.zeros((2, 0, 3), np.float32)
    assert calls.morton_encode(x, backend=backend).shape == (2, 0)
    assert calls.morton_encode(np.zeros(3, np.float32), backend=backend).shape == ()
    assert calls.morton_decode(np.zeros((2, 5), np.uint32), dims=3, backend=backend).shape == (2, 5, 3)
