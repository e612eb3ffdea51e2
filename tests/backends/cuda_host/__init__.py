"""The CUDA kernels on NumPy arrays: compiled for the CPU by the C++ compiler, with a fiber for each CUDA thread."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zeta_ops.backends import ArraySpec
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.selection import (
    element_strides,
    exact_workspace,
    fill_args,
    list_selected,
    select,
    select_exactly,
    workspace,
)
from zeta_ops.backends.cupy.sources import KERNELS, definitions
from zeta_ops.options import Problem

__all__ = ["COMPILER", "causal_topk", "library"]

Array = npt.NDArray[np.generic]

HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++")
# -ffp-contract=off: the kernels' rounded operations rely on it, since the host has no intrinsics for them.
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wno-unknown-pragmas", "-ffp-contract=off", "-fPIC", "-shared")


@cache
def library(coordinate_dtype: str, key_dim: int, num_curves: int) -> ctypes.CDLL:
    """Compile all kernels of one configuration; kept between runs of the tests by what the sources hold."""
    defines = definitions(coordinate_dtype, key_dim, num_curves)
    sources = sorted([*KERNELS.iterdir(), *HERE.glob("*.?pp")])
    text = b"".join(path.read_bytes() for path in sources) + repr((COMPILER, FLAGS, defines)).encode()
    folder = Path(tempfile.gettempdir()) / f"zeta-ops-cuda-host-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{hashlib.sha256(text).hexdigest()[:24]}.so"
    if not target.exists():
        assert COMPILER is not None
        built = target.with_suffix(f".{os.getpid()}")
        command = [COMPILER, *FLAGS, *defines, f"-I{KERNELS}", f"-I{HERE}", str(HERE / "kernels.cpp"), "-o", str(built)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        built.replace(target)
    return ctypes.CDLL(str(target))


class HostRunner:
    """Executes the steps of a call at once, on NumPy memory."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self.library = loaded

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        """Run every thread of every block."""
        assert blocks > 0, f"{kernel}: an empty grid is an error in CUDA"
        missing = self.library.launch(kernel.encode(), blocks, threads, ctypes.byref(args))
        assert missing == 0, f"kernels.cpp does not name {kernel}"

    def sort(self, keys: int, values: int, sorted_keys: int, sorted_values: int, count: int, bits: int) -> None:
        """Sort pairs stably by the lowest bits of the keys."""
        from_keys, to_keys = (_view(address, count, np.uint64) for address in (keys, sorted_keys))
        from_values, to_values = (_view(address, count, np.int32) for address in (values, sorted_values))
        assert bits <= 64
        order = np.argsort(from_keys & np.uint64(2**bits - 1), kind="stable")
        to_keys[:] = from_keys[order]
        to_values[:] = from_values[order]


def _view(address: int, count: int, dtype: type) -> Array:
    memory = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(memory, dtype)


def causal_topk(problem: Problem, q: Array, k: Array, cu_seqlens: Array | None, indices: Array) -> None:
    """Write the selection, as a backend does; everything that is to be written is poisoned first."""
    exactly = problem.options.search == "exact"
    specs = exact_workspace(problem) if exactly else workspace(problem)
    poisoned = {name: _poisoned(spec) for name, spec in specs.items()}
    q, k = (np.ascontiguousarray(x, problem.coordinate_dtype) for x in (q, k))
    indices.fill(0x7BCDCDCD)
    arrays = poisoned | {"q": q, "k": k, "indices": indices}
    addresses = {name: array.ctypes.data for name, array in arrays.items() if array.size > 0}
    if cu_seqlens is not None:
        borders = np.ascontiguousarray(cu_seqlens, np.int32)
        addresses["cu_seqlens"] = borders.ctypes.data
    args = Args()
    fill_args(problem, args, addresses, element_strides(q), element_strides(k))
    curves = 1 if exactly else problem.options.num_curves
    run = HostRunner(library(problem.coordinate_dtype, problem.key_dim, curves))
    if exactly:
        select_exactly(problem, args, run)
    else:
        select(problem, args, addresses, run)
        list_selected(problem, args, run)


def _poisoned(spec: ArraySpec) -> Array:
    array = np.empty(spec.shape, spec.dtype)
    array.view(np.uint8).reshape(-1).fill(0xCD)
    return array
