"""The CUDA backend in Python: what only it has. What it computes is tested by the shared tests.

Tests that run kernels need Numba's simulator: `NUMBA_ENABLE_CUDASIM=1 python -m pytest -k numba_cuda_sim`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from calls import attend, attend_to, causal_topk, zeta_attention
from cases import Array, Case, example
from checks import assert_all_close, assert_same_bits
from kinds import NUMPY, SIMULATED, Target

import zeta_ops
from zeta_ops.backends import DeviceArray, scalars
from zeta_ops.backends.numba_cuda import availability
from zeta_ops.options import Options, Problem
from zeta_ops.reference.selection import history_counts, visible_counts

SIMULATOR = Target("numba_cuda_sim", NUMPY)
IN_SIMULATOR = pytest.mark.skipif(not SIMULATED, reason="runs in Numba's simulator: NUMBA_ENABLE_CUDASIM=1")


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is remembered from before, nor afterwards."""
    cached = availability.unavailable_reason, availability._device_reason
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def machine(*capabilities: tuple[int, int], error: str | None = None, simulated: bool = False) -> Any:
    """As much of Numba's CUDA target as is asked, on a machine with such devices."""
    gpus = [SimpleNamespace(compute_capability=found, name=b"NVIDIA H200") for found in capabilities]
    cuda = SimpleNamespace(is_available=lambda: error is None, cuda_error=lambda: error, gpus=gpus)
    return lambda: (cuda, simulated)


def broken() -> Any:
    raise AttributeError("module 'numpy' has no attribute 'row_stack'")


@pytest.mark.parametrize(
    ("version", "target", "has_compute", "words"),
    [
        (None, machine((9, 0)), True, ["numba-cuda, is not installed", "zeta-ops[cuda13]", "zeta-ops[cuda12]"]),
        ("0.9.1", machine((9, 0)), True, ["numba-cuda 0.9.1 is too old", "0.30", "zeta-ops[cuda13]"]),
        ("0.30.4", broken, True, ["cannot be used", "row_stack"]),
        ("0.30.4", machine((9, 0), simulated=True), True, ["simulator", "NUMBA_ENABLE_CUDASIM"]),
        ("0.30.4", machine((9, 0)), False, ["cuda.compute", "cuda-cccl", "zeta-ops[cuda13]"]),
        ("0.30.4", machine(error="no driver\nat all"), True, ["(no driver)", "nvidia-smi"]),
        ("0.30.4", machine(), True, ["no CUDA device was found", "CUDA_VISIBLE_DEVICES"]),
        ("0.30.4", machine((7, 0)), True, ["device 0 has compute capability 7.0", "7.5 or newer"]),
    ],
    ids=["not installed", "too old", "broken", "simulator", "no sort", "no driver", "no device", "old device"],
)
def test_reasons(
    version: str | None, target: Any, has_compute: bool, words: list[str], monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    monkeypatch.setattr(availability, "_version", lambda: version)
    monkeypatch.setattr(availability, "_numba_cuda", target)
    monkeypatch.setattr(availability, "_has_compute", lambda: has_compute)
    text = availability.unavailable_reason()
    assert text is not None
    for word in words:
        assert word in text


def test_available(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    monkeypatch.setattr(availability, "_version", lambda: "0.30.4")
    monkeypatch.setattr(availability, "_numba_cuda", machine((7, 0), (9, 0)))
    monkeypatch.setattr(availability, "_has_compute", lambda: True)
    assert availability.unavailable_reason() is None
    assert availability.describe_devices()[1] == "NVIDIA H200, compute capability 9.0"
    with pytest.raises(ValueError, match=r"backend 'numba_cuda' cannot .*: CUDA device 0 has compute capability 7.0"):
        availability.check_device(0)


def test_importing_the_backend_does_not_import_numba() -> None:
    code = "import sys, zeta_ops.backends.numba_cuda; print('numba' in sys.modules)"
    folder = Path(zeta_ops.__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("chunk_size", [1, 7])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("q_offset", [-5, 0, 13])
def test_counts_of_one_query_are_those_of_the_reference(chunk_size: int, include_self: bool, q_offset: int) -> None:
    options = Options(
        top_k=4, window=4, num_curves=1, search="zorder", causal=True, chunk_size=chunk_size,
        include_self=include_self, local_window=2, history_mean=True, bits=8, bounds=None, q_offset=q_offset,
        deterministic=False,
    )  # fmt: skip
    seen = [scalars.visible_count(i, 20, True, q_offset, chunk_size, include_self, 2) for i in range(30)]
    past = [scalars.history_count(i, 20, True, q_offset, include_self) for i in range(30)]
    assert seen == visible_counts(30, 20, options).tolist()
    assert past == history_counts(30, 20, options).tolist()


@IN_SIMULATOR
@pytest.mark.parametrize("dim", [16, 48, 150])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32], ids=lambda dtype: np.dtype(dtype).name)
def test_numba_cuda_sim_reads_rows_in_words_and_in_passes(dtype: Any, dim: int) -> None:
    case = example(33, np.float32, dim=dim, local_window=2)
    narrow = Case(case.q, case.k, case.v.astype(dtype), case.gamma, case.options)
    grad_out = np.random.default_rng(0).standard_normal(narrow.v.shape).astype(dtype)
    mine, expected = (_wide(attend(narrow, name, grad_out)) for name in (SIMULATOR, "numba"))
    assert_all_close(mine, expected, {"float16": 4e-3, "bfloat16": 3e-2}.get(np.dtype(dtype).name, 1e-5))


def _wide(results: dict[str, Array]) -> dict[str, Array]:
    return {name: x.astype(np.float64) for name, x in results.items()}


@IN_SIMULATOR
@pytest.mark.parametrize("queries", [1023, 1024, 1100], ids=lambda n: f"{n} queries")
def test_numba_cuda_sim_sums_stretches_of_pairs_that_name_one_key(queries: int) -> None:
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((1, n, width)) for n, width in ((queries, 2), (3, 2), (3, 1)))
    indices = rng.integers(-1, 3, (1, queries, 2)).astype(np.int32)
    indices[..., 0] = 0
    case = Case(q, k, v, np.array([0.5]))
    assert_all_close(attend_to(case, indices, SIMULATOR), attend_to(case, indices, "numba"), 1e-11)


@IN_SIMULATOR
def test_numba_cuda_sim_sorts_twice_where_rows_and_codes_need_more_than_64_bits() -> None:
    q, k = np.random.default_rng(0).standard_normal((2, 3, 20, 4)).astype(np.float32)
    options = {"bits": 16, "top_k": 3}
    expected = causal_topk(q, k, backend="numpy", **options)
    assert_same_bits(causal_topk(q, k, backend=SIMULATOR, **options), expected)


@IN_SIMULATOR
def test_numba_cuda_sim_weighs_by_the_nearest_key_where_weights_could_be_large() -> None:
    """The keys beside a query in the curve's order are far from it, one of the same cell is where the query is."""
    k = np.random.default_rng(0).uniform(0.1, 1, (1, 12, 2)).astype(np.float32)
    q, v = np.repeat(k[:, :1], 12, 1), np.full((1, 12, 1), 1e4, np.float32)
    v[0, 1:] = 1
    options = {"top_k": 12, "bits": 1, "causal": False}
    out = zeta_attention(q, k, v, np.full(1, 1e-18, np.float32), backend=SIMULATOR, **options)
    np.testing.assert_allclose(out, np.full_like(v, 1e4), rtol=1e-5)


def compiler_missing() -> str | None:
    """Say why kernels cannot be compiled to PTX here, which needs no GPU."""
    if SIMULATED:
        return "the simulator is on"
    if find_spec("numba_cuda") is None:
        return "numba-cuda is not installed"
    try:
        from numba import cuda, types

        cuda.compile_ptx(lambda x: None, (types.int64,), cc=(9, 0))
    except Exception as error:  # of whatever kind: it finds no NVVM
        return f"Numba cannot compile for GPUs here: {error or type(error).__name__}"
    return None


class Compiler:
    """Compiles what a call launches, once for each list of types, and launches nothing."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()

    def launch(self, kernel: Any, blocks: int, threads: Any, arguments: tuple[Any, ...]) -> None:
        from numba import cuda

        from zeta_ops.backends.numba_cuda.compiling import numba_type, signature_of

        signature = signature_of(arguments)
        if (kernel, signature) not in self.seen:
            self.seen.add((kernel, signature))
            cuda.compile_ptx(kernel.function, tuple(map(numba_type, signature)), cc=(9, 0))

    def sort(self, *arguments: Any) -> None:
        """Nothing is compiled here."""

    def sort_keys(self, *arguments: Any) -> None:
        """Nor here."""


@pytest.mark.parametrize(
    ("coordinates", "values", "dim", "options"),
    [
        ("float64", "float64", 5, {"local_window": 2, "history_mean": True}),
        ("float32", "bfloat16", 16, {"num_curves": 2, "local_window": 2}),
    ],
    ids=["ranges, all parts, float64", "lists, bfloat16 in words"],
)
def test_kernels_compile_for_what_they_are_launched_with(
    coordinates: str, values: str, dim: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulator takes any types; Numba's CUDA target does not."""
    if (reason := compiler_missing()) is not None:
        pytest.skip(reason)
    import numba.cuda.dispatcher as dispatcher

    from zeta_ops.backends.numba_cuda import operations, sizes

    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0)))
    defaults = {"top_k": 4, "window": 4, "num_curves": 1, "search": "zorder", "causal": True, "chunk_size": 1,
                "include_self": True, "local_window": 0, "history_mean": False, "bits": 8, "bounds": None,
                "q_offset": 0, "deterministic": False}  # fmt: skip
    problem = Problem(1, 2, 1, 40, 40, 2, dim, coordinates, values, None, Options(**(defaults | options)))

    def array(shape: tuple[int, ...], dtype: str) -> DeviceArray:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        return DeviceArray(4096, shape, strides, dtype)

    q, k = array((1, 2, 40, 2), coordinates), array((1, 1, 40, 2), coordinates)
    v, gamma, out = array((1, 1, 40, dim), values), array((2,), coordinates), array((1, 2, 40, dim), values)
    normalizer = array(problem.normalizer_shape, problem.sum_dtype)
    residuals = tuple(array(spec.shape, spec.dtype) for spec in sizes.residual_specs(problem).values())
    compiler: Any = Compiler()
    forward = q, k, v, gamma, None, out, normalizer, *residuals
    operations.launch("search_forward", problem, forward, workspace=4096, run=compiler)
    backward = out, q, k, v, gamma, None, normalizer, *residuals, q, k, v, gamma
    operations.launch("search_backward", problem, backward, workspace=4096, run=compiler)
    assert len(compiler.seen) > 10


def test_selecting_kernels_round_every_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A multiplication fused with the addition after it would move codes and distances."""
    if (reason := compiler_missing()) is not None:
        pytest.skip(reason)
    import numba.cuda.dispatcher as dispatcher
    from numba import cuda

    from zeta_ops.backends.numba_cuda.compiling import numba_type
    from zeta_ops.backends.numba_cuda.encode import encode_kernels
    from zeta_ops.backends.numba_cuda.select import exact_kernel, select_kernel

    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0)))
    pointers = {"table": "int64", "q": "float32", "k": "float32", "points": "float32", "distances": "float32",
                "items": "uint64"}  # fmt: skip
    numbers = {"curve": int, "lo": np.float32, "scale": np.float32}
    kernels = encode_kernels(3)
    for kernel in (kernels["encode_items_kernel"], exact_kernel(3, np.float32), select_kernel(3, np.float32)):
        signature = [numbers[name] if name in numbers else pointers.get(name, "int32") for name in kernel.arguments]
        ptx, _ = cuda.compile_ptx(kernel.function, tuple(map(numba_type, signature)), cc=(9, 0))
        assert re.search(r"(mul|add)\.rn\.f32", ptx), kernel.name
        assert not re.search(r"\bfma\.|\.ftz", ptx), kernel.name
