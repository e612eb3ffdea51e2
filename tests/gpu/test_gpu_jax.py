"""What JAX does to a call on a GPU, and that results are those of the CPU."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checks import assert_close, assert_same_bits
from kinds import CudaJax

import zeta_ops
from zeta_ops.registry import available_backends

OPTIONS: list[dict[str, Any]] = [
    {"top_k": 16},
    {"top_k": 16, "window": 32, "num_curves": 3},
    {"top_k": 16, "local_window": 8, "history_mean": True},
    {"top_k": 16, "search": "exact"},
    {"top_k": 16, "causal": False, "history_mean": True},
]
IDS = [", ".join(options) for options in OPTIONS]
ALL = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def gpu() -> Any:
    """JAX's first GPU."""
    missing = CudaJax().missing()
    if missing is not None:
        pytest.skip(missing)
    reason = available_backends().get("cupy", "there is no such backend")
    if reason is not None:
        pytest.skip(f"backend cupy is not available: {reason}")
    import jax

    return jax.devices("gpu")[0]


def arrays(length: int = 4000, heads: int = 4, dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, heads, length, 3)).astype(np.float32)
    k = rng.standard_normal((2, 2, length, 3)).astype(np.float32)
    v = rng.standard_normal((2, 2, length, 32)).astype(dtype)
    return [q, k, v, np.linspace(0.4, 0.7, heads, dtype=np.float32)]


def put(gpu: Any, given: list[np.ndarray]) -> list[Any]:
    import jax

    return [jax.device_put(x, gpu) for x in given]


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_jit_and_grad_are_what_the_cpu_computes(gpu: Any, options: dict[str, Any]) -> None:
    import jax

    given = arrays()
    expected, pullback = zeta_ops.zeta_attention_vjp(*given, backend="numba", **options)
    grad_out = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)

    @jax.jit
    def both(*x: Any) -> Any:
        out, pull = jax.vjp(lambda *y: zeta_ops.zeta_attention(*y, **options), *x[:4])
        return out, *pull(x[4])

    found = both(*put(gpu, [*given, grad_out]))
    assert {device.platform for x in found for device in x.devices()} == {gpu.platform}
    for mine, theirs in zip(found, (expected, *pullback(grad_out)), strict=True):
        assert_close(np.asarray(mine), theirs, 3e-5)
    searching = {name: value for name, value in options.items() if name != "history_mean"}
    selected = jax.jit(lambda q, k: zeta_ops.causal_topk(q, k, **searching))(*put(gpu, given[:2]))
    assert_same_bits(np.asarray(selected), zeta_ops.causal_topk(*given[:2], backend="numba", **searching))


@pytest.mark.parametrize("options", OPTIONS[:3], ids=IDS[:3])
def test_vmap(gpu: Any, options: dict[str, Any]) -> None:
    import jax
    import jax.numpy as jnp

    def loss(*x: Any) -> Any:
        return (zeta_ops.zeta_attention(*x, **options) ** 2).sum()

    gradient = jax.grad(loss, argnums=ALL)
    three = [jnp.stack([x, 0.5 * x, 2 * x]) for x in put(gpu, arrays(300))]
    for axes in ((0, 0, 0, 0), (0, None, 0, None), (None, 0, None, 0)):
        given = [x if axis == 0 else x[0] for x, axis in zip(three, axes, strict=True)]
        mapped = jax.jit(jax.vmap(gradient, in_axes=axes))(*given)
        for i in range(3):
            one = gradient(*(x[i] if axis == 0 else x for x, axis in zip(given, axes, strict=True)))
            for a, b in zip(mapped, one, strict=True):
                assert_close(np.asarray(a[i]), np.asarray(b), 3e-5)


def test_scan_with_checkpointing(gpu: Any) -> None:
    import jax

    q, k, v, gamma = put(gpu, arrays(1000, heads=2))

    def run(v: Any, wrap: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            return zeta_ops.zeta_attention(q, k, carry, gamma, top_k=16), None

        return (jax.lax.scan(wrap(step), v, None, length=5)[0] ** 2).sum()

    plain, saved = (jax.jit(jax.grad(lambda v, wrap=wrap: run(v, wrap)))(v) for wrap in (lambda f: f, jax.checkpoint))
    assert_close(np.asarray(saved), np.asarray(plain), 1e-5)
    on_cpu = [np.asarray(x) for x in (q, k, v, gamma)]
    carry = on_cpu[2]
    pulls = []
    for _ in range(5):
        carry, pull = zeta_ops.zeta_attention_vjp(*on_cpu[:2], carry, on_cpu[3], top_k=16, backend="numba")
        pulls.append(pull)
    gradient = 2 * carry
    for pull in reversed(pulls):
        gradient = pull(gradient)[2]
    assert_close(np.asarray(plain), gradient, 3e-5)


def test_a_program_copies_nothing_to_the_host(gpu: Any) -> None:
    import jax

    given = put(gpu, arrays(1000))
    gradient = jax.jit(jax.grad(lambda *x: zeta_ops.zeta_attention(*x, top_k=16).sum(), argnums=ALL))
    jax.block_until_ready(gradient(*given))
    text = gradient.lower(*given).compile().as_text()
    assert "callback" not in text
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(gradient(*given))


def test_sixteen_bit_values(gpu: Any) -> None:
    import jax

    given = arrays(1000, dtype=ml_dtypes.bfloat16)
    out = jax.jit(lambda *x: zeta_ops.zeta_attention(*x, top_k=16))(*put(gpu, given))
    assert out.dtype == ml_dtypes.bfloat16
    expected = zeta_ops.zeta_attention(*given[:2], given[2].astype(np.float32), given[3], top_k=16, backend="numba")
    assert_close(np.asarray(out).astype(np.float32), expected, 8e-3)


def test_memory_is_reused_and_written_completely(gpu: Any) -> None:
    """Between two equal calls another fills the memory that they get with other numbers."""
    import jax

    given = put(gpu, arrays(2000))
    options = {"top_k": 16, "history_mean": True, "deterministic": True}
    both = jax.jit(jax.value_and_grad(lambda *x: (zeta_ops.zeta_attention(*x, **options) ** 2).sum(), argnums=ALL))
    fill = jax.jit(lambda x: [jax.numpy.full((2**18 + n,), x) for n in range(32)])
    first = jax.tree.leaves(jax.block_until_ready(both(*given)))
    for value in (np.nan, 1e30):
        jax.block_until_ready(fill(np.float32(value)))
        for a, b in zip(jax.tree.leaves(both(*given)), first, strict=True):
            if a.ndim > 0:  # XLA adds up the loss
                assert_same_bits(np.asarray(a), np.asarray(b))
