"""Selections as lists on CUDA: what depends on how a warp gathers candidates and chooses among them."""

from __future__ import annotations

from typing import Any

import calls
import cuda_host
import ml_dtypes
import numpy as np
import pytest
from cases import Case, points
from checks import assert_close, assert_same_bits

import zeta_ops

ON_HOST = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no C++ compiler (g++ or clang++) is installed")

# A warp gathers up to 256 candidates, and goes other ways where ranges have up to 64, 96 or 192 entries.
OPTIONS: list[dict[str, Any]] = [
    {"top_k": 32, "window": 64, "num_curves": 3},
    {"top_k": 32, "window": 32, "num_curves": 3},
    {"top_k": 64, "window": 32, "num_curves": 3},
    {"top_k": 100, "window": 32, "num_curves": 3},
    {"top_k": 7, "window": 16, "num_curves": 2},
    {"top_k": 20, "window": 130, "num_curves": 3},
    {"top_k": 300, "window": 100, "num_curves": 3},
    {"top_k": 390, "window": 200, "num_curves": 2},
    {"top_k": 9, "window": 200},
    {"top_k": 32, "window": 32, "num_curves": 3, "bits": 2},  # many keys of one code
    {"top_k": 390, "window": 200, "num_curves": 2, "bits": 4},
    {"top_k": 48, "window": 40, "num_curves": 3, "bits": 21},  # codes of more than 32 bits
]


def drawn(kind: str, length: int) -> Case:
    """Two query heads that read one key head, values of 16 bits."""
    rng = np.random.default_rng(5)
    q, k = (points(kind, (heads, length, 3), rng) for heads in (2, 1))
    v = rng.standard_normal((1, length, 16)).astype(ml_dtypes.bfloat16)
    return Case(q, k, v, np.array([0.4, 0.6], np.float32), {})


@ON_HOST
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["random", "ties", "duplicates", "lattice", "drift", "equal", "wild"])
def test_chooses_as_numba_does(kind: str, options: dict[str, Any]) -> None:
    case = drawn(kind, 500)
    mine, reference = (
        zeta_ops.causal_topk(case.q, case.k, backend=backend, **options) for backend in ("cuda_host", "numba")
    )
    assert_same_bits(mine, reference)


@ON_HOST
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["random", "lattice", "drift"])
def test_attends_to_what_it_chooses(kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_host, "POISON", 0)  # a place of a list that is not written names the first key
    case = drawn(kind, 400)
    case.options = {**options, "history_mean": True}
    grad_out = np.random.default_rng(6).standard_normal((2, 400, 16)).astype(ml_dtypes.bfloat16)
    mine = calls.attend(case, "cuda_host", grad_out)
    exact = calls.attend(case.wide, "numba", grad_out.astype(np.float64))
    rounding = float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)
    for name, array in exact.items():
        direct = name in ("out", "gradient of v")
        assert_close(mine[name].astype(np.float64), array, 2 * rounding if direct else 1e-5, name)
