"""The CUDA kernels of the selection: executed on the CPU, compiled for GPUs."""

from __future__ import annotations

import ctypes
import re
from typing import Any
from unittest.mock import patch

import cuda_host
import numpy as np
import pytest
from cases import KINDS, Array, Case, cases, points
from checks import assert_same_bits
from hypothesis import given
from nvrtc import compile_for, nvrtc_or_reason

import zeta_ops
from zeta_ops.adapters import numpy as adapter
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import SEQUENCE_BYTES, point_bytes
from zeta_ops.backends.cupy.sources import KERNELS, all_kernels, definitions

ON_HOST = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no C++ compiler (g++ or clang++) is installed")
CONFIGURATIONS = [("float32", 3, 1), ("float32", 3, 3), ("float32", 8, 2), ("float64", 1, 1), ("float64", 8, 3)]


def select_on_host(q: Array, k: Array, **options: Any) -> Array:
    """`zeta_ops.causal_topk` by the CUDA kernels, executed on the CPU."""
    with patch.object(adapter, "pick_backend", lambda name, platform: cuda_host):
        return zeta_ops.causal_topk(q, k, **options)


@ON_HOST
@given(case=cases(kinds=KINDS))
def test_selects_as_the_reference(case: Case) -> None:
    reference = zeta_ops.causal_topk(case.q, case.k, backend="numpy", **case.selection_options)
    assert_same_bits(select_on_host(case.q, case.k, **case.selection_options), reference)


@ON_HOST
@given(case=cases(dtype=np.float64))
def test_selects_as_the_reference_in_float64(case: Case) -> None:
    reference = zeta_ops.causal_topk(case.q, case.k, backend="numpy", **case.selection_options)
    assert_same_bits(select_on_host(case.q, case.k, **case.selection_options), reference)


@ON_HOST
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_curves", [1, 3])
def test_selects_over_several_levels(kind: str, num_curves: int) -> None:
    rng = np.random.default_rng(1)
    q, k = points(kind, (2, 3000, 3), rng), points(kind, (1, 3000, 3), rng)
    options = {"top_k": 6, "window": 6, "num_curves": num_curves}
    reference = zeta_ops.causal_topk(q, k, backend="numba", **options)
    assert_same_bits(select_on_host(q, k, **options), reference)


@ON_HOST
def test_codes_with_rows_may_be_wider_than_64_bits() -> None:
    rng = np.random.default_rng(2)
    q, k = (points("lattice", (3, 5, 200, 3), rng) for _ in range(2))
    options = {"top_k": 5, "bits": 21, "cu_seqlens": None}
    reference = zeta_ops.causal_topk(q, k, backend="numpy", **options)
    assert_same_bits(select_on_host(q, k, **options), reference)


@ON_HOST
@pytest.mark.parametrize(("dtype", "key_dim", "num_curves"), CONFIGURATIONS)
def test_structures_have_the_sizes_that_the_launcher_assumes(dtype: str, key_dim: int, num_curves: int) -> None:
    library = cuda_host.library(dtype, key_dim, num_curves)
    assert library.size_of_args() == ctypes.sizeof(Args)
    assert library.size_of_sequence() == SEQUENCE_BYTES
    assert library.size_of_point() == point_bytes(dtype, key_dim, num_curves)


@pytest.mark.skipif(nvrtc_or_reason()[0] is None, reason=nvrtc_or_reason()[1] or "NVRTC is there")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize(("dtype", "key_dim", "num_curves"), CONFIGURATIONS)
def test_compiles_for_gpus(architecture: str, dtype: str, key_dim: int, num_curves: int) -> None:
    code, report = compile_for(architecture, all_kernels(), definitions(dtype, key_dim, num_curves))
    kernels = set(re.findall(r"ZETA_KERNEL\((\w+),", "".join(path.read_text() for path in KERNELS.glob("*.cu"))))
    assert set(re.findall(r"Compiling entry function '(\w+)'", report)) == kernels
    assert all(name.encode() in code for name in kernels)
    spilled = [int(size) for size in re.findall(r"(\d+) bytes spill", report)]
    assert len(spilled) == 2 * len(kernels)
    # In many dimensions some registers are saved around divisions of 64 bits, which are calls.
    assert max(spilled) <= (0 if key_dim == 3 else 64)
