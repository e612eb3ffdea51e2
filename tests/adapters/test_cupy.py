"""The CuPy adapter, on a stand-in of CuPy in the CPU's memory and a backend that computes there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import cupy_in_cpu_memory as stand_in
import device_memory
import ml_dtypes
import numpy as np
import pytest
from cases import Array, Case, cases
from checks import assert_same_bits
from hypothesis import HealthCheck, given, settings

import zeta_ops
from zeta_ops import registry

DEVICE = 1  # not the current one, which is 0


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = stand_in.as_module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.delitem(sys.modules, "zeta_ops.adapters.cupy", raising=False)
    monkeypatch.setattr(registry, "BACKENDS", (device_memory.entry("cuda"), *registry.BACKENDS))
    device_memory.CALLS.clear()
    yield module
    assert stand_in.Device.entered == [0]
    sys.modules.pop("zeta_ops.adapters.cupy", None)  # it has the stand-in


def array(x: Any) -> Any:
    return stand_in.ndarray(np.array(x), DEVICE) if isinstance(x, np.ndarray) else x


def transposed(x: Array) -> Any:
    """The same values on the device, laid out `(batch, length, heads, dim)`."""
    return stand_in.ndarray(np.ascontiguousarray(np.swapaxes(x, -2, -3)).swapaxes(-2, -3), DEVICE)


def inputs(dtype: Any = np.float32) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, heads, 20, d)).astype(dtype) for heads, d in ((4, 3), (2, 3), (2, 5))]


@settings(max_examples=20, suppress_health_check=[*HealthCheck])
@given(case=cases())
def test_equals_numpy(case: Case, cupy: Any) -> None:
    arrays = case.q, case.k, case.v
    expected, pullback = zeta_ops.zeta_attention_vjp(*arrays, case.gamma, **case.options, backend="numba")
    options = {name: array(x) for name, x in case.options.items()}
    out, mine = zeta_ops.zeta_attention_vjp(*map(transposed, arrays), array(case.gamma), **options)
    assert_same_bits(out.array, expected)
    grad_out = np.random.default_rng(0).standard_normal(out.shape).astype(np.float32)
    for a, b in zip(mine(transposed(grad_out)), pullback(grad_out), strict=True):
        assert a.device.id == DEVICE
        assert_same_bits(a.array, b)
    del options["history_mean"]
    selected = zeta_ops.causal_topk(array(case.q), array(case.k), **options)
    assert_same_bits(selected.array, zeta_ops.causal_topk(case.q, case.k, **case.selection_options, backend="numba"))


def test_runs_where_the_arrays_are(cupy: Any) -> None:
    q, k, v = map(array, inputs())
    _, pullback = zeta_ops.zeta_attention_vjp(q, k, v, 0.5, top_k=4)
    pullback(array(np.ones((2, 4, 20, 5), np.float32)))
    zeta_ops.morton_decode(zeta_ops.morton_encode(q), dims=3)
    operations = ["search_forward", "search_backward", "morton_encode", "morton_decode"]
    assert [operation for operation, _ in device_memory.CALLS] == operations
    assert {(on.device, on.stream) for _, on in device_memory.CALLS} == {(DEVICE, stand_in.STREAMS[DEVICE])}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=["float16", "bfloat16", "float64"])
def test_gradients_have_the_dtypes_of_their_inputs(dtype: Any, cupy: Any) -> None:
    arrays = inputs(dtype)
    indices = zeta_ops.causal_topk(*arrays[:2], top_k=4, backend="numba")
    expected, pullback = zeta_ops.cauchy_attention_vjp(*arrays, indices, 0.5, backend="numba")
    out, mine = zeta_ops.cauchy_attention_vjp(*map(array, arrays), array(indices), 0.5)
    assert_same_bits(out.array, expected)
    grad_out = np.ones(out.shape, dtype)
    found, wanted = mine(array(grad_out)), pullback(grad_out)
    assert [x.dtype for x in found[:3]] == [np.dtype(dtype)] * 3 and found[3].shape == ()
    for a, b in zip(found, wanted, strict=True):
        assert_same_bits(a.array, b)


def test_layouts_are_copied_where_they_must_be(cupy: Any) -> None:
    q, k, v = inputs()
    backwards = [stand_in.ndarray(np.ascontiguousarray(x[..., ::-1])[..., ::-1], DEVICE) for x in (q, k, v)]
    upside_down = [stand_in.ndarray(np.ascontiguousarray(x[:, ::-1])[:, ::-1], DEVICE) for x in (q, k, v)]
    expected = zeta_ops.zeta_attention(q, k, v, 0.5, top_k=4, backend="numba")
    for arrays in (backwards, upside_down):
        assert_same_bits(zeta_ops.zeta_attention(*arrays, 0.5, top_k=4).array, expected)


def test_codes(cupy: Any) -> None:
    q, *_ = inputs()
    for x, options in ((q, {}), (q.astype(np.float64), {}), (q.astype(np.float16), {}), (q, {"bits": 16})):
        codes = zeta_ops.morton_encode(array(x), **options)
        assert_same_bits(codes.array, zeta_ops.morton_encode(x, **options, backend="numba"))
        cells = zeta_ops.morton_decode(codes, dims=3, **options)
        assert_same_bits(cells.array, zeta_ops.morton_decode(codes.array, dims=3, **options, backend="numba"))


def test_recall_is_that_of_the_device_s_selection(cupy: Any) -> None:
    q, k, _ = inputs()
    gamma = np.array([0.4, 0.5, 0.6, 0.7], np.float32)
    found = zeta_ops.selection_recall(array(q), array(k), array(gamma), top_k=4)
    for mine, theirs in zip(found, zeta_ops.selection_recall(q, k, gamma, top_k=4, backend="numba"), strict=True):
        assert mine.device.id == DEVICE
        assert_same_bits(mine.array, theirs)


def test_values_on_the_device_are_not_read(cupy: Any) -> None:
    q, k, v = map(array, inputs())
    out = zeta_ops.zeta_attention(q, k, v, array(np.full(4, -1, np.float32)), top_k=4)  # meaningless, and not refused
    assert out.shape == (2, 4, 20, 5)


def test_bad_input(cupy: Any) -> None:
    q, k, v = map(array, inputs())
    elsewhere = stand_in.ndarray(k.array, 0)
    with pytest.raises(ValueError, match="all arrays must be on one device; got q: 1, k: 0, v: 1"):
        zeta_ops.zeta_attention(q, elsewhere, v)
    with pytest.raises(TypeError, match="one kind; got q: cupy, k: numpy"):
        zeta_ops.causal_topk(q, k.array)
    with pytest.raises(ValueError, match=r"'numba' computes on numpy and torch and jax arrays only; got cupy arrays"):
        zeta_ops.causal_topk(q, k, backend="numba")
    with pytest.raises(ValueError, match="gamma must be positive"):
        zeta_ops.zeta_attention(q, k, v, -1.0)
    _, pullback = zeta_ops.zeta_attention_vjp(q, k, v, top_k=4)
    with pytest.raises(TypeError, match=r"grad_out must be a CuPy array of float32.*; got ndarray"):
        pullback(np.ones((2, 4, 20, 5), np.float32))
    with pytest.raises(ValueError, match="one device; got q: 1, grad_out: 0"):
        pullback(stand_in.ndarray(np.ones((2, 4, 20, 5), np.float32), 0))
    assert [operation for operation, _ in device_memory.CALLS] == ["search_forward"]


def test_out_of_memory_says_what_was_needed(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(shape: Any, dtype: Any) -> Any:
        if dtype == "uint8":
            raise stand_in.OutOfMemoryError("Out of memory allocating 1,000 bytes")
        return stand_in.empty(shape, dtype)

    monkeypatch.setattr(cupy, "empty", full)
    q, k, v = map(array, inputs())
    with pytest.raises(MemoryError, match=r"not enough memory on device 1: search_forward needs .* and 1,000 as"):
        zeta_ops.zeta_attention(q, k, v, top_k=4)


@pytest.mark.parametrize("n", [0, 1])
def test_short_and_empty(n: int, cupy: Any) -> None:
    x = array(np.ones((1, 2, n, 3), np.float32))
    out, pullback = zeta_ops.zeta_attention_vjp(x, x, x, top_k=2)
    assert out.shape == x.shape
    assert all(np.isfinite(gradient.array).all() for gradient in pullback(x))
