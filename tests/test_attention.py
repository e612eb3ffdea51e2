"""Outputs and gradients: against the reference, in every precision, and against dense attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import calls
import ml_dtypes
import numpy as np
import pytest
from calls import Results, attend, attend_to
from cases import Array, Case, cases, example, points
from checks import assert_all_close, assert_close, assert_same_bits, assert_unchanged, assert_within_policy
from hypothesis import given
from kinds import Target


@given(case=cases(dtype=np.float64))
def test_backends_agree_in_float64(backend: Target, case: Case) -> None:
    assert_all_close(attend(case, backend), attend(case, "numpy"), 1e-11)
    arrays, options = (case.q, case.k, case.v, case.gamma), {**case.options, "return_normalizer": True}
    results, expected = (calls.zeta_attention(*arrays, backend=name, **options) for name in (backend, "numpy"))
    for mine, theirs in zip(results, expected, strict=True):
        assert_close(mine, theirs, 1e-12)


@pytest.mark.parametrize("kind", ["random", "duplicates", "drift"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_curves": 3, "history_mean": True, "local_window": 9},
        {"chunk_size": 64, "include_self": False, "history_mean": True},
        {"causal": False, "window": 40},
        {"search": "exact", "local_window": 3, "history_mean": True},
        {"cu_seqlens": np.array([0, 200, 200, 201, 500], np.int32), "history_mean": True},
        {"q_offset": 150, "num_curves": 2, "window": 5},
    ],
    ids=lambda options: ", ".join(options),
)
def test_backends_agree_over_several_levels(backend: Target, kind: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    q, k = points(kind, (2, 500, 3), rng).astype(np.float64), points(kind, (1, 500, 3), rng).astype(np.float64)
    case = Case(q, k, rng.standard_normal((1, 500, 4)), np.array([0.4, 0.9]), {"top_k": 7, **options})
    assert_all_close(attend(case, backend), attend(case, "numpy"), 1e-11)


def rounding_scales(case: Case, grad_out: Array, exact: Results) -> Results:
    """Magnitudes whose rounding no order of summation avoids.

    The gradients through the weights are sums of `2 u (g . v_j - g . out) (q - k)`, with `u |q - k|` at most
    `1 / (2 gamma)`. Where the two products cancel, their rounding is what remains.
    """
    group = case.q.shape[-3] // case.k.shape[-3]
    products = np.abs(grad_out) @ np.abs(np.repeat(case.v, group, axis=-3)).swapaxes(-1, -2)
    cancelled = float(products.max(initial=0)) / float(case.gamma.min())
    direct = ("out", "gradient of v")
    return {
        name: max(1.0, float(np.abs(x).max(initial=0))) + (0 if name in direct else cancelled)
        for name, x in exact.items()
    }


@pytest.mark.parametrize("keys", ["searched", "given"])
@given(case=cases(dtype=np.float32))
def test_float32_is_as_exact_as_a_plain_expression(backend: Target, keys: str, case: Case) -> None:
    # `case.wide` has the same selection, and sums in float64.
    grad_out = np.random.default_rng(0).standard_normal((*case.q.shape[:-1], case.v.shape[-1])).astype(np.float32)
    if keys == "searched":
        mine, plain = attend(case, backend, grad_out), attend(case, "numpy", grad_out)
        exact = attend(case.wide, "numpy", grad_out.astype(np.float64))
    else:
        indices = calls.causal_topk(case.q, case.k, backend="numpy", **case.selection_options)
        mine, plain = (attend_to(case, indices, name, grad_out) for name in (backend, "numpy"))
        exact = attend_to(case.wide, indices, "numpy", grad_out.astype(np.float64))
    epsilon = float(np.finfo(np.float32).eps)
    for name, scale in rounding_scales(case, grad_out, exact).items():
        assert_within_policy(mine[name], plain[name], exact[name], 8 * epsilon * scale, name)


@given(case=cases(dtype=np.float32))
def test_float64_values_of_float32_points(backend: Target, case: Case) -> None:
    grad_out = np.random.default_rng(0).standard_normal((*case.q.shape[:-1], case.v.shape[-1]))
    mine, expected = (attend(case.wide, name, grad_out) for name in (backend, "numpy"))
    for name, scale in rounding_scales(case, grad_out, expected).items():  # distances may be rounded to float32
        assert mine[name].dtype == expected[name].dtype
        assert_close(mine[name], expected[name], 1e-6 * scale, name)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    "options", [{}, {"history_mean": True, "local_window": 3}, {"search": "exact"}], ids=["plain", "history", "exact"]
)
def test_sixteen_bit_values(backend: Target, dtype: Any, options: dict[str, Any]) -> None:
    case = example(dtype=np.float32, **options)
    narrow = replace(case, v=case.v.astype(dtype))
    grad_out = np.ones(case.v.shape, dtype)
    mine = attend(narrow, backend, grad_out)
    expected = attend(replace(case, v=narrow.v.astype(np.float32)), "numpy", grad_out.astype(np.float32))
    dtypes = {name: array.dtype for name, array in mine.items()}
    assert dtypes.pop("out") == dtypes.pop("gradient of v") == dtype
    assert set(dtypes.values()) == {np.dtype(np.float32)}
    for name, array in expected.items():
        epsilon = float(ml_dtypes.finfo(dtype).eps) if name in ("out", "gradient of v") else 2e-5
        assert_close(mine[name].astype(np.float32), array, epsilon, name)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_sixteen_bit_coordinates_are_used_in_float32(backend: Target, dtype: Any) -> None:
    case = example(dtype=np.float32)
    narrow = replace(case, q=case.q.astype(dtype), k=case.k.astype(dtype), gamma=case.gamma.astype(dtype))
    widened = replace(case, **{name: getattr(narrow, name).astype(np.float32) for name in ("q", "k", "gamma")})
    mine, same = attend(narrow, backend), attend(widened, backend)
    for name, array in same.items():
        expected = array if name in ("out", "gradient of v") else array.astype(dtype)
        assert_unchanged(mine[name], expected, backend.one_order, name)


@given(case=cases(dtype=np.float64))
def test_a_given_selection_is_the_same_attention(backend: Target, case: Case) -> None:
    plain = replace(case, options={**case.selection_options, "local_window": 0})
    indices = calls.causal_topk(case.q, case.k, backend="numpy", **plain.options)
    assert_all_close(attend_to(case, indices, backend), attend(plain, "numpy"), 1e-11)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 40},
        {"top_k": 40, "causal": False},
        {"top_k": 64, "search": "exact"},
        {"top_k": 64, "search": "exact", "causal": False},
        {"top_k": 64, "num_curves": 3},
        {"top_k": 4, "local_window": 40},
    ],
    ids=lambda options: ", ".join(options),
)
def test_all_keys_are_dense_attention(backend: Target, options: dict[str, Any]) -> None:
    case = example(length=40)
    u = 1 / (((case.q[..., :, None, :] - case.k[..., None, :, :]) ** 2).sum(-1) + case.gamma[:, None, None] ** 2)
    u = np.tril(u) if options.get("causal", True) else u
    arrays = case.q, case.k, case.v, case.gamma
    out, z = calls.zeta_attention(*arrays, return_normalizer=True, backend=backend, **options)
    assert_close(out, (u @ case.v) / u.sum(-1, keepdims=True), 1e-12)
    assert_close(z, u.sum(-1), 1e-12)


def test_the_history_token_is_the_mean_of_what_came_before(backend: Target) -> None:
    case = example(length=30)
    arrays = case.q, case.k, case.v, case.gamma
    for include_self in (True, False):
        options = {"top_k": 4, "include_self": include_self, "return_normalizer": True, "backend": backend}
        bare, bare_z = calls.zeta_attention(*arrays, **options)
        out, z = calls.zeta_attention(*arrays, history_mean=True, **options)
        for i in range(30):
            count = i + 1 if include_self else i
            if count == 0:
                assert (out[..., i, :] == 0).all() and (z[..., i] == 0).all()
                continue
            mean_key, mean_value = case.k[..., :count, :].mean(-2), case.v[..., :count, :].mean(-2)
            u = 1 / (((case.q[..., i, :] - mean_key) ** 2).sum(-1) + case.gamma**2)
            total = bare_z[..., i] + u
            assert_close(z[..., i], total, 1e-12)
            sums = bare[..., i, :] * bare_z[..., i, None] + mean_value * u[..., None]
            assert_close(out[..., i, :], sums / total[..., None], 1e-12)


def test_partial_sums_add_up(backend: Target) -> None:
    case = example()
    options = {"top_k": 96, "causal": False, "return_normalizer": True, "backend": backend}
    whole, z = calls.zeta_attention(case.q, case.k, case.v, case.gamma, **options)
    sums, total = np.zeros_like(whole), np.zeros_like(z)
    for part in (slice(0, 31), slice(31, 32), slice(32, 32), slice(32, 96)):
        out, z_part = calls.zeta_attention(case.q, case.k[..., part, :], case.v[..., part, :], case.gamma, **options)
        sums += out * z_part[..., None]
        total += z_part
    assert_close(total, z, 1e-12)
    assert_close(sums / total[..., None], whole, 1e-12)


@pytest.mark.parametrize("q_len", [0, 1, 2, 33])
@pytest.mark.parametrize("k_len", [0, 1, 2, 33])
@pytest.mark.parametrize(
    "options",
    [{}, {"history_mean": True, "local_window": 2, "num_curves": 3}, {"search": "exact", "history_mean": True}],
    ids=["plain", "curves and history", "exact"],
)
def test_short_and_empty(backend: Target, q_len: int, k_len: int, options: dict[str, Any]) -> None:
    case = example(length=33, **options)
    case = replace(case, q=case.q[..., :q_len, :], k=case.k[..., :k_len, :], v=case.v[..., :k_len, :])
    assert_all_close(attend(case, backend), attend(case, "numpy"), 1e-12)


@pytest.mark.parametrize("shape", [(0, 2), (2, 0, 3), (1, 2, 1, 2)], ids=str)
def test_any_number_of_batch_axes(backend: Target, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, *shape, 5, 3))
    case = Case(q, k, rng.standard_normal((*shape, 5, 4)), np.full(shape[-1], 0.5), {"top_k": 2})
    results = attend(case, backend)
    assert results["out"].shape == case.v.shape
    assert_all_close(results, attend(case, "numpy"), 1e-12)


def test_nothing_to_attend_to_gives_zero(backend: Target) -> None:
    case = example(length=4, include_self=False)
    out, z = calls.zeta_attention(
        case.q, case.k, case.v, case.gamma, return_normalizer=True, backend=backend, **case.options
    )
    assert (out[..., 0, :] == 0).all() and (z[..., 0] == 0).all() and (z[..., 1:] > 0).all()
    no_keys = calls.zeta_attention(case.q, case.k[..., :0, :], case.v[..., :0, :], backend=backend)
    assert no_keys.shape == case.v.shape and (no_keys == 0).all()
    nothing = np.full((*case.q.shape[:-1], 3), -1, np.int32)
    for result in attend_to(case, nothing, backend).values():
        assert (result == 0).all()


def test_scalar_gamma_and_its_gradient(backend: Target) -> None:
    case = example()
    per_head = attend(replace(case, gamma=np.full(2, 0.5)), backend)
    for gamma in (0.5, np.float64(0.5), np.array(0.5)):
        results = attend(replace(case, gamma=gamma), backend)
        assert_same_bits(results["out"], per_head["out"])
        assert results["gradient of gamma"].shape == ()
        assert results["gradient of gamma"] == pytest.approx(per_head["gradient of gamma"].sum())


def test_repeated_indices_count_twice(backend: Target) -> None:
    case = example(length=6, heads=1)
    twice = np.array([[[[0, 0, 1]] * 6]] * 2, np.int32).reshape(2, 1, 6, 3)
    out = calls.cauchy_attention(case.q, case.k, case.v, twice, case.gamma, backend=backend)
    u = 1 / (((case.q[..., :, None, :] - case.k[..., None, :2, :]) ** 2).sum(-1) + case.gamma[0] ** 2)
    u[..., 0] *= 2
    assert_close(out, u @ case.v[..., :2, :] / u.sum(-1, keepdims=True), 1e-12)


def test_defaults_are_those_of_the_definition(backend: Target) -> None:
    case = example()
    defaults = {
        "top_k": 32, "window": 32, "num_curves": 1, "search": "zorder", "causal": True, "chunk_size": 1,
        "include_self": True, "local_window": 0, "history_mean": False, "bits": 10, "bounds": None, "q_offset": 0,
        "cu_seqlens": None, "deterministic": False,
    }  # fmt: skip
    spelled_out = calls.zeta_attention(case.q, case.k, case.v, 1.0, backend=backend, **defaults)
    assert_same_bits(calls.zeta_attention(case.q, case.k, case.v, backend=backend), spelled_out)
