"""Attention to given keys on CUDA: what depends on how its kernels share the work."""

from __future__ import annotations

from dataclasses import replace

import cuda_host
import ml_dtypes
import numpy as np
import pytest
from calls import attend_to
from cases import Array, Case, example
from checks import assert_all_close, assert_close
from kinds import NUMPY, Target

from zeta_ops.backends.cupy import calls
from zeta_ops.options import Shapes

ON_HOST = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no C++ compiler (g++ or clang++) is installed")
HOST = Target("cuda_host", NUMPY)


def crowded(queries: int) -> tuple[Case, Array]:
    """Make a problem whose first key is named by all queries, the others by some."""
    case, rng = example(queries, dim=20), np.random.default_rng(3)
    few = replace(case, k=case.k[..., :40, :], v=case.v[..., :40, :])
    indices = rng.integers(-1, 40, (*few.q.shape[:-1], 3)).astype(np.int32)
    indices[..., 1] = 0
    return few, indices


@ON_HOST
@pytest.mark.parametrize("queries", [1023, 1024, 2500], ids=lambda n: f"{n} queries")
def test_a_key_may_be_named_by_every_query(queries: int) -> None:
    case, indices = crowded(queries)
    assert_all_close(attend_to(case, indices, HOST), attend_to(case, indices, "numba"), 1e-12)


@ON_HOST
def test_sums_at_the_keys_are_not_made_of_large_products_that_cancel() -> None:
    case, indices = crowded(1500)
    narrow = Case(*(x.astype(np.float32) for x in (case.q, case.k, case.v + 30, case.gamma)))
    grad_out = np.random.default_rng(4).standard_normal((*narrow.q.shape[:-1], 20)).astype(np.float32)
    exact = attend_to(narrow.wide, indices, "numba", grad_out.astype(np.float64))["gradient of k"]
    mine, plain = (attend_to(narrow, indices, name, grad_out)["gradient of k"] for name in (HOST, "numba"))
    assert np.abs(mine - exact).max() <= 2 * np.abs(plain - exact).max()


def narrow(queries: int, keys: int, heads: tuple[int, int] = (2, 1), dim: int = 16) -> Case:
    """Make a problem with values of 16 bits: query heads read key heads."""
    rng = np.random.default_rng(7)
    q, k = (rng.standard_normal((h, n, 3)).astype(np.float32) for h, n in zip(heads, (queries, keys), strict=True))
    v = rng.standard_normal((heads[1], keys, dim)).astype(ml_dtypes.bfloat16)
    return Case(q, k, v, np.linspace(0.4, 0.6, heads[0], dtype=np.float32))


def assert_as_exact_as_values(case: Case, indices: Array) -> None:
    grad_out = np.random.default_rng(8).standard_normal((*case.q.shape[:-1], case.v.shape[-1])).astype(case.v.dtype)
    mine = attend_to(case, indices, HOST, grad_out)
    exact = attend_to(case.wide, indices, "numba", grad_out.astype(np.float64))
    rounding = float(ml_dtypes.finfo(case.v.dtype).eps)
    for name, array in exact.items():
        tolerance = 2 * rounding if name in ("out", "gradient of v") else 1e-5
        assert_close(mine[name].astype(np.float64), array, tolerance, name)


@ON_HOST
@pytest.mark.parametrize(
    ("queries", "keys", "width"),
    [
        (50, 9, 3),  # names are repeated
        (50, 3, 70),  # and more of them than are joined at a time
        (20, 600, 32),  # 512 keys in a tile
        (700, 20, 200),  # most keys of a group in each tile, again and again
    ],
)
def test_tiles_of_queries_may_name_any_keys(queries: int, keys: int, width: int) -> None:
    case = narrow(queries, keys)
    indices = np.random.default_rng(9).integers(-1, keys, (2, queries, width)).astype(np.int32)
    assert_as_exact_as_values(case, indices)


@ON_HOST
@pytest.mark.parametrize("heads", [(3, 3), (4, 2)])
def test_no_tile_has_queries_of_two_key_heads(heads: tuple[int, int]) -> None:
    case = narrow(21, 40, heads)
    assert_as_exact_as_values(case, np.random.default_rng(9).integers(0, 40, (heads[0], 21, 5)).astype(np.int32))


@ON_HOST
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_value_that_is_not_finite_spoils_no_query_that_does_not_name_it(poison: float) -> None:
    case = narrow(40, 30)
    indices = np.random.default_rng(9).integers(1, 30, (2, 40, 6)).astype(np.int32)
    before = attend_to(case, indices, HOST)
    case.v[:, 0] = poison
    indices[:, 7] = 0
    after = attend_to(case, indices, HOST)
    others = np.arange(40) != 7
    assert not np.isfinite(after["out"][:, 7].astype(np.float32)).any()
    for name in ("out", "gradient of q"):
        mine, theirs = (results[name][:, others].astype(np.float64) for results in (after, before))
        assert_close(mine, theirs, 0.01, name)


def test_says_when_there_are_too_many_places_to_number() -> None:
    shapes = Shapes(
        batch=4, q_heads=32, kv_heads=32, q_len=1 << 20, k_len=1 << 20, key_dim=3, value_dim=64,
        coordinate_dtype="float32", value_dtype="bfloat16",
    )  # fmt: skip
    calls.workspace_specs("given_forward", shapes, 16)
    calls.workspace_specs("given_backward", shapes, 15)
    with pytest.raises(ValueError, match=r"2,147,483,647.*4 batch items \* 32 heads \* 1048576 queries \* 16 keys"):
        calls.workspace_specs("given_backward", shapes, 16)


def test_says_when_there_are_too_many_keys_to_number() -> None:
    shapes = Shapes(
        batch=1 << 12, q_heads=32, kv_heads=32, q_len=1, k_len=1 << 15, key_dim=3, value_dim=64,
        coordinate_dtype="float32", value_dtype="bfloat16",
    )  # fmt: skip
    calls.workspace_specs("given_backward", shapes, 1)
    with pytest.raises(ValueError, match=r"32 bits; got 4096 batch items \* 32 heads \* 32769 keys"):
        calls.workspace_specs("given_backward", replace(shapes, k_len=(1 << 15) + 1), 1)
