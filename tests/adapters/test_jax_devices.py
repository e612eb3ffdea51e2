"""The JAX adapter's handler for devices with kernels, called by XLA on the CPU, whose memory is the device's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import device_memory
import numpy as np
import pytest
from cases import Case, cases
from checks import assert_close, assert_same_bits
from hypothesis import HealthCheck, given, settings

import zeta_ops
from zeta_ops import registry

jax = pytest.importorskip("jax", reason="jax is not installed")
jnp = jax.numpy

TARGET = "zeta_ops_device_memory"
STREAM = 7
ALL = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def target() -> str:
    """Name under which XLA's CPU platform finds the handler for devices."""
    from zeta_ops.adapters.jax import ffi

    ffi.register(TARGET, "cuda", "cpu")
    return TARGET


@pytest.fixture
def without_stream(target: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the adapter take the CPU for a device with kernels; XLA has no stream there."""
    from zeta_ops.adapters import jax as adapter
    from zeta_ops.adapters.jax import ops

    monkeypatch.setattr(ops, "TARGET", target)
    monkeypatch.setattr(adapter, "_platform_of", lambda *_: "cuda")
    monkeypatch.setattr(registry, "BACKENDS", (device_memory.entry("cuda"), *registry.BACKENDS))
    device_memory.CALLS.clear()
    yield
    jax.clear_caches()  # of programs that were traced for this device


@pytest.fixture
def device(without_stream: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with a stream."""
    from zeta_ops.adapters.jax import frame

    monkeypatch.setattr(frame.Frame, "stream", lambda _: STREAM)


def inputs(n: int = 24, dtype: Any = np.float32) -> list[Any]:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, heads, n, d)).astype(np.float32) for heads, d in ((4, 3), (2, 3), (2, 5)))
    return [jnp.asarray(x) for x in (q, k, v.astype(dtype), np.linspace(0.4, 0.7, 4, dtype=np.float32))]


def loss(*arrays: Any) -> Any:
    return (zeta_ops.zeta_attention(*arrays, top_k=6) ** 2).sum()


@settings(max_examples=6, suppress_health_check=[*HealthCheck])
@given(case=cases())
def test_equals_numpy(case: Case, device: None) -> None:
    arrays = case.q, case.k, case.v, case.gamma
    expected, pullback = zeta_ops.zeta_attention_vjp(*arrays, **case.options, backend="numba")
    options = {name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in case.options.items()}
    out, vjp = jax.vjp(lambda *x: zeta_ops.zeta_attention(*x, **options), *map(jnp.asarray, arrays))
    assert_same_bits(np.asarray(out), expected)
    grad_out = np.random.default_rng(0).standard_normal(out.shape).astype(np.float32)
    for mine, theirs in zip(vjp(jnp.asarray(grad_out)), pullback(grad_out), strict=True):
        assert_same_bits(np.asarray(mine), theirs)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_runs_on_the_stream_of_xla_with_a_workspace(dtype: Any, device: None) -> None:
    q, k, v, gamma = inputs(dtype=dtype)
    jax.block_until_ready(jax.jit(jax.grad(loss, argnums=ALL))(q, k, v, gamma))
    indices = jax.jit(lambda q, k: zeta_ops.causal_topk(q, k, top_k=6))(q, k)
    expected = zeta_ops.causal_topk(np.asarray(q), np.asarray(k), top_k=6, backend="numba")
    assert_same_bits(np.asarray(indices), expected)
    given_loss = jax.jit(jax.grad(lambda v: zeta_ops.cauchy_attention(q, k, v, indices, gamma).sum().astype("float32")))
    assert given_loss(v).dtype == v.dtype
    operations = ["search_forward", "search_backward", "select", "given_forward", "given_backward"]
    assert [operation for operation, _ in device_memory.CALLS] == operations
    for operation, on in device_memory.CALLS:
        assert (on.device, on.stream) == (0, STREAM)
        assert on.workspace % 256 == 0 and (on.workspace > 0) == (operation != "given_forward")


def test_mapped_and_scanned(device: None) -> None:
    q, k, v, gamma = inputs()
    gradient = jax.grad(loss, argnums=ALL)
    three = [jnp.stack([x, 0.5 * x, 2 * x]) for x in (q, k, v)]
    mapped = jax.jit(jax.vmap(gradient, in_axes=(0, 0, 0, None)))(*three, gamma)
    for n in range(3):
        for mine, one in zip(mapped, gradient(*(x[n] for x in three), gamma), strict=True):
            assert_close(np.asarray(mine[n]), np.asarray(one), 1e-6)
    two_heads = q[:, :2]

    def step(carry: Any, _: Any) -> Any:
        return zeta_ops.zeta_attention(two_heads, k, carry, gamma[:2], top_k=6), None

    scanned = jax.jit(lambda v: jax.lax.scan(jax.checkpoint(step), v, None, length=3)[0])(v)
    expected = v
    for _ in range(3):
        expected, _ = step(expected, None)
    assert_same_bits(np.asarray(scanned), np.asarray(expected))


def test_concurrent_threads(device: None) -> None:
    arrays = inputs(200)
    gradient = jax.jit(jax.grad(loss, argnums=ALL))
    expected = gradient(*arrays)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: jax.block_until_ready(gradient(*arrays)), range(12)):
            for a, b in zip(found, expected, strict=True):
                assert_same_bits(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("n", [0, 1])
def test_short_and_empty(n: int, device: None) -> None:
    out, *gradients = jax.jit(lambda *x: (zeta_ops.zeta_attention(*x), *jax.grad(loss, argnums=ALL)(*x)))(*inputs(n))
    assert out.shape == (2, 4, n, 5)
    assert all(np.isfinite(np.asarray(x)).all() for x in (out, *gradients))


def test_values_on_a_device_are_not_read(device: None) -> None:
    q, k, v, gamma = inputs()
    jax.block_until_ready(zeta_ops.zeta_attention(q, k, v, -gamma, top_k=6))  # meaningless, and not refused
    assert len(device_memory.CALLS) == 1


def test_codes_and_recall(device: None) -> None:
    q, k, *_ = inputs()
    codes = jax.jit(zeta_ops.morton_encode)(q)
    assert_same_bits(np.asarray(codes), zeta_ops.morton_encode(np.asarray(q), backend="numba"))
    cells = zeta_ops.morton_decode(codes, dims=3)
    assert_same_bits(np.asarray(cells), zeta_ops.morton_decode(np.asarray(codes), dims=3, backend="numba"))
    expected = zeta_ops.selection_recall(np.asarray(q), np.asarray(k), top_k=4, backend="numba")
    for mine, theirs in zip(zeta_ops.selection_recall(q, k, top_k=4), expected, strict=True):
        assert_close(np.asarray(mine), theirs, 1e-6)
    assert [operation for operation, _ in device_memory.CALLS] == ["select"] * 2


@pytest.mark.usefixtures("without_stream")
def test_an_error_of_xla_is_handed_on() -> None:
    with pytest.raises(Exception, match="GPU context is not available") as raised:
        jax.block_until_ready(loss(*inputs()))
    assert type(raised.value).__name__ == "JaxRuntimeError"
    assert device_memory.CALLS == []


def test_program_for_another_platform_is_refused(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from zeta_ops.adapters.jax import ffi, ops

    monkeypatch.setattr(ops, "TARGET", ffi.TARGET)  # the CPU's handler
    with pytest.raises(Exception, match=r"traced for 'cuda' and runs on 'cpu'; trace it under jax.default_device"):
        jax.block_until_ready(loss(*inputs()))


def test_platform_is_that_of_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    from zeta_ops.adapters import jax as adapter

    traced = []

    @jax.jit
    def trace(x: Any) -> Any:
        traced.append(adapter._platform_of(None, x))
        return x

    x = jnp.ones(3)
    trace(x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert adapter._platform_of(x, None) == "cpu"
    jax.clear_caches()
    trace(x)
    with jax.default_device(jax.devices("cpu")[0]):
        trace(x)
    with jax.default_device("cpu"):
        trace(x)
    assert traced[0] == "cpu" and traced[1] == "cuda" and set(traced[2:]) == {"cpu"}
