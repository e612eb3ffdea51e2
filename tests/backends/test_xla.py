"""The xla backend through JAX arrays, because it takes no others."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import FINITE_KINDS, KINDS, Case, points
from checks import assert_all_same_bits, assert_close, assert_same_bits, assert_within_policy
from hypothesis import given, settings
from hypothesis import strategies as st

import zeta_ops
from zeta_ops import registry
from zeta_ops.arguments import attention_shapes

jax = pytest.importorskip("jax", reason="jax is not installed")
jnp = jax.numpy

from zeta_ops.adapters import jax as adapter  # noqa: E402 (they import jax)
from zeta_ops.backends.xla import layout  # noqa: E402

SEEDS = st.integers(0, 2**32 - 1)
ALL = (0, 1, 2, 3)

# Every option, alone and with those that it could get in the way of; compiled once each.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks": {"num_curves": 2, "window": 3, "bits": 21, "chunk_size": 7, "include_self": False},
    "three curves": {"num_curves": 3, "window": 9, "history_mean": True, "local_window": 3},
    "exact": {"search": "exact", "q_offset": -4, "local_window": 2, "history_mean": True},
    "encoder": {"causal": False, "bounds": (-2.0, 2.0), "history_mean": True, "window": 99},
    "packed": {"cu_seqlens": (0, 0, 9, 10, 31, 31, 50), "num_curves": 2, "history_mean": True, "local_window": 3},
    "packed, exact": {"cu_seqlens": (0, 20, 50), "search": "exact", "chunk_size": 3},
}
LENGTH = 50


def problem(name: str, kind: str, seed: int, dtype: Any = np.float32) -> Case:
    """Arrays of one shape for each set of options: four heads on two, lengths that differ where they may."""
    rng = np.random.default_rng(seed)
    options = {"top_k": 6, **OPTIONS[name]}
    packed = "cu_seqlens" in options
    if packed:
        options["cu_seqlens"] = np.array(options["cu_seqlens"], np.int32)
    q_len = LENGTH if packed or name == "plain" else LENGTH - 9
    q, k = points(kind, (1, 4, q_len, 3), rng), points(kind, (1, 2, LENGTH, 3), rng)
    v = rng.standard_normal((1, 2, LENGTH, 5)).astype(dtype)
    return Case(q, k, v, np.linspace(0.3, 0.9, 4, dtype=np.float32), options)


def grad_out_of(case: Case) -> Any:
    shape = (*case.q.shape[:-1], case.v.shape[-1])
    return np.random.default_rng(0).standard_normal(shape).astype(case.v.dtype)


@cache
def compiled(options: tuple[tuple[str, Any], ...]) -> Any:
    """Output, normalizer, selection and gradients, in one program for each set of options."""
    static = {name: value for name, value in options if name != "cu_seqlens"}
    selecting = {name: value for name, value in static.items() if name != "history_mean"}

    @jax.jit
    def everything(q: Any, k: Any, v: Any, gamma: Any, cu_seqlens: Any, grad_out: Any) -> Any:
        def attend(*arrays: Any) -> Any:
            return zeta_ops.zeta_attention(
                *arrays, cu_seqlens=cu_seqlens, return_normalizer=True, backend="xla", **static
            )

        out, pullback, normalizer = jax.vjp(attend, q, k, v, gamma, has_aux=True)
        names = (f"gradient of {name}" for name in ("q", "k", "v", "gamma"))
        indices = zeta_ops.causal_topk(q, k, cu_seqlens=cu_seqlens, backend="xla", **selecting)
        gradients = dict(zip(names, pullback(grad_out), strict=True))
        return {"out": out, "normalizer": normalizer, "selection": indices, **gradients}

    return everything


def attend(case: Case) -> dict[str, Any]:
    """Everything that the backend computes of a case, as NumPy arrays."""
    options = dict(case.options)
    borders = options.pop("cu_seqlens", None)
    borders = None if borders is None else jnp.asarray(borders)
    run = compiled(tuple(sorted(options.items())))
    arrays = map(jnp.asarray, (case.q, case.k, case.v, case.gamma))
    return {name: np.asarray(x) for name, x in run(*arrays, borders, jnp.asarray(grad_out_of(case))).items()}


def defined(case: Case, backend: str = "numpy") -> dict[str, Any]:
    """The same of a backend for NumPy arrays."""
    arrays = case.q, case.k, case.v, case.gamma
    out, pullback = zeta_ops.zeta_attention_vjp(*arrays, backend=backend, **case.options)
    names = (f"gradient of {name}" for name in ("q", "k", "v", "gamma"))
    return {"out": out, **dict(zip(names, pullback(grad_out_of(case)), strict=True))}


@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_are_within_the_policy(name: str) -> None:
    for kind in ("random", "duplicates"):
        case = problem(name, kind, 1)
        mine, plain, exact = attend(case), defined(case), defined(case.wide)
        epsilon = float(np.finfo(np.float32).eps)
        for what, expected in exact.items():
            # Gradients through the weights are differences of products, divided by gamma.
            scale = max(1.0, float(np.abs(expected).max())) * (1 if what in ("out", "gradient of v") else 30)
            assert_within_policy(mine[what], plain[what], expected, 8 * epsilon * scale, what)


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=12)
@given(seed=SEEDS, kind=st.sampled_from(KINDS))
def test_selection_is_the_definition(name: str, seed: int, kind: str) -> None:
    case = problem(name, "random" if kind == "wild" and "bounds" in OPTIONS[name] else kind, seed)
    expected = zeta_ops.causal_topk(case.q, case.k, backend="numpy", **case.selection_options)
    assert_same_bits(attend(case)["selection"], expected)


@pytest.mark.parametrize("name", ["three curves", "exact"])
@settings(max_examples=40)
@given(seed=SEEDS, scale=st.sampled_from([1.0, 2.0**-64, 2.0**-74, 2.0**62]))
def test_near_ties_are_decided_as_defined(name: str, seed: int, scale: float) -> None:
    # Keys on a sphere about the one query point, a few roundings from it: a fused operation reorders them.
    case = problem(name, "random", seed)
    rng = np.random.default_rng(seed)
    center = rng.standard_normal(3)
    direction = rng.standard_normal(case.k.shape)
    keys = center + direction / np.linalg.norm(direction, axis=-1, keepdims=True) * (1 + 1e-7 * rng.integers(-1, 2))
    case = replace(
        case,
        q=np.broadcast_to(center * scale, case.q.shape).astype(np.float32),
        k=(keys * scale).astype(np.float32),
    )
    expected = zeta_ops.causal_topk(case.q, case.k, backend="numpy", **case.selection_options)
    assert_same_bits(attend(case)["selection"], expected)


def test_long_rows_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    case = problem("plain", "random", 2)
    case.options |= {"top_k": 5, "history_mean": True}  # not compiled before
    monkeypatch.setattr(layout, "BLOCK_ELEMENTS", 700)
    assert layout.block_length(attention_shapes(case.q, case.k, case.v, 1.0), 12) == 14  # not a divisor of the length
    found = attend(case)
    assert_same_bits(found["selection"], zeta_ops.causal_topk(case.q, case.k, **case.selection_options))
    for name, expected in defined(case).items():
        assert_close(found[name], expected, 2e-5, name)


@pytest.mark.parametrize("name", ["three curves", "exact", "packed"])
@settings(max_examples=12)
@given(seed=SEEDS, kind=st.sampled_from(FINITE_KINDS), p=st.integers(0, LENGTH))
def test_the_future_changes_nothing(name: str, seed: int, kind: str, p: int) -> None:
    case = problem(name, kind, seed)
    shift = case.k.shape[-2] - case.q.shape[-2]
    before = max(p - shift, 0)
    rng = np.random.default_rng(seed + 1)
    q, k, v = case.q.copy(), case.k.copy(), case.v.copy()
    q[..., before:, :], k[..., p:, :], v[..., p:, :] = rng.standard_normal(), rng.standard_normal(), math.pi
    if name != "packed":
        k[..., p:, :] = rng.choice([np.nan, np.inf, 1.0])
    mine, theirs = (past(attend(x), before) for x in (case, replace(case, q=q, k=k, v=v)))
    assert_all_same_bits(theirs, mine)


def past(results: dict[str, Any], before: int) -> dict[str, Any]:
    return {
        "out": results["out"][..., :before, :],
        "normalizer": results["normalizer"][..., :before],
        "selection": results["selection"][..., :before, :],
        "gradient of q": results["gradient of q"][..., :before, :],
    }


def inputs(dtype: Any = np.float32, n: int = 12) -> list[Any]:
    rng = np.random.default_rng(3)
    shapes = (2, 4, n, 2), (2, 2, n, 2), (2, 2, n, 3)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return [jnp.asarray(x) for x in (q, k, v.astype(dtype), np.linspace(0.4, 0.7, 4, dtype=np.float32))]


def loss(*arrays: Any, backend: str = "xla") -> Any:
    out = zeta_ops.zeta_attention(*arrays, top_k=4, history_mean=True, backend=backend)
    return (out.astype(jnp.float32) ** 2).sum()


gradient = jax.jit(jax.grad(loss, argnums=ALL))
gradient_on_numba = jax.jit(jax.grad(partial(loss, backend="numba"), argnums=ALL))


def test_mapped_gradients_and_gradients_of_maps() -> None:
    arrays = inputs()
    three = [jnp.stack([x, 0.5 * x, 2 * x]) for x in arrays]
    each = [gradient_on_numba(*(x[i] for x in three)) for i in range(3)]
    mapped = jax.jit(jax.vmap(gradient))(*three)
    total = jax.jit(jax.grad(lambda *x: jax.vmap(loss, in_axes=(0, None, 0, None))(*x).sum(), argnums=ALL))(
        three[0], arrays[1], three[2], arrays[3]
    )
    shared = [gradient_on_numba(three[0][i], arrays[1], three[2][i], arrays[3]) for i in range(3)]
    for n in ALL:
        assert_close(np.asarray(mapped[n]), np.stack([x[n] for x in each]), 1e-5)
        expected = np.stack([x[n] for x in shared])
        assert_close(np.asarray(total[n]), expected if n in (0, 2) else expected.sum(0), 1e-5)


def test_scan_with_checkpointing() -> None:
    q, k, v, gamma = inputs()

    def run(v: Any, backend: str) -> Any:
        def step(carry: Any, _: Any) -> Any:
            return zeta_ops.zeta_attention(q[:, :2], k, carry, gamma[:2], top_k=4, backend=backend), None

        return (jax.lax.scan(jax.checkpoint(step), v, None, length=3)[0] ** 2).sum()

    mine, expected = (jax.jit(jax.grad(partial(run, backend=name)))(v) for name in ("xla", "numba"))
    assert_close(np.asarray(mine), np.asarray(expected), 1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_sixteen_bit_values(dtype: Any) -> None:
    arrays = inputs(dtype)
    wide = [x.astype(jnp.float32) for x in arrays]
    for mine, expected, x in zip(gradient(*arrays), gradient_on_numba(*wide), arrays, strict=True):
        assert mine.dtype == x.dtype
        epsilon = float(ml_dtypes.finfo(dtype).eps)  # of the output, which the loss squares
        assert_close(np.asarray(mine, np.float32), np.asarray(expected), 4 * epsilon)


@pytest.mark.parametrize(("q_len", "k_len"), [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_short_and_empty(q_len: int, k_len: int) -> None:
    q, k, v, gamma = inputs()
    arrays = q[:, :, :q_len], k[:, :, :k_len], v[:, :, :k_len], gamma
    for x, of_x in zip(arrays, gradient(*arrays), strict=True):
        assert of_x.shape == x.shape and np.isfinite(np.asarray(of_x)).all()
    indices = zeta_ops.causal_topk(q[:, :, :q_len], k[:, :, :k_len], backend="xla")
    assert_same_bits(np.asarray(indices), zeta_ops.causal_topk(*map(np.asarray, arrays[:2])))


def test_given_indices() -> None:
    q, k, v, gamma = inputs()
    indices = np.random.default_rng(6).integers(-1, 12, (2, 4, 12, 5), dtype=np.int32)  # with repetitions and gaps
    indices[..., 3, :] = -1
    out, pullback = zeta_ops.cauchy_attention_vjp(*map(np.asarray, (q, k, v)), indices, np.asarray(gamma))

    def run(indices: Any) -> Any:
        def attend(*x: Any) -> Any:
            return zeta_ops.cauchy_attention(*x[:3], indices, x[3], backend="xla")

        value, pull = jax.vjp(attend, q, k, v, gamma)
        return value, *pull(value)

    for mine, expected in zip(jax.jit(run)(indices), (out, *pullback(out)), strict=True):
        assert_close(np.asarray(mine), expected, 1e-5)
    beyond = jnp.where(indices < 0, 99, indices)  # traced, so that nobody can refuse it
    assert_same_bits(np.asarray(jax.jit(run)(beyond)[0]), np.asarray(jax.jit(run)(indices)[0]))


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0), (0.0, 1.1e-30)], ids=str)
def test_codes(bounds: Any) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([points("wild", (4000, 3), rng), points("random", (8000, 3), rng)])
    x[8000:] *= np.float32(1e-38)  # half of them are less than what a device takes for zero
    for curve in range(2):
        options = {"bounds": bounds, "num_curves": 2, "curve": curve}
        codes = jax.jit(lambda x, o=options: zeta_ops.morton_encode(x, backend="xla", **o))(x)
        expected = zeta_ops.morton_encode(x, backend="numpy", **options)
        assert_same_bits(np.asarray(codes), expected)
    cells = zeta_ops.morton_decode(codes, dims=3, backend="xla")
    assert_same_bits(np.asarray(cells), zeta_ops.morton_decode(expected, dims=3, backend="numpy"))


def test_codes_that_need_64_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="jax_enable_x64"):
        zeta_ops.morton_encode(inputs()[0], bits=17, backend="xla")


def test_recall() -> None:
    q, k, _, gamma = inputs(n=40)
    mine = zeta_ops.selection_recall(q, k, gamma, top_k=4, backend="xla")
    expected = zeta_ops.selection_recall(*map(np.asarray, (q, k, gamma)), top_k=4)
    for a, b in zip(mine, expected, strict=True):
        assert_close(np.asarray(a), b, 1e-6)


def test_other_derivatives_are_refused() -> None:
    arrays = inputs()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda v: loss(*arrays[:2], v, arrays[3]), (arrays[2],), (arrays[2],))
    with pytest.raises(TypeError, match="differentiated once"):
        jax.grad(lambda v: jax.grad(loss, argnums=2)(*arrays[:2], v, arrays[3]).sum())(arrays[2])


def test_eager_calls_compile_once(caplog: pytest.LogCaptureFixture) -> None:
    arrays = inputs()
    jax.block_until_ready(jax.grad(loss)(*arrays))
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        jax.block_until_ready(jax.grad(loss)(*arrays))
    assert "Compiling" not in caplog.text


def test_taken_where_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(adapter, "_platform_of", lambda *arrays: "metal")
    registry._log_general_backend.cache_clear()
    arrays = inputs()
    chosen = [zeta_ops.zeta_attention(*arrays, top_k=4, history_mean=True) for _ in range(2)]
    named = zeta_ops.zeta_attention(*arrays, top_k=4, history_mean=True, backend="xla")
    assert_same_bits(np.asarray(chosen[1]), np.asarray(named))
    assert caplog.text.count("no backend has kernels for arrays on 'metal'") == 1  # once, not for every call
    with pytest.raises(ValueError, match="'numba' computes on cpu; got arrays on 'metal'"):
        zeta_ops.zeta_attention(*arrays, backend="numba")


def test_missing_jax_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from zeta_ops.backends import xla

    assert xla.unavailable_reason() is None
    monkeypatch.setattr(xla, "find_spec", lambda _: None)
    assert "pip install 'zeta-ops[jax]'" in str(xla.unavailable_reason())


FLOAT64 = """
import numpy as np, jax, zeta_ops
from checks import assert_close, assert_same_bits
from zeta_ops.backends.xla.distances import squared_distances
from zeta_ops.reference.selection import squared_distances as reference
from test_xla_parts import float_pairs

a, b = float_pairs(0, np.float64)
with np.errstate(all="ignore"):
    expected = np.array([reference(x, y[None])[0] for x, y in zip(a.T, b.T)])
expected = np.where(np.isnan(expected), np.inf, expected)
assert ((expected > 0) & (expected < np.finfo(float).tiny)).any()
assert_same_bits(np.asarray(jax.jit(squared_distances)(a, b)), expected.view(np.uint64))

rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, 2, 40, d)) for d in (3, 3, 4))
codes = zeta_ops.morton_encode(jax.numpy.asarray(q), bits=21, backend="xla")
assert_same_bits(np.asarray(codes), zeta_ops.morton_encode(q, bits=21))
assert_same_bits(np.asarray(zeta_ops.morton_decode(codes, dims=3, bits=21, backend="xla")),
                 zeta_ops.morton_decode(np.asarray(codes), dims=3, bits=21))
options = {"top_k": 5, "window": 8, "num_curves": 2, "history_mean": True}
expected, pull = zeta_ops.zeta_attention_vjp(q, k, v, 0.5, **options)
found, vjp = jax.vjp(lambda *x: zeta_ops.zeta_attention(*x, 0.5, backend="xla", **options), q, k, v)
assert_close(np.asarray(found), expected, 1e-12)
for mine, theirs in zip(vjp(found), pull(expected)):
    assert_close(np.asarray(mine), theirs, 1e-12)
print("right")
"""

SHARDED = """
import numpy as np, jax, jax.numpy as jnp, zeta_ops
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
rng = np.random.default_rng(0)
q, k, v = (jnp.asarray(rng.standard_normal((4, h, 32, d)), jnp.float32) for h, d in ((4, 3), (2, 3), (2, 8)))
gamma = jnp.linspace(0.4, 0.8, 4)
def gradient_on(backend):
    loss = lambda *x: (zeta_ops.zeta_attention(*x, top_k=6, history_mean=True, backend=backend) ** 2).sum()
    return jax.grad(loss, argnums=(0, 1, 2, 3))
placed = [jax.device_put(x, NamedSharding(mesh, P("x", "y"))) for x in (q, k, v)]
placed.append(jax.device_put(gamma, NamedSharding(mesh, P("y"))))
compiled = jax.jit(gradient_on("xla")).lower(*placed).compile()
text = compiled.as_text()
for operation in ("all-gather", "all-to-all", "collective-permute"):
    assert operation not in text, operation
found = compiled(*placed)
for a, b in zip(found, gradient_on("numba")(q, k, v, gamma)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
assert found[0].sharding.spec[:2] == P("x", "y")[:2], found[0].sharding
print("right")
"""


@pytest.mark.parametrize(
    ("code", "environment"),
    [
        (FLOAT64, {"JAX_ENABLE_X64": "1"}),
        (SHARDED, {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}),
    ],
    ids=["float64 where it is enabled", "batch and heads split over devices without gathering"],
)
def test_in_a_process_of_its_own(code: str, environment: dict[str, str]) -> None:
    here = Path(__file__).parent
    folders = [Path(zeta_ops.__file__).parent.parent, here, here.parent]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "JAX_PLATFORMS": "cpu", **environment},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == "right"
