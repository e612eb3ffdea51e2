"""The CUDA kernels where they are special: on tensor cores, in memory, and as a compiler for GPUs sees them.

What they compute is tested by the shared tests, on the target `cuda_host`.
"""

from __future__ import annotations

import ctypes
import re
from typing import Any

import calls
import cuda_host
import ml_dtypes
import numpy as np
import pytest
from cases import Array, Case, example
from checks import assert_all_close, assert_close, assert_same_bits
from nvrtc import compile_for, nvrtc_or_reason

import zeta_ops
from zeta_ops.arguments import attention_shapes, search_problem
from zeta_ops.backends.cupy import calls as device_calls
from zeta_ops.backends.cupy import given
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.attention import EXTENT_BYTES, FEW_REGIONS, SLOT_REGION, TAIL_BYTES
from zeta_ops.backends.cupy.selection import SEQUENCE_BYTES, SORT_TILE, point_bytes, slot_bytes
from zeta_ops.backends.cupy.sources import Configuration, kernel_names, source_of
from zeta_ops.options import Problem

ON_HOST = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no C++ compiler (g++ or clang++) is installed")

PLAIN = Configuration("float32", "bfloat16", 3, 2, 64)
HALF = Configuration("float32", "float16", 2, 2, 128)
WIDE = Configuration("float64", "float64", 8, 8, 0)
FLOAT = Configuration("float32", "float32", 1, 8, 0)

# Bytes of registers that kernels may save to memory: a few around a division of 64 bits, which is a call, more where
# a kernel is held to 64 or 128 registers a thread, which is faster.
A_FEW = 64
SPILLS = {
    PLAIN: {
        "list_kernel": 96,
        "tile_bwd_keys_kernel": 136,
        "tile_given_fwd_kernel": 192,
        "tile_given_bwd_queries_kernel": 96,
        "tile_given_bwd_keys_kernel": 128,
    },
    HALF: {"list_kernel": 80, "ranges_kernel": 80},
    WIDE: dict.fromkeys(kernel_names(), 128),
    FLOAT: {},
}


def tiled_case(dtype: Any, length: int, dim: int, drift: float = 0, **options: Any) -> Case:
    """A case with values of 16 bits; with `drift` ranges are long and full of keys that a query does not see."""
    rng = np.random.default_rng(3)
    moving = np.linspace(-drift, drift, length, dtype=np.float32)[:, None]
    q, k = ((rng.standard_normal((2, length, 3)) * 2 + moving).astype(np.float32) for _ in range(2))
    q[:, ::7] += np.float32(drift)
    v = rng.standard_normal((2, length, dim)).astype(dtype)
    return Case(q, k, v, np.array([0.4, 0.6], np.float32), {"top_k": 7, **options})


@ON_HOST
@pytest.mark.parametrize(
    ("dtype", "length", "dim", "options"),
    [
        (ml_dtypes.bfloat16, 300, 64, {}),
        (np.float16, 300, 48, {"num_curves": 3, "window": 9}),
        (ml_dtypes.bfloat16, 200, 128, {"history_mean": True, "local_window": 5}),
        (ml_dtypes.bfloat16, 200, 16, {"cu_seqlens": np.array([0, 70, 70, 71, 200], np.int32)}),
        (ml_dtypes.bfloat16, 5000, 16, {"drift": 20.0}),
        (ml_dtypes.bfloat16, 300, 64, {"local_window": 32}),
        (np.float16, 150, 48, {"local_window": 200, "history_mean": True}),
        (ml_dtypes.bfloat16, 150, 144, {"local_window": 90}),
        (np.float16, 100, 32, {"local_window": 9, "search": "exact"}),
        (np.float16, 90, 16, {"local_window": 9, "q_offset": -30, "history_mean": True}),
        (ml_dtypes.bfloat16, 90, 16, {"local_window": 40, "q_offset": 30, "history_mean": True}),
        (
            ml_dtypes.bfloat16,
            300,
            16,
            {"local_window": 20, "history_mean": True, "cu_seqlens": np.array([0, 70, 70, 71, 300], np.int32)},
        ),
        (ml_dtypes.bfloat16, 1500, 64, {"drift": 20.0, "top_k": 60}),  # several batches of what is selected
        (ml_dtypes.bfloat16, 300, 256, {"top_k": 40}),  # and of a slice
    ],
)
def test_tiles_are_as_exact_as_their_values(dtype: Any, length: int, dim: int, options: dict[str, Any]) -> None:
    case = tiled_case(dtype, length, dim, **options)
    grad_out = np.random.default_rng(4).standard_normal(case.v.shape).astype(dtype)
    mine = calls.attend(case, "cuda_host", grad_out)
    exact = calls.attend(case.wide, "numba", grad_out.astype(np.float64))
    rounding = float(ml_dtypes.finfo(dtype).eps)
    for name, array in exact.items():
        direct = name in ("out", "gradient of v")
        assert_close(mine[name].astype(np.float64), array, 2 * rounding if direct else 1e-5, name)


@ON_HOST
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_value_that_is_not_finite_spoils_no_other_query_of_its_tile(poison: float) -> None:
    case = tiled_case(ml_dtypes.bfloat16, 400, 16)
    before = calls.zeta_attention(case.q, case.k, case.v, case.gamma, backend="cuda_host", **case.options)
    case.v[:, 200:] = poison
    after = calls.zeta_attention(case.q, case.k, case.v, case.gamma, backend="cuda_host", **case.options)
    assert not np.isfinite(after[:, 200:].astype(np.float32)).all()
    assert_close(after[:, :200].astype(np.float64), before[:, :200].astype(np.float64), 0.01)


@ON_HOST
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32], ids=str)
def test_parts_of_grouped_heads_and_unequal_lengths(dtype: Any) -> None:
    """On tiles and without; rows lie further apart than they are wide."""
    case = tiled_case(dtype, 290, 32, history_mean=True, local_window=21)
    rng = np.random.default_rng(5)
    case.q = rng.standard_normal((6, 170, 3)).astype(np.float32)
    case.gamma = np.linspace(0.3, 0.8, 6, dtype=np.float32)
    case.v = np.ascontiguousarray(case.v.transpose(1, 0, 2)).transpose(1, 0, 2)
    grad_out = rng.standard_normal((6, 170, 32)).astype(dtype)
    mine = calls.attend(case, "cuda_host", grad_out)
    exact = calls.attend(case.wide, "numba", grad_out.astype(np.float64))
    rounding = max(float(ml_dtypes.finfo(dtype).eps), 1e-5)
    for name, array in exact.items():
        direct = name in ("out", "gradient of v")
        assert_close(mine[name].astype(np.float64), array, 2 * rounding if direct else 1e-5, name)


@ON_HOST
@pytest.mark.parametrize("bits", [2, 7, 21])
@pytest.mark.parametrize("kind", ["random", "equal"])
def test_sorts_several_tiles_of_more_searches_than_the_cache_holds(bits: int, kind: str) -> None:
    """In one pass and in several, whose results lie in either of two arrays."""
    rng = np.random.default_rng(9)
    q, k = (rng.standard_normal((6, 1500, 2)).astype(np.float32) * (kind == "random") for _ in range(2))
    options = {"top_k": 6, "num_curves": 3, "bits": bits}
    assert 2 * q.shape[1] > SORT_TILE
    found = (zeta_ops.causal_topk(q, k, backend=backend, **options) for backend in ("cuda_host", "numba"))
    assert_same_bits(*found)


@ON_HOST
@pytest.mark.parametrize("borders", [None, [0, 250, 33000]], ids=["one sequence", "two"])
def test_rows_so_long_that_their_slots_have_wide_extents(borders: list[int] | None) -> None:
    rng = np.random.default_rng(8)
    q, k = (rng.standard_normal((heads, 33000, 1)).astype(np.float32) for heads in (2, 1))
    v = rng.standard_normal((1, 33000, 16)).astype(ml_dtypes.bfloat16)
    packed = {} if borders is None else {"cu_seqlens": np.array(borders, np.int32)}
    case = Case(q, k, v, np.array([0.4, 0.6], np.float32), {"top_k": 2, **packed})
    assert len(q) * q.shape[1] > FEW_REGIONS * SLOT_REGION
    grad_out = rng.standard_normal((2, 33000, 16)).astype(v.dtype)
    mine = calls.attend(case, "cuda_host", grad_out)
    exact = calls.attend(case.wide, "numba", grad_out.astype(np.float64))
    for name in ("gradient of k", "gradient of v"):
        assert_close(mine[name].astype(np.float64), exact[name], 2e-5 if name.endswith("k") else 2**-7, name)


@ON_HOST
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_value_that_is_not_finite_spoils_no_query_outside_its_window(poison: float) -> None:
    case = tiled_case(ml_dtypes.bfloat16, 100, 16, top_k=1, local_window=12)
    case.v[:, 41] = poison
    after = calls.zeta_attention(case.q, case.k, case.v, case.gamma, backend="cuda_host", **case.options)
    exact = calls.zeta_attention(case.q, case.k, case.v, case.gamma, backend="numpy", **case.options)
    finite = np.isfinite(exact.astype(np.float32))
    assert not finite[:, 41:53].any()
    assert finite[:, 36:41].all()
    assert (np.isfinite(after.astype(np.float32)) == finite).all()
    assert_close(after.astype(np.float64)[finite], exact.astype(np.float64)[finite], 0.01)


@ON_HOST
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=str)
@pytest.mark.parametrize("far", [40.0, 1e15, 1e25])
def test_windows_with_keys_that_are_far_away(dtype: Any, far: float) -> None:
    """The query at a key's own position has nearer ones, as have those after it."""
    case = tiled_case(dtype, 100, 16, top_k=1, local_window=12)
    case.k[:, 41:44] = far
    mine = calls.attend(case, "cuda_host")
    exact = calls.attend(case.wide, "numba")
    assert_close(mine["out"].astype(np.float64), exact["out"], 0.01)
    assert_close(mine["gradient of q"].astype(np.float64), exact["gradient of q"], 0.01)


@ON_HOST
def test_the_history_of_many_chunks_is_summed_in_full() -> None:
    case = example(length=5000, heads=1, dim=2, history_mean=True)  # a warp of the scan takes several chunks
    case.q, case.k, case.v = case.q[:1], case.k[:1], case.v[:1]
    assert_all_close(calls.attend(case, "cuda_host"), calls.attend(case, "numba"), 1e-11)


@ON_HOST
def test_rows_that_are_not_aligned_are_taken_one_by_one() -> None:
    case = tiled_case(ml_dtypes.bfloat16, 100, 17)
    case.v = case.v[..., 1:]
    assert_close(
        calls.attend(case, "cuda_host")["out"].astype(np.float64), calls.attend(case.wide, "numba")["out"], 0.02
    )


@ON_HOST
@pytest.mark.parametrize(("length", "num_curves"), [(0, 2), (1, 1), (700, 3)])
def test_a_forward_pass_leaves_the_same_bytes_every_time(
    monkeypatch: pytest.MonkeyPatch, length: int, num_curves: int
) -> None:
    case = example(length=length, dtype=np.float32)
    problem = problem_of(case, num_curves=num_curves, top_k=6, window=8)

    def residuals(poison: int) -> list[Array]:
        monkeypatch.setattr(cuda_host, "POISON", poison)
        arrays = [np.zeros(spec.shape, spec.dtype) for spec in cuda_host.residual_specs(problem)]
        out, normalizer = np.zeros(problem.out_shape, np.float32), np.zeros(problem.normalizer_shape, np.float32)
        cuda_host.attention_forward(problem, case.q, case.k, case.v, case.gamma, None, out, normalizer, tuple(arrays))
        return [*arrays, out, normalizer]

    for first, second in zip(residuals(0xCD), residuals(0x11), strict=True):
        assert_same_bits(first, second)


def problem_of(case: Case, **options: Any) -> Problem:
    defaults = {
        "search": "zorder", "causal": True, "chunk_size": 1, "include_self": True, "local_window": 0, "bits": None,
        "bounds": None, "q_offset": None, "history_mean": False, "deterministic": False,
    }  # fmt: skip
    return search_problem(attention_shapes(case.q, case.k, case.v, case.gamma), None, **defaults, **options)


@ON_HOST
@pytest.mark.parametrize(
    ("heads", "kv_heads", "options"),
    [
        (2, 2, {}),
        (8, 2, {"chunk_size": 5}),
        (2, 2, {"cu_seqlens": np.array([0, 700, 700, 701, 2300], np.int32)}),
        (2, 1, {"num_curves": 3, "window": 8}),
        (1, 1, {"num_curves": 2, "window": 9, "bits": 21}),  # no room for numbers
        (1, 1, {"num_curves": 3, "window": 9, "bits": 21}),  # nor for rows
        (2, 2, {"bits": 2, "causal": False}),
    ],
)
def test_searches_of_several_blocks(heads: int, kv_heads: int, options: dict[str, Any]) -> None:
    """Many codes are equal, and all of one head are."""
    length, rng = 2300, np.random.default_rng(6)
    q, k = (np.round(rng.standard_normal((h, length, 3)) * 4).astype(np.float32) / 4 for h in (heads, kv_heads))
    k[0] = q[0] = 1
    options = {"top_k": 5, "bits": 8, **options}
    reference = zeta_ops.causal_topk(q, k, backend="numba", **options)
    assert_same_bits(zeta_ops.causal_topk(q, k, backend="cuda_host", **options), reference)


@ON_HOST
@pytest.mark.parametrize(("batch", "lengths"), [(3, [200]), (1, [1500]), (1, [5] * 300 + [0, 31])])
def test_codes_may_leave_no_room_for_what_is_sorted_with_them(batch: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(2)
    q, k = (rng.standard_normal((batch, 2, sum(lengths), 3)).astype(np.float32) for _ in range(2))
    options: dict[str, Any] = {"top_k": 5, "bits": 21}
    if len(lengths) > 1:
        options["cu_seqlens"] = np.cumsum([0, *lengths], dtype=np.int32)
    reference = zeta_ops.causal_topk(q, k, backend="numpy", **options)
    assert_same_bits(zeta_ops.causal_topk(q, k, backend="cuda_host", **options), reference)


@ON_HOST
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("gamma", [2.0**-60, 1e-3, 1.0])
def test_the_nearest_key_may_stand_anywhere_in_the_window(dtype: Any, gamma: float) -> None:
    case = tiled_case(dtype, 60, 16, bits=1)  # a cell is an eighth of space: its keys are in order of position
    case.q[:, 1::2] = case.k[:, 1::2] = case.k[:, :-1:2] * np.float32(100)
    case.q[:, 5::6] = case.k[:, 0:-5:6]
    case.gamma = np.array([gamma, gamma], np.float32)
    mine = calls.zeta_attention(case.q, case.k, case.v, case.gamma, backend="cuda_host", **case.options)
    exact = calls.attend(case.wide, "numba")["out"]
    assert_close(mine.astype(np.float64), exact, 2 * float(ml_dtypes.finfo(dtype).eps) + 1e-6)


@ON_HOST
@pytest.mark.parametrize("configuration", [PLAIN, HALF, WIDE, FLOAT], ids=str)
def test_structures_have_the_sizes_that_the_launcher_assumes(configuration: Configuration) -> None:
    library = cuda_host.library(configuration)
    sums = 8 if "float64" in (configuration.coordinate_dtype, configuration.value_dtype) else 4
    key_dim = configuration.key_dim
    assert library.size_of_args() == ctypes.sizeof(Args)
    assert library.size_of_sequence() == SEQUENCE_BYTES
    assert library.size_of_extent() == EXTENT_BYTES
    assert library.size_of_pull() == sums * (3 + 2 * key_dim)
    assert library.size_of_term() == sums * (2 + key_dim)
    assert library.size_of_slot() == slot_bytes(configuration.coordinate_dtype, key_dim)
    assert library.size_of_point() == point_bytes(configuration.coordinate_dtype, key_dim)
    if configuration.tile_dim:
        assert library.size_of_tail() == TAIL_BYTES
        assert library.size_of_given_record() == given.record_bytes(key_dim)


def test_workspace_has_an_array_for_every_pointer() -> None:
    case = example(history_mean=True, local_window=3)
    problem = problem_of(case, num_curves=3, top_k=6, window=8)
    fields = {name for name, _ in Args._fields_}
    for operation in ("select", "search_forward", "search_backward"):
        specs = device_calls.workspace_specs(operation, problem)
        assert {name.partition(".")[0] for name in specs} <= fields


@pytest.mark.skipif(nvrtc_or_reason()[0] is None, reason=nvrtc_or_reason()[1] or "NVRTC is there")
@pytest.mark.parametrize(
    ("architecture", "configuration"),
    [
        ("sm_80", PLAIN),
        ("sm_90", PLAIN),
        ("sm_100", PLAIN),
        ("sm_90", HALF),
        ("sm_80", WIDE),
        ("sm_100", FLOAT),
    ],
    ids=str,
)
def test_compiles_for_gpus(architecture: str, configuration: Configuration) -> None:
    names = {name: file for name, file in kernel_names().items() if configuration.compiles(file)}
    for file in sorted(set(names.values())):
        code, report = compile_for(architecture, source_of(file), configuration.of_file(file).definitions)
        found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads", report, re.S)
        assert {name for name, _, _ in found} == {name for name in names if names[name] == file}
        for name, stores, loads in found:
            assert name.encode() in code
            assert max(int(stores), int(loads)) <= SPILLS[configuration].get(name, A_FEW), name
