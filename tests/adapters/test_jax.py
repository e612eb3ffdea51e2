"""The JAX adapter: values, gradients, and everything that JAX does to a function."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import Case, cases
from checks import assert_close, assert_same_bits
from hypothesis import given, settings

import zeta_ops

jax = pytest.importorskip("jax", reason="jax is not installed")
jnp = jax.numpy

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_curves": 3, "window": 8},
    {"history_mean": True, "include_self": False},
    {"local_window": 4, "chunk_size": 4, "history_mean": True},
    {"search": "exact"},
    {"causal": False, "bounds": (-3.0, 3.0), "bits": 12},
]
IDS = [", ".join(options) or "plain" for options in OPTIONS]
ALL = (0, 1, 2, 3)


def inputs(n: int = 24, dtype: Any = np.float32, heads: int = 4) -> list[Any]:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, heads, n, 3)).astype(np.float32)
    k = rng.standard_normal((2, 2, n, 3)).astype(np.float32)
    v = rng.standard_normal((2, 2, n, 5)).astype(dtype)
    return [jnp.asarray(x) for x in (q, k, v, np.linspace(0.4, 0.7, heads, dtype=np.float32))]


def attend(*arrays: Any, **options: Any) -> Any:
    return zeta_ops.zeta_attention(*arrays, **{"top_k": 6, **options})


def loss(*arrays: Any, **options: Any) -> Any:
    return (attend(*arrays, **options).astype(jnp.float32) ** 2).sum()


def python(code: str, **environment: str) -> str:
    """Run code in a process of its own, which sees the same zeta_ops and these tests' helpers."""
    folders = [str(Path(zeta_ops.__file__).parent.parent), str(Path(__file__).parent.parent)]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), "JAX_PLATFORMS": "cpu", **environment},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.strip()


@settings(max_examples=15)
@given(case=cases())
def test_equals_numpy(case: Case) -> None:
    arrays = case.q, case.k, case.v, case.gamma
    expected, pullback = zeta_ops.zeta_attention_vjp(*arrays, **case.options)
    options = dict(case.options)
    if "cu_seqlens" in options:
        options["cu_seqlens"] = jnp.asarray(options["cu_seqlens"])
    out, vjp = jax.vjp(lambda *x: zeta_ops.zeta_attention(*x, **options), *map(jnp.asarray, arrays))
    assert_same_bits(np.asarray(out), expected)
    grad_out = np.random.default_rng(0).standard_normal(out.shape).astype(np.float32)
    for mine, theirs in zip(vjp(jnp.asarray(grad_out)), pullback(grad_out), strict=True):
        assert_same_bits(np.asarray(mine), theirs)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_jit_grad_and_vmap(options: dict[str, Any]) -> None:
    arrays = inputs()
    eager = attend(*arrays, **options)
    assert_same_bits(np.asarray(jax.jit(lambda *x: attend(*x, **options))(*arrays)), np.asarray(eager))
    gradient = jax.grad(lambda *x: loss(*x, **options), argnums=ALL)
    expected = gradient(*arrays)
    for mine, theirs in zip(jax.jit(gradient)(*arrays), expected, strict=True):
        assert_same_bits(np.asarray(mine), np.asarray(theirs))
    three = [jnp.stack([x, 0.5 * x, 2 * x]) for x in arrays]
    for axes in ((0, 0, 0, 0), (0, None, 0, None), (None, 0, None, 0)):
        given_arrays = [x if axis == 0 else x[0] for x, axis in zip(three, axes, strict=True)]
        mapped = jax.jit(jax.vmap(gradient, in_axes=axes))(*given_arrays)
        total = jax.grad(
            lambda *x, axes=axes: jax.vmap(lambda *y: loss(*y, **options), in_axes=axes)(*x).sum(), argnums=ALL
        )(*given_arrays)
        ones = [
            gradient(*(x[i] if axis == 0 else x for x, axis in zip(given_arrays, axes, strict=True))) for i in range(3)
        ]
        for n, axis in enumerate(axes):
            each = np.stack([np.asarray(one[n]) for one in ones])
            assert_close(np.asarray(mapped[n]), each, 1e-6)
            assert_close(np.asarray(total[n]), each if axis == 0 else each.sum(0), 1e-6)


def test_scan_with_checkpointing() -> None:
    q, k, v, gamma = inputs()

    def step(carry: Any, _: Any) -> Any:
        out = attend(q[:, :2], k, carry, gamma[:2])
        return out, None

    def run(v: Any, wrap: Any) -> Any:
        return (jax.lax.scan(wrap(step), v, None, length=3)[0] ** 2).sum()

    plain, saved = (jax.jit(jax.grad(lambda v, wrap=wrap: run(v, wrap)))(v) for wrap in (lambda f: f, jax.checkpoint))
    assert_same_bits(np.asarray(saved), np.asarray(plain))


def test_given_indices() -> None:
    q, k, v, gamma = inputs()
    indices = jax.jit(lambda q, k: zeta_ops.causal_topk(q, k, top_k=6))(q, k)
    assert_same_bits(np.asarray(indices), zeta_ops.causal_topk(np.asarray(q), np.asarray(k), top_k=6))
    mine = jax.jit(jax.grad(lambda *x: (zeta_ops.cauchy_attention(*x[:3], indices, x[3]) ** 2).sum(), argnums=ALL))
    for a, b in zip(mine(q, k, v, gamma), jax.grad(loss, argnums=ALL)(q, k, v, gamma), strict=True):
        assert_close(np.asarray(a), np.asarray(b), 1e-5)


def test_subnormal_numbers_are_not_taken_for_zero() -> None:
    x = np.random.default_rng(0).permutation(np.arange(-20, 20)).astype(np.float32).reshape(1, 40, 1) * np.float32(
        1e-42
    )
    found = jax.jit(lambda x: zeta_ops.causal_topk(x, x, top_k=3))(jnp.asarray(x))
    assert_same_bits(np.asarray(found), zeta_ops.causal_topk(x, x, top_k=3))


def test_sixteen_bit_values() -> None:
    arrays = inputs(dtype=ml_dtypes.bfloat16)
    out = jax.jit(attend)(*arrays)
    assert out.dtype == jnp.bfloat16
    assert_same_bits(np.asarray(out), zeta_ops.zeta_attention(*map(np.asarray, arrays), top_k=6))
    assert jax.grad(loss, argnums=2)(*arrays).dtype == jnp.bfloat16


@pytest.mark.parametrize("n", [0, 1])
def test_short_and_empty(n: int) -> None:
    out, *gradients = jax.jit(lambda *x: (attend(*x), *jax.grad(loss, argnums=ALL)(*x)))(*inputs(n))
    assert out.shape == (2, 4, n, 5)
    assert all(np.isfinite(np.asarray(x)).all() for x in (out, *gradients))


def test_donated_arguments() -> None:
    arrays = inputs(heads=2)
    expected = np.asarray(attend(*arrays))
    donating = jax.jit(attend, donate_argnums=2)
    assert_same_bits(np.asarray(donating(*arrays[:2], jnp.array(arrays[2]), arrays[3])), expected)


def test_concurrent_threads() -> None:
    arrays = inputs(200)
    gradient = jax.jit(jax.grad(loss, argnums=ALL))
    expected = gradient(*arrays)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: jax.block_until_ready(gradient(*arrays)), range(32)):
            for a, b in zip(found, expected, strict=True):
                assert_same_bits(np.asarray(a), np.asarray(b))


def test_eager_calls_compile_once(caplog: pytest.LogCaptureFixture) -> None:
    arrays = inputs(17)
    jax.block_until_ready(attend(*arrays))
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        jax.block_until_ready(attend(*arrays))
    assert "Compiling" not in caplog.text


def test_float64_where_it_is_enabled() -> None:
    code = """
import numpy as np, jax, jax.numpy as jnp, zeta_ops
from jax.test_util import check_grads
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, 2, 12, d)) for d in (3, 3, 4))
f = lambda *x: zeta_ops.zeta_attention(*x, 0.5, top_k=5, history_mean=True)
out = jax.jit(f)(*map(jnp.asarray, (q, k, v)))
assert out.dtype == jnp.float64
assert (np.asarray(out) == f(q, k, v)).all()
check_grads(f, tuple(map(jnp.asarray, (q, k, v))), order=1, modes=["rev"])
codes = zeta_ops.morton_encode(jnp.asarray(q), bits=16)
assert (np.asarray(codes) == zeta_ops.morton_encode(q, bits=16)).all()
print("right")
"""
    assert python(code, JAX_ENABLE_X64="1") == "right"


SHARDED = """
import numpy as np, jax, jax.numpy as jnp, zeta_ops
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
rng = np.random.default_rng(0)
q, k, v = (jnp.asarray(rng.standard_normal((4, 4, 32, d)), jnp.float32) for d in (3, 3, 8))
gamma = jnp.linspace(0.4, 0.8, 4)
loss = lambda *x: (zeta_ops.zeta_attention(*x, top_k=6, history_mean=True) ** 2).sum()
gradient = jax.grad(loss, argnums=(0, 1, 2, 3))
expected = gradient(q, k, v, gamma)
"""


def test_batch_and_heads_are_split_over_devices_without_gathering() -> None:
    code = (
        SHARDED
        + """
placed = [jax.device_put(x, NamedSharding(mesh, P("x", "y"))) for x in (q, k, v)]
placed.append(jax.device_put(gamma, NamedSharding(mesh, P("y"))))
compiled = jax.jit(gradient).lower(*placed).compile()
text = compiled.as_text()
assert "all-gather" not in text, "all-gather"
assert "zeta_ops" in text
found = compiled(*placed)
for a, b in zip(found, expected):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
assert found[0].sharding.spec[:2] == P("x", "y")[:2], found[0].sharding
print("right")
"""
    )
    assert python(code, XLA_FLAGS="--xla_force_host_platform_device_count=4") == "right"


def test_shard_map() -> None:
    code = (
        SHARDED
        + """
split = jax.shard_map(
    lambda *x: zeta_ops.zeta_attention(*x, top_k=6, history_mean=True),
    mesh=mesh, in_specs=(P("x", "y"), P("x", "y"), P("x", "y"), P("y")), out_specs=P("x", "y"), check_vma=False,
)
found = jax.jit(jax.grad(lambda *x: (split(*x) ** 2).sum(), argnums=(0, 1, 2, 3)))(q, k, v, gamma)
for a, b in zip(found, expected):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
print("right")
"""
    )
    assert python(code, XLA_FLAGS="--xla_force_host_platform_device_count=4") == "right"


def test_compiled_programs_are_found_again(tmp_path: Path) -> None:
    code = """
import numpy as np, jax, jax.numpy as jnp, zeta_ops
from jax import monitoring
hits = []
monitoring.register_event_listener(lambda name, **_: hits.append(name))
x = jnp.ones((1, 2, 64, 3))
jax.block_until_ready(jax.jit(lambda x: zeta_ops.zeta_attention(x, x, x, top_k=4))(x))
print(sum("cache_hits" in name for name in hits))
"""
    settings_ = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    first, second = python(code, **settings_), python(code, **settings_)
    assert int(second) > int(first)


def test_layout_of_the_interface_is_that_of_the_installed_jaxlib() -> None:
    import jaxlib

    from zeta_ops.adapters.jax import frame

    header = (Path(jaxlib.__file__).parent / "include" / "xla" / "ffi" / "api" / "c_api.h").read_text()
    numbers = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR")]
    assert tuple(int(found.group(1)) for found in numbers if found) >= frame.API_VERSION

    def fields(struct: str) -> list[str]:
        body = re.search(rf"struct {struct} \{{(.*?)\n\}}", header, re.DOTALL)
        assert body, struct
        code = re.sub(r"//[^\n]*", "", body.group(1))
        return [re.findall(r"(\w+)\s*$", line.strip())[0] for line in code.split(";") if line.strip()]

    lists = {"args": 5, "rets": 5, "attrs": 6}  # structs within the frame, in words
    words: dict[str, int] = {}
    place = 0
    for name in fields("XLA_FFI_CallFrame"):
        words[name] = place
        place += lists.get(name, 1)
    assert fields("XLA_FFI_Args") == ["struct_size", "extension_start", "size", "types", "args"]
    assert fields("XLA_FFI_Rets") == ["struct_size", "extension_start", "size", "types", "rets"]
    assert fields("XLA_FFI_Attrs") == ["struct_size", "extension_start", "size", "types", "names", "attrs"]
    assert words["extension_start"] == frame.FRAME_EXTENSION and words["api"] == frame.FRAME_API
    assert words["args"] + 4 == frame.FRAME_ARGUMENTS and words["rets"] + 4 == frame.FRAME_RESULTS
    assert words["attrs"] + 5 == frame.FRAME_ATTRIBUTES
    buffer = fields("XLA_FFI_Buffer")
    assert [buffer.index(name) for name in ("data", "rank", "dims")] == [
        frame.BUFFER_DATA, frame.BUFFER_RANK, frame.BUFFER_DIMS
    ]  # fmt: skip
    assert words["ctx"] == frame.FRAME_CONTEXT
    assert fields("XLA_FFI_ByteSpan") == ["ptr", "len"]
    assert fields("XLA_FFI_Extension_Base") == ["struct_size", "type", "next"]
    assert fields("XLA_FFI_Metadata") == ["struct_size", "api_version", "traits", "state_type_id"]
    assert fields("XLA_FFI_Api_Version") == ["struct_size", "extension_start", "major_version", "minor_version"]
    assert fields("XLA_FFI_Error_Create_Args") == ["struct_size", "extension_start", "message", "errc"]
    assert fields("XLA_FFI_Stream_Get_Args") == ["struct_size", "extension_start", "ctx", "stream"]
    assert fields("XLA_FFI_DeviceOrdinal_Get_Args") == ["struct_size", "extension_start", "ctx", "device_ordinal"]
    api = re.search(r"struct XLA_FFI_Api \{(.*?)\n\};", header, re.DOTALL)
    assert api
    before, *functions = re.split(r"_XLA_FFI_API_STRUCT_FIELD\(XLA_FFI_(\w+)\);", api.group(1))
    first = len(re.findall(r";", before)) + 2  # the version is a struct of three words
    places = {name: first + place for place, name in enumerate(functions[::2])}
    assert places["Error_Create"] == frame.API_CREATE_ERROR
    assert places["Stream_Get"] == frame.API_GET_STREAM
    assert places["DeviceOrdinal_Get"] == frame.API_GET_DEVICE


def test_borders_are_checked_when_the_program_runs() -> None:
    q, k, v, gamma = inputs()
    one = [x[:1] for x in (q, k, v)]
    compiled = jax.jit(lambda b: attend(*one, gamma, cu_seqlens=b))
    assert compiled(jnp.array([0, 5, 24], jnp.int32)).shape == (1, 4, 24, 5)
    with pytest.raises(Exception, match="cu_seqlens must ascend from 0 to the length 24"):
        jax.block_until_ready(compiled(jnp.array([0, 30, 24], jnp.int32)))


def test_forward_mode_and_second_derivatives_are_refused() -> None:
    q, k, v, gamma = inputs()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda v: attend(q, k, v, gamma), (v,), (v,))
    with pytest.raises(TypeError, match="differentiated once"):
        jax.grad(lambda v: jax.grad(lambda v: loss(q, k, v, gamma))(v).sum())(v)


Q, K, V, GAMMA = inputs()
BAD = {
    "arrays of two kinds": (lambda: attend(np.asarray(Q), K, V), TypeError, ["one kind", "q: numpy", "k: jax"]),
    "integers": (lambda: attend(Q.astype(int), K, V), TypeError, ["q", "int32"]),
    "shapes": (lambda: attend(Q, K, V[:, :, 1:]), ValueError, ["v", "(2, 2, 23, 5)"]),
    "traced option": (lambda: jax.jit(lambda n: attend(Q, K, V, top_k=n))(4), TypeError, ["top_k", "integer"]),
    "shapes under jit": (lambda: jax.jit(attend)(Q, K, V[:, :, 1:]), ValueError, ["v", "(2, 2, 23, 5)"]),
    "gamma": (lambda: attend(Q, K, V, -GAMMA), ValueError, ["gamma", "positive"]),
    "gamma too small": (lambda: attend(Q, K, V, 1e-30 * GAMMA), ValueError, ["gamma", "2**-63"]),
    "borders": (
        lambda: attend(Q[:1], K[:1], V[:1], cu_seqlens=jnp.array([0, 9])), ValueError, ["cu_seqlens", "24"]
    ),
    "codes under jit": (lambda: jax.jit(zeta_ops.morton_encode)(Q), TypeError, ["x", "outside of jit"]),
    "64-bit codes": (lambda: zeta_ops.morton_encode(Q, bits=16), ValueError, ["jax_enable_x64"]),
    "vjp": (lambda: zeta_ops.zeta_attention_vjp(Q, K, V), TypeError, ["NumPy", "jax.vjp"]),
    "backend": (lambda: attend(Q, K, V, backend="cuda9"), ValueError, ["backend", "'cuda9'"]),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), BAD.values(), ids=BAD)
def test_bad_input(call: Any, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value)
