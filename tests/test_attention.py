"""Outputs and gradients: against the reference, against central differences, and by their symmetries."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import Case, cases
from checks import assert_close, assert_same_bits, assert_within_policy
from hypothesis import given

import zeta_ops

NAMES = ("q", "k", "v", "gamma")


def run(case: Case, backend: str, grad_out: np.ndarray | None = None) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    out, pullback = zeta_ops.zeta_attention_vjp(case.q, case.k, case.v, case.gamma, backend=backend, **case.options)
    grad_out = np.random.default_rng(0).standard_normal(out.shape).astype(out.dtype) if grad_out is None else grad_out
    return out, pullback(grad_out)


def example(length: int = 96, dtype: Any = np.float64, heads: int = 2, dim: int = 16, **options: Any) -> Case:
    rng = np.random.default_rng(7)
    q, k = rng.standard_normal((2, 2, heads, length, 3)).astype(dtype)
    v = rng.standard_normal((2, heads, length, dim)).astype(dtype)
    return Case(q, k, v, np.linspace(0.3, 0.8, heads).astype(dtype), {"top_k": 8, **options})


@given(case=cases(dtype=np.float64))
def test_backends_agree_in_float64(backend: str, case: Case) -> None:
    expected, expected_gradients = run(case, "numpy")
    out, gradients = run(case, backend)
    assert_close(out, expected, 1e-12, "out")
    for name, mine, theirs in zip(NAMES, gradients, expected_gradients, strict=True):
        assert_close(mine, theirs, 1e-11, f"gradient of {name}")


@given(case=cases(dtype=np.float32))
def test_float32_is_as_exact_as_a_plain_expression(backend: str, case: Case) -> None:
    # In float64 the same selection has to be given, because other roundings could cut other keys.
    indices = zeta_ops.causal_topk(case.q, case.k, backend="numpy", **case.selection_options)
    wide = Case(*(x.astype(np.float64) for x in (case.q, case.k, case.v, case.gamma)), {})
    grad_out = np.random.default_rng(0).standard_normal((*case.q.shape[:-1], case.v.shape[-1])).astype(np.float32)

    def attend(c: Case, name: str) -> tuple[np.ndarray, ...]:
        out, pullback = zeta_ops.cauchy_attention_vjp(c.q, c.k, c.v, indices, c.gamma, backend=name)
        return out, *pullback(grad_out.astype(out.dtype))

    results = zip(("out", *NAMES), attend(case, backend), attend(case, "numpy"), attend(wide, "numpy"), strict=True)
    for name, mine, plain, exact in results:
        floor = 5e-6 * max(1.0, float(np.abs(exact).max(initial=0)))  # forty roundings of the largest number
        assert_within_policy(mine, plain, exact, floor, name)
    if case.options["search"] == "zorder" and not case.options["history_mean"] and not case.options.get("local_window"):
        out, gradients = run(case, backend, grad_out)
        for name, mine, plain in zip(("out", *NAMES), (out, *gradients), attend(case, backend), strict=True):
            assert_close(mine, plain, 2e-6, name)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("history_mean", [False, True])
def test_sixteen_bit_values(backend: str, dtype: Any, history_mean: bool) -> None:
    case = example(dtype=np.float32, history_mean=history_mean)
    narrow = Case(case.q, case.k, case.v.astype(dtype), case.gamma, case.options)
    grad_out = np.ones(case.v.shape, dtype)
    out, gradients = run(narrow, backend, grad_out)
    wide = Case(case.q, case.k, narrow.v.astype(np.float32), case.gamma, case.options)
    expected, expected_gradients = run(wide, "numpy", grad_out.astype(np.float32))
    assert out.dtype == dtype and gradients[2].dtype == dtype and gradients[0].dtype == np.float32
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    assert_close(out.astype(np.float64), expected, epsilon, "out")
    for name, mine, theirs in zip(NAMES, gradients, expected_gradients, strict=True):
        assert_close(mine.astype(np.float64), theirs, epsilon if name == "v" else 2e-5, name)


def test_sixteen_bit_coordinates_are_used_in_float32(backend: str) -> None:
    case = example(dtype=np.float32)
    narrow = Case(case.q.astype(np.float16), case.k.astype(np.float16), case.v, case.gamma, case.options)
    wide = Case(narrow.q.astype(np.float32), narrow.k.astype(np.float32), case.v, case.gamma, case.options)
    out, gradients = run(narrow, backend)
    same, same_gradients = run(wide, backend)
    assert_same_bits(out, same)
    assert_same_bits(gradients[0], same_gradients[0].astype(np.float16))


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
    ],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_gradients_are_central_differences(backend: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    heads, kv_heads, n = 4, 2, 24
    arrays = {
        "q": rng.standard_normal((1, heads, n, 3)),
        "k": rng.standard_normal((1, kv_heads, n, 3)),
        "v": rng.standard_normal((1, kv_heads, n, 4)),
        "gamma": rng.uniform(0.3, 0.8, heads),
    }
    options = {"top_k": 6, **options}
    out, pullback = zeta_ops.zeta_attention_vjp(**arrays, backend=backend, **options)
    grad_out = rng.standard_normal(out.shape)
    for name, gradient in zip(NAMES, pullback(grad_out), strict=True):
        direction = rng.standard_normal(arrays[name].shape)
        step = 1e-6
        ahead, behind = (
            zeta_ops.zeta_attention(**{**arrays, name: arrays[name] + s * direction}, backend=backend, **options)
            for s in (step, -step)
        )
        slope = ((ahead - behind) * grad_out).sum() / (2 * step)
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-8)


@given(case=cases(dtype=np.float64))
def test_a_given_selection_is_the_same_attention(backend: str, case: Case) -> None:
    options = {**case.selection_options, "local_window": 0}
    indices = zeta_ops.causal_topk(case.q, case.k, backend="numpy", **options)
    given_out, given_pullback = zeta_ops.cauchy_attention_vjp(
        case.q, case.k, case.v, indices, case.gamma, backend=backend
    )
    plain = Case(case.q, case.k, case.v, case.gamma, {**options, "history_mean": False})
    grad_out = np.random.default_rng(0).standard_normal(given_out.shape)
    out, gradients = run(plain, "numpy", grad_out)
    assert_close(given_out, out, 1e-12)
    for name, mine, theirs in zip(NAMES, given_pullback(grad_out), gradients, strict=True):
        assert_close(mine, theirs, 1e-11, name)


def test_whole_window_is_dense_attention(backend: str) -> None:
    case = example(length=40)
    u = 1 / (((case.q[..., :, None, :] - case.k[..., None, :, :]) ** 2).sum(-1) + case.gamma[:, None, None] ** 2)
    u = np.tril(u)
    dense = (u @ case.v) / u.sum(-1, keepdims=True)
    for options in ({"top_k": 40}, {"top_k": 64, "search": "exact"}, {"top_k": 64, "num_curves": 3}):
        out, z = zeta_ops.zeta_attention(
            case.q, case.k, case.v, case.gamma, return_normalizer=True, backend=backend, **options
        )
        assert_close(out, dense, 1e-12)
        assert_close(z, u.sum(-1), 1e-12)


def test_partial_sums_add_up(backend: str) -> None:
    case = example()
    options = {"top_k": 96, "causal": False, "return_normalizer": True, "backend": backend}
    whole, z = zeta_ops.zeta_attention(case.q, case.k, case.v, case.gamma, **options)
    sums, total = np.zeros_like(whole), np.zeros_like(z)
    for part in (slice(0, 31), slice(31, 32), slice(32, 96)):
        out, z_part = zeta_ops.zeta_attention(case.q, case.k[..., part, :], case.v[..., part, :], case.gamma, **options)
        sums += out * z_part[..., None]
        total += z_part
    assert_close(total, z, 1e-12)
    assert_close(sums / total[..., None], whole, 1e-12)


@given(case=cases(dtype=np.float32))
def test_heads_and_batch_are_independent(backend: str, case: Case) -> None:
    out, gradients = run(case, backend, np.ones((*case.q.shape[:-1], case.v.shape[-1]), np.float32))
    heads, kv_heads = case.q.shape[-3], case.k.shape[-3]
    group = heads // kv_heads
    order = np.arange(kv_heads)[::-1]
    q_order = (order[:, None] * group + np.arange(group)).reshape(-1)
    swapped = Case(
        np.take(case.q, q_order, -3), np.take(case.k, order, -3), np.take(case.v, order, -3), case.gamma[q_order],
        case.options,
    )  # fmt: skip
    if case.q.ndim == 4:
        swapped.q, swapped.k, swapped.v = (x[::-1] for x in (swapped.q, swapped.k, swapped.v))
    swapped_out, swapped_gradients = run(swapped, backend, np.ones_like(out))
    flip = slice(None, None, -1) if case.q.ndim == 4 else slice(None)
    assert_same_bits(swapped_out[flip], np.take(out, q_order, -3))
    for mine, theirs, axis_order in zip(swapped_gradients[:3], gradients[:3], (q_order, order, order), strict=True):
        assert_same_bits(mine[flip], np.take(theirs, axis_order, -3))


@given(case=cases(dtype=np.float32))
def test_packed_is_one_by_one(backend: str, case: Case) -> None:
    if "cu_seqlens" not in case.options:
        return
    options = {name: value for name, value in case.options.items() if name != "cu_seqlens"}
    out, gradients = run(case, backend, np.ones((*case.q.shape[:-1], case.v.shape[-1]), np.float32))
    borders = case.options["cu_seqlens"].tolist()
    for start, stop in pairwise(borders):
        part = slice(start, stop)
        one = Case(case.q[:, part], case.k[:, part], case.v[:, part], case.gamma, options)
        one_out, one_gradients = run(one, backend, np.ones_like(out[:, part]))
        assert_same_bits(np.ascontiguousarray(out[:, part]), one_out)
        for mine, theirs in zip(gradients[:3], one_gradients[:3], strict=True):
            assert_same_bits(np.ascontiguousarray(mine[:, part]), theirs)


@pytest.mark.parametrize("options", [{}, {"history_mean": True, "num_curves": 2}, {"local_window": 4, "chunk_size": 8}])
def test_pieces_with_an_offset_are_the_whole(backend: str, options: dict[str, Any]) -> None:
    case = example(dtype=np.float32, **options)
    whole, _ = run(case, backend)
    for start, stop in ((0, 1), (1, 50), (50, 96)):
        piece = zeta_ops.zeta_attention(
            case.q[..., start:stop, :], case.k, case.v, case.gamma, q_offset=start, backend=backend, **case.options
        )
        assert_close(piece, whole[..., start:stop, :], 1e-6)
    last = zeta_ops.zeta_attention(case.q[..., -5:, :], case.k, case.v, case.gamma, backend=backend, **case.options)
    assert_close(last, whole[..., -5:, :], 1e-6)


@pytest.mark.parametrize("length", [0, 1, 2, 33])
@pytest.mark.parametrize(
    "options", [{}, {"history_mean": True, "local_window": 2, "num_curves": 3}, {"search": "exact"}]
)
def test_short_and_empty(backend: str, length: int, options: dict[str, Any]) -> None:
    case = example(length=length, **options)
    expected, expected_gradients = run(case, "numpy")
    out, gradients = run(case, backend)
    assert_close(out, expected, 1e-12)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        assert_close(mine, theirs, 1e-12)


def test_nothing_to_attend_to_gives_zero(backend: str) -> None:
    case = example(length=4, include_self=False)
    out, z = zeta_ops.zeta_attention(
        case.q, case.k, case.v, case.gamma, return_normalizer=True, backend=backend, **case.options
    )
    assert (out[..., 0, :] == 0).all() and (z[..., 0] == 0).all() and (z[..., 1:] > 0).all()
    no_keys = zeta_ops.zeta_attention(case.q, case.k[..., :0, :], case.v[..., :0, :], backend=backend)
    assert no_keys.shape == case.v.shape and (no_keys == 0).all()


def test_layout_in_memory_does_not_matter(backend: str) -> None:
    case = example(dtype=np.float32, history_mean=True, local_window=3)
    expected, expected_gradients = run(case, backend)

    def relaid(x: np.ndarray) -> list[np.ndarray]:
        heads_last = np.ascontiguousarray(np.swapaxes(x, -3, -2)).swapaxes(-3, -2)
        padded = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
        padded[..., : x.shape[-1]] = x
        frozen = x.copy()
        frozen.flags.writeable = False
        return [heads_last, padded[..., : x.shape[-1]], np.asfortranarray(x), x[:, :, ::-1].copy()[:, :, ::-1], frozen]

    for q, k, v in zip(*map(relaid, (case.q, case.k, case.v)), strict=True):
        before = v.copy()
        out, gradients = run(Case(q, k, v, case.gamma, case.options), backend)
        assert_same_bits(out, expected)
        assert_same_bits(np.ascontiguousarray(v), before)
        for mine, theirs in zip(gradients, expected_gradients, strict=True):
            assert_same_bits(mine, theirs)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison_stays_in_its_row(backend: str, poison: float) -> None:
    case = example(dtype=np.float32, num_curves=2, history_mean=True)
    expected, expected_gradients = run(case, backend)
    for x in (case.q, case.k, case.v):
        x[1, 0, 5] = poison
    out, gradients = run(case, backend)
    clean = [(0, 0), (0, 1), (1, 1)]
    for row in clean:
        assert_same_bits(out[row], expected[row])
        for mine, theirs in zip(gradients[:3], expected_gradients[:3], strict=True):
            assert_same_bits(mine[row], theirs[row])
    assert np.isfinite(out[1, 0, :5]).all()


def test_outputs_are_written_completely(backend: str) -> None:
    from zeta_ops.arguments import attention_shapes, search_problem
    from zeta_ops.registry import pick_backend

    case = example(length=70, dtype=np.float32)
    defaults = {
        "window": None, "num_curves": 1, "search": "zorder", "causal": True, "chunk_size": 1, "include_self": False,
        "bits": None, "bounds": None, "q_offset": None,
    }  # fmt: skip
    for options in ({}, {"history_mean": True}, {"search": "exact", "local_window": 2}):
        problem = search_problem(
            attention_shapes(case.q, case.k, case.v, case.gamma),
            None,
            **{**defaults, "local_window": 0, "top_k": 8, **options},
        )
        module = pick_backend(backend, "cpu")
        out, z, *gradients = (
            np.full(shape, np.nan, np.float32)
            for shape in (
                case.v.shape, case.v.shape[:-1], case.q.shape, case.k.shape, case.v.shape, case.gamma.shape
            )
        )  # fmt: skip
        residuals = tuple(
            np.full(spec.shape, 2**30 if "int" in spec.dtype else np.nan, spec.dtype)
            for spec in module.residual_specs(problem)
        )
        arrays = case.q, case.k, case.v, case.gamma, None
        module.attention_forward(problem, *arrays, out, z, residuals)
        module.attention_backward(problem, np.ones_like(out), *arrays, z, residuals, *gradients)
        for result in (out, z, *gradients):
            assert np.isfinite(result).all()


def test_scalar_gamma_and_its_gradient(backend: str) -> None:
    case = example()
    for gamma in (0.5, np.float64(0.5), np.array(0.5)):
        out, pullback = zeta_ops.zeta_attention_vjp(case.q, case.k, case.v, gamma, top_k=8, backend=backend)
        per_head, per_head_pullback = zeta_ops.zeta_attention_vjp(
            case.q, case.k, case.v, np.full(2, 0.5), top_k=8, backend=backend
        )
        assert_same_bits(out, per_head)
        total = pullback(np.ones_like(out))[3]
        assert total.shape == ()
        assert total == pytest.approx(per_head_pullback(np.ones_like(out))[3].sum())


def test_repeated_indices_count_twice(backend: str) -> None:
    case = example(length=6, heads=1)
    twice = np.array([[[[0, 0, 1]] * 6]] * 2, np.int32).reshape(2, 1, 6, 3)
    out = zeta_ops.cauchy_attention(case.q, case.k, case.v, twice, case.gamma, backend=backend)
    u = 1 / (((case.q[..., :, None, :] - case.k[..., None, :2, :]) ** 2).sum(-1) + case.gamma[0] ** 2)
    u[..., 0] *= 2
    assert_close(out, u @ case.v[..., :2, :] / u.sum(-1, keepdims=True), 1e-12)
