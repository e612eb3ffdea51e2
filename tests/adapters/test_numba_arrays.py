"""The adapter of Numba's device arrays, on a stand-in of them in the CPU's memory and a backend that computes there.

What it copies and converts are kernels, which need the simulator: see `tests/backends/test_numba_cuda.py`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import device_memory
import numpy as np
import pytest
from cases import Array, Case, cases
from checks import assert_same_bits
from hypothesis import HealthCheck, given, settings
from kinds import SIMULATED

import zeta_ops
from zeta_ops import registry

pytestmark = pytest.mark.skipif(not SIMULATED, reason="runs in Numba's simulator: NUMBA_ENABLE_CUDASIM=1")


class DeviceArray:
    """As much of a device array as the adapter asks for; its memory is the CPU's."""

    def __init__(self, array: Array) -> None:
        self.array, self.shape, self.ndim, self.dtype = array, array.shape, array.ndim, array.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        described = dict(self.array.__array_interface__)
        return {name: described[name] for name in ("data", "shape", "strides", "typestr")} | {"version": 3}

    def reshape(self, shape: tuple[int, ...]) -> DeviceArray:
        return DeviceArray(self.array.reshape(shape))

    def copy_to_host(self) -> Array:
        return self.array.copy()


class FullError(Exception):
    pass


@pytest.fixture
def numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from numba_cuda_sim import SimulatedRunner

    arrays = importlib.import_module("zeta_ops.adapters.numba_cuda_arrays")
    adapter = importlib.import_module("zeta_ops.adapters.numba_cuda")
    fake = SimpleNamespace(
        device_array=lambda shape, dtype: DeviceArray(np.full(shape, 77).astype(dtype)),
        as_cuda_array=lambda x: x,
        to_device=DeviceArray,
        get_current_device=lambda: SimpleNamespace(id=0),
        cudadrv=SimpleNamespace(
            devicearray=SimpleNamespace(DeviceNDArray=DeviceArray), driver=SimpleNamespace(CudaAPIError=FullError)
        ),
    )
    for module in (arrays, adapter):
        monkeypatch.setattr(module, "cuda", fake)
    monkeypatch.setattr(arrays, "runner_of", lambda on: SimulatedRunner())
    entry = replace(device_memory.entry("cuda"), kinds=("numba_cuda",))
    monkeypatch.setattr(registry, "BACKENDS", (entry, *registry.BACKENDS))
    device_memory.CALLS.clear()
    yield fake
    assert sys.modules[adapter.__name__] is adapter


def array(x: Any) -> Any:
    return DeviceArray(np.array(x)) if isinstance(x, np.ndarray) else x


def transposed(x: Array) -> Any:
    """The same values on the device, laid out `(batch, length, heads, dim)`."""
    return DeviceArray(np.ascontiguousarray(np.swapaxes(x, -2, -3)).swapaxes(-2, -3))


def inputs(dtype: Any = np.float32) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, heads, 20, d)).astype(dtype) for heads, d in ((4, 3), (2, 3), (2, 5))]


@settings(max_examples=5, suppress_health_check=[*HealthCheck])
@given(case=cases())
def test_numba_cuda_sim_equals_numpy(case: Case, numba: Any) -> None:
    arrays = case.q, case.k, case.v
    expected, pullback = zeta_ops.zeta_attention_vjp(*arrays, case.gamma, **case.options, backend="numba")
    options = {name: array(x) for name, x in case.options.items()}
    out, mine = zeta_ops.zeta_attention_vjp(*map(transposed, arrays), array(case.gamma), **options)
    assert isinstance(out, DeviceArray)
    assert_same_bits(out.array, expected)
    grad_out = np.random.default_rng(0).standard_normal(out.shape).astype(np.float32)
    for a, b in zip(mine(transposed(grad_out)), pullback(grad_out), strict=True):
        assert_same_bits(a.array, b)
    del options["history_mean"]
    selected = zeta_ops.causal_topk(array(case.q), array(case.k), **options)
    assert_same_bits(selected.array, zeta_ops.causal_topk(case.q, case.k, **case.selection_options, backend="numba"))


@pytest.mark.parametrize("dtype", [np.float16, np.float64], ids=["float16", "float64"])
def test_numba_cuda_sim_gradients_have_the_dtypes_of_their_inputs(dtype: Any, numba: Any) -> None:
    arrays = inputs(dtype)
    indices = zeta_ops.causal_topk(*arrays[:2], top_k=4, backend="numba")
    expected, pullback = zeta_ops.cauchy_attention_vjp(*arrays, indices, 0.5, backend="numba")
    out, mine = zeta_ops.cauchy_attention_vjp(*map(array, arrays), array(indices), 0.5)
    assert_same_bits(out.array, expected)
    grad_out = np.ones(out.shape, dtype)
    found, wanted = mine(array(grad_out)), pullback(grad_out)
    assert [x.dtype for x in found[:3]] == [np.dtype(dtype)] * 3 and found[3].shape == ()
    for a, b in zip(found[:3], wanted[:3], strict=True):
        assert_same_bits(a.array, b)
    np.testing.assert_allclose(found[3].array, wanted[3], rtol=1e-6)


def test_numba_cuda_sim_codes(numba: Any) -> None:
    q, *_ = inputs()
    for x, options in ((q, {}), (q.astype(np.float64), {}), (q.astype(np.float16), {}), (q, {"bits": 16})):
        codes = zeta_ops.morton_encode(array(x), **options)
        assert_same_bits(codes.array, zeta_ops.morton_encode(x, **options, backend="numba"))
        cells = zeta_ops.morton_decode(codes, dims=3, **options)
        assert_same_bits(cells.array, zeta_ops.morton_decode(codes.array, dims=3, **options, backend="numba"))


def test_numba_cuda_sim_recall(numba: Any) -> None:
    q, k, _ = inputs()
    gamma = np.array([0.4, 0.5, 0.6, 0.7], np.float32)
    found = zeta_ops.selection_recall(array(q), array(k), array(gamma), top_k=4)
    for mine, theirs in zip(found, zeta_ops.selection_recall(q, k, gamma, top_k=4, backend="numba"), strict=True):
        assert_same_bits(mine.array, np.asarray(theirs))


def test_numba_cuda_sim_bad_input(numba: Any) -> None:
    q, k, v = map(array, inputs())
    with pytest.raises(TypeError, match="one kind; got q: numba_cuda, k: numpy"):
        zeta_ops.causal_topk(q, k.array)
    _, pullback = zeta_ops.zeta_attention_vjp(q, k, v, top_k=4)
    with pytest.raises(TypeError, match=r"grad_out must be a Numba device array of float32.*; got ndarray"):
        pullback(np.ones((2, 4, 20, 5), np.float32))


def test_numba_cuda_sim_out_of_memory_says_what_was_needed(numba: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(shape: Any, dtype: Any) -> Any:
        if dtype == "uint8":
            raise FullError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")
        return DeviceArray(np.zeros(shape, dtype))

    monkeypatch.setattr(numba, "device_array", full)
    q, k, v = map(array, inputs())
    with pytest.raises(MemoryError, match=r"not enough memory on device 0: search_forward needs .* and 1,000 as"):
        zeta_ops.zeta_attention(q, k, v, top_k=4)


@pytest.mark.parametrize("n", [0, 1])
def test_numba_cuda_sim_short_and_empty(n: int, numba: Any) -> None:
    x = array(np.ones((1, 2, n, 3), np.float32))
    out, pullback = zeta_ops.zeta_attention_vjp(x, x, x, top_k=2)
    assert out.shape == x.shape
    assert all(np.isfinite(gradient.array).all() for gradient in pullback(x))
