"""What must not matter: the order of heads and items, packing, pieces, memory layout, what memory held before."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import calls
import numpy as np
import pytest
from calls import attend, attend_to
from cases import Array, Case, cases, example
from checks import assert_all_same_bits, assert_all_unchanged, assert_same_bits, assert_unchanged
from hypothesis import given
from kinds import Target

from zeta_ops.arguments import attention_shapes, search_problem
from zeta_ops.registry import pick_backend

OPTION_SETS = [
    {},
    {"num_curves": 2, "history_mean": True},
    {"local_window": 4, "chunk_size": 8},
    {"search": "exact", "history_mean": True, "local_window": 2},
    {"causal": False, "history_mean": True},
]
ALL_OPTIONS = pytest.mark.parametrize("options", OPTION_SETS, ids=lambda options: ", ".join(options) or "plain")


@given(case=cases(dtype=np.float32))
def test_heads_and_batch_are_independent(backend: Target, case: Case) -> None:
    heads, kv_heads = case.q.shape[-3], case.k.shape[-3]
    group = heads // kv_heads
    kv_order = np.arange(kv_heads)[::-1]
    order = (kv_order[:, None] * group + np.arange(group)[::-1]).reshape(-1)  # heads of a group change places too
    flip = slice(None, None, -1) if case.q.ndim > 3 else slice(None)
    swapped = replace(
        case,
        q=np.take(case.q, order, -3)[flip],
        k=np.take(case.k, kv_order, -3)[flip],
        v=np.take(case.v, kv_order, -3)[flip],
        gamma=case.gamma[order],
    )
    grad_out = np.random.default_rng(1).standard_normal((*case.q.shape[:-1], case.v.shape[-1])).astype(np.float32)
    expected = attend(case, backend, grad_out)
    results = attend(swapped, backend, np.take(grad_out, order, -3)[flip])
    for name in ("out", "gradient of q"):
        assert_unchanged(results[name], np.take(expected[name], order, -3)[flip], backend.one_order, name)
    if group == 1:  # else a key adds up its heads in another order
        for name in ("gradient of k", "gradient of v"):
            assert_unchanged(results[name], np.take(expected[name], kv_order, -3)[flip], backend.one_order, name)


@given(case=cases(dtype=np.float32, layouts=("packed",)))
def test_packed_is_one_by_one(backend: Target, case: Case) -> None:
    options = {name: value for name, value in case.options.items() if name != "cu_seqlens"}
    grad_out = np.random.default_rng(1).standard_normal((*case.q.shape[:-1], case.v.shape[-1])).astype(np.float32)
    whole = attend(case, backend, grad_out)
    for start, stop in pairwise(case.options["cu_seqlens"].tolist()):
        part = slice(start, stop)
        one = Case(case.q[:, part], case.k[:, part], case.v[:, part], case.gamma, options)
        alone = attend(one, backend, grad_out[:, part])
        for name in ("out", "gradient of q", "gradient of k", "gradient of v"):
            assert_unchanged(whole[name][:, part], alone[name], backend.one_order, name)


@ALL_OPTIONS
def test_pieces_with_an_offset_are_the_whole(backend: Target, options: dict[str, Any]) -> None:
    case = example(dtype=np.float32, **options)
    expected = attend(case, backend)["out"]
    for start, stop in ((0, 1), (1, 50), (50, 96), (30, 30)):
        piece = replace(case, q=case.q[..., start:stop, :], options={**case.options, "q_offset": start})
        assert_unchanged(attend(piece, backend)["out"], expected[..., start:stop, :], backend.one_order)
    last = replace(case, q=case.q[..., -5:, :])  # the default aligns the ends
    assert_unchanged(attend(last, backend)["out"], expected[..., -5:, :], backend.one_order)


def test_decoding_token_by_token_is_the_whole(backend: Target) -> None:
    case = example(dtype=np.float32, length=40, history_mean=True, local_window=2, num_curves=2)
    expected = attend(case, backend)["out"]
    for i in range(40):
        step = replace(case, q=case.q[..., i : i + 1, :], k=case.k[..., : i + 1, :], v=case.v[..., : i + 1, :])
        assert_unchanged(attend(step, backend)["out"], expected[..., i : i + 1, :], backend.one_order)


def relaid(x: Array) -> dict[str, Array]:
    """The same array in other layouts of memory."""
    heads_last = np.ascontiguousarray(np.swapaxes(x, -3, -2)).swapaxes(-3, -2)
    padded = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
    padded[..., : x.shape[-1]] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    shifted = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    return {
        "heads last": heads_last,
        "padded": padded[..., : x.shape[-1]],
        "Fortran order": np.asfortranarray(x),
        "backwards": x[..., ::-1, :].copy()[..., ::-1, :],
        "every second": np.repeat(x, 2, axis=-2)[..., ::2, :],
        "read-only": frozen,
        "unaligned": shifted,
    }


@pytest.mark.parametrize("memory", list(relaid(np.zeros((1, 1, 1), np.float32))))
@ALL_OPTIONS
def test_layout_in_memory_does_not_matter(backend: Target, options: dict[str, Any], memory: str) -> None:
    case = example(dtype=np.float32, **options)
    grad_out = np.random.default_rng(1).standard_normal(case.v.shape).astype(np.float32)
    q, k, v, other_grad_out = (relaid(x)[memory] for x in (case.q, case.k, case.v, grad_out))
    expected = attend(case, backend, grad_out)
    assert_all_unchanged(attend(replace(case, q=q, k=k, v=v), backend, other_grad_out), expected, backend.one_order)
    indices = calls.causal_topk(case.q, case.k, top_k=6, backend=backend)
    assert_same_bits(calls.causal_topk(q, k, top_k=6, backend=backend), indices)
    relaid_indices = relaid(indices)[memory]
    expected = attend_to(case, indices, backend, grad_out)
    relaid_results = attend_to(replace(case, q=q, k=k, v=v), relaid_indices, backend, other_grad_out)
    assert_all_unchanged(relaid_results, expected, backend.one_order)
    codes = calls.morton_encode(case.q, backend=backend)
    assert_same_bits(calls.morton_encode(q, backend=backend), codes)
    cells = calls.morton_decode(codes, dims=3, backend=backend)
    assert_same_bits(calls.morton_decode(relaid(codes)[memory], dims=3, backend=backend), cells)


def test_broadcast_arrays(backend: Target) -> None:
    case = example(dtype=np.float32, history_mean=True)
    k, v, grad_out = (np.broadcast_to(x[:1], x.shape) for x in (case.k, case.v, np.ones((2, 1, 1, 1), np.float32)))
    grad_out = np.broadcast_to(grad_out, case.v.shape)
    expected = attend(replace(case, k=k.copy(), v=v.copy()), backend, grad_out.copy())
    assert_all_unchanged(attend(replace(case, k=k, v=v), backend, grad_out), expected, backend.one_order)


@ALL_OPTIONS
def test_inputs_are_not_modified(backend: Target, options: dict[str, Any]) -> None:
    case = example(dtype=np.float32, **options)
    grad_out = np.ones_like(case.v)
    cu_seqlens = np.array([0, 40, 96], np.int32)
    packed = Case(case.q[0], case.k[0], case.v[0], case.gamma, {**case.options, "cu_seqlens": cu_seqlens})
    indices = calls.causal_topk(case.q, case.k, top_k=8, backend=backend)
    inputs = {"q": case.q, "k": case.k, "v": case.v, "gamma": case.gamma, "grad_out": grad_out}
    inputs |= {"cu_seqlens": cu_seqlens, "indices": indices}
    before = {name: array.copy() for name, array in inputs.items()}
    attend(case, backend, grad_out)
    attend(packed, backend, grad_out[0])
    attend_to(case, indices, backend, grad_out)
    calls.selection_recall(case.q, case.k, case.gamma, backend=backend)
    assert_all_same_bits(inputs, before)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@ALL_OPTIONS
def test_poison_stays_in_its_row(backend: Target, poison: float, options: dict[str, Any]) -> None:
    case = example(dtype=np.float32, **options)
    expected = attend(case, backend)
    for x in (case.q, case.k, case.v):
        x[1, 0, 5] = poison
    results = attend(case, backend)
    for row in ((0, 0), (0, 1), (1, 1)):
        for name in ("out", "gradient of q", "gradient of k", "gradient of v"):
            assert_unchanged(results[name][row], expected[name][row], backend.one_order, name)
    assert_unchanged(
        np.asarray(results["gradient of gamma"][1]), np.asarray(expected["gradient of gamma"][1]), backend.one_order
    )
    if options.get("causal", True):
        assert_unchanged(results["out"][1, 0, :5], expected["out"][1, 0, :5], backend.one_order)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@ALL_OPTIONS
def test_poison_stays_in_its_packed_sequence(backend: Target, poison: float, options: dict[str, Any]) -> None:
    borders = np.array([0, 30, 61, 96], np.int32)
    case = example(dtype=np.float32, **options)
    case = Case(case.q[0], case.k[0], case.v[0], case.gamma, {**case.options, "cu_seqlens": borders})
    expected = attend(case, backend)
    for x in (case.q, case.k, case.v):
        x[:, 30:61] = poison
    results = attend(case, backend)
    for part in (slice(0, 30), slice(61, 96)):
        for name in ("out", "gradient of q", "gradient of k", "gradient of v"):
            assert_unchanged(results[name][:, part], expected[name][:, part], backend.one_order, name)


def test_a_poisoned_value_spoils_only_who_attends_to_it(backend: Target) -> None:
    case = example(dtype=np.float32)
    expected = attend(case, backend)["out"]
    indices = calls.causal_topk(case.q, case.k, backend=backend, **case.options)
    case.v[:, :, 5] = np.nan
    out = attend(case, backend)["out"]
    attends = (indices == 5).any(axis=-1)
    assert attends.any() and not attends.all()
    assert np.isnan(out[attends]).all()
    assert_unchanged(out[~attends], expected[~attends], backend.one_order)


@ALL_OPTIONS
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_outputs_are_written_completely(backend_name: str, dtype: type, options: dict[str, Any]) -> None:
    case = example(length=70, dtype=np.float32, include_self=False, **options)
    case = replace(case, v=case.v.astype(dtype))
    expected = attend(case, backend_name, np.ones_like(case.v))
    settings = {
        "window": None, "num_curves": 1, "search": "zorder", "causal": True, "chunk_size": 1, "local_window": 0,
        "bits": None, "bounds": None, "q_offset": None,
    }  # fmt: skip
    shapes = attention_shapes(case.q, case.k, case.v, case.gamma)
    problem = search_problem(shapes, None, **{**settings, **case.options})
    module = pick_backend(backend_name, "cpu")
    residuals = tuple(poisoned(spec.shape, spec.dtype) for spec in module.residual_specs(problem))
    z = poisoned(problem.normalizer_shape, problem.sum_dtype)
    results = {name: poisoned(array.shape, array.dtype) for name, array in expected.items()}
    out, *gradients = results.values()
    arrays = case.q, case.k, case.v, case.gamma, None
    module.attention_forward(problem, *arrays, out, z, residuals)
    module.attention_backward(problem, np.ones_like(out), *arrays, z, residuals, *gradients)
    assert_all_same_bits(results, expected)
    assert np.isfinite(z).all()
    indices = poisoned((*problem.normalizer_shape, problem.options.top_k), "int32")
    module.causal_topk(problem, case.q, case.k, None, indices)
    assert_same_bits(indices, calls.causal_topk(case.q, case.k, backend=backend_name, **case.selection_options))
    expected = attend_to(case, indices, backend_name, np.ones_like(case.v))
    results = {name: poisoned(array.shape, array.dtype) for name, array in expected.items()}
    out, *gradients = results.values()
    z = poisoned(shapes.normalizer_shape, shapes.sum_dtype)
    arrays = case.q, case.k, case.v, indices, case.gamma
    module.cauchy_forward(shapes, *arrays, out, z)
    module.cauchy_backward(shapes, np.ones_like(out), *arrays, z, *gradients)
    assert_all_same_bits(results, expected)


def poisoned(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array that nobody has written yet."""
    return np.full(shape, 2**30 if np.issubdtype(dtype, np.integer) else np.nan, dtype)
