"""The CUDA backend on NumPy arrays: kernels compiled for the CPU by the C++ compiler, a fiber for each CUDA thread.

It offers what a CPU backend offers, so that every shared test runs on it. What a call is to write is poisoned before.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zeta_ops.backends import ArraySpec, DeviceArray
from zeta_ops.backends.cupy import calls, plans
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.memory import total_bytes
from zeta_ops.backends.cupy.sources import KERNELS, Configuration, configuration_of, kernel_names, source_of
from zeta_ops.options import Problem, Shapes

__all__ = ["COMPILER", "HostRunner", "library", "unavailable_reason"]

Array = npt.NDArray[Any]

HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++")
# -ffp-contract=off: the kernels' rounded operations rely on it, since the host has no intrinsics for them.
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wno-unknown-pragmas", "-ffp-contract=off", "-fPIC", "-shared")
POISON = 0xCD

_TEMPLATE = """
#define ZETA_HOST
#include "cuda_host.hpp"
namespace {{  // what is shared in an inline function has no section of its own otherwise
{includes}
}}
extern "C" int launch(const char* name, unsigned blocks, unsigned threads, const Args* arguments) {{
{launches}  return 1;
}}
extern "C" unsigned size_of_args() {{ return sizeof(Args); }}
extern "C" unsigned size_of_point() {{ return sizeof(Point); }}
extern "C" unsigned size_of_slot() {{ return sizeof(Slot); }}
extern "C" unsigned size_of_sequence() {{ return sizeof(Sequence); }}
extern "C" unsigned size_of_extent() {{ return sizeof(Extent); }}
extern "C" unsigned size_of_pull() {{ return sizeof(Pull); }}
extern "C" unsigned size_of_term() {{ return sizeof(Term); }}
#if ZETA_TILE_DIM > 0
extern "C" unsigned size_of_tail() {{ return sizeof(QueryTail); }}
extern "C" unsigned size_of_given_record() {{ return sizeof(GivenRecord); }}
#endif
"""


def unavailable_reason() -> str | None:
    """Say why the kernels cannot be compiled for the CPU."""
    return None if COMPILER else "no C++ compiler (g++ or clang++) is installed"


def _source(configuration: Configuration) -> str:
    """A library that launches each kernel by its name; it returns 1 if there is none."""
    names = {name: file for name, file in kernel_names().items() if configuration.compiles(file)}
    includes = "".join(source_of(file) for file in sorted(set(names.values())))
    launches = "".join(
        f'  if (!std::strcmp(name, "{name}")) return host::launch({name}, blocks, threads, *arguments), 0;\n'
        for name in names
    )
    return _TEMPLATE.format(includes=includes, launches=launches)


@cache
def library(configuration: Configuration) -> ctypes.CDLL:
    """Compile all kernels for one configuration; kept between runs of the tests by what the sources hold."""
    assert COMPILER is not None
    headers = sorted([*KERNELS.iterdir(), *HERE.glob("*.hpp")])
    key = (
        b"".join(path.read_bytes() for path in headers)
        + repr((COMPILER, FLAGS, configuration, _source(configuration))).encode()
    )
    folder = Path(tempfile.gettempdir()) / f"zeta-ops-cuda-host-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{hashlib.sha256(key).hexdigest()[:24]}.so"
    if not target.exists():
        source, built = (target.with_suffix(f".{os.getpid()}.{kind}") for kind in ("cpp", "so"))
        source.write_text(_source(configuration))
        includes = f"-I{KERNELS}", f"-I{HERE}"
        command = [COMPILER, *FLAGS, *configuration.definitions, *includes, str(source), "-o", str(built)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        source.unlink()
        built.replace(target)
    return ctypes.CDLL(str(target))


class HostRunner:
    """Executes the steps of a call at once, on NumPy memory."""

    def __init__(self, of: Shapes | Configuration) -> None:
        self.library = library(of if isinstance(of, Configuration) else configuration_of(of))

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        """Run every thread of every block."""
        assert blocks > 0, f"{kernel}: an empty grid is an error in CUDA"
        missing = self.library.launch(kernel.encode(), blocks, threads, ctypes.byref(args))
        assert missing == 0, f"there is no kernel {kernel}"

    def sort_pairs(
        self, keys: int, values: int, sorted_keys: int, sorted_values: int, count: int, bits: int, dtype: str = "uint64"
    ) -> None:
        """Sort pairs stably by the lowest bits of the keys."""
        kind = np.dtype(dtype).type
        from_keys, to_keys = (_view(address, count, kind) for address in (keys, sorted_keys))
        from_values, to_values = (_view(address, count, np.int32) for address in (values, sorted_values))
        assert bits <= 8 * from_keys.itemsize
        order = np.argsort(from_keys & kind(2**bits - 1), kind="stable")
        to_keys[:] = from_keys[order]
        to_values[:] = from_values[order]


def _view(address: int, count: int, dtype: type) -> Array:
    memory = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(memory, dtype)


def _device_array(array: Array) -> DeviceArray:
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return DeviceArray(array.ctypes.data if array.size else 0, array.shape, strides, array.dtype.name)


class _Memory:
    """The arrays of one call: inputs in the layout that a device backend takes, outputs poisoned."""

    def __init__(self) -> None:
        self.kept: list[Array] = []
        self.copies: list[tuple[Array, Array]] = []

    def input(self, array: Array | None, dtype: str | None = None) -> Any:
        """Hand an input over: in the dtype that is asked for, and with a last axis that is contiguous."""
        if array is None:
            return None
        array = array if dtype is None else array.astype(dtype, copy=False)
        if array.ndim == 0 or (array.size and array.strides[-1] != array.itemsize) or not array.flags.aligned:
            array = np.ascontiguousarray(array)
        self.kept.append(array)
        return _device_array(array)

    def output(self, array: Array, dtype: str | None = None) -> DeviceArray:
        """Hand over memory for an output, which `finish` copies."""
        fresh = np.empty(array.shape, dtype or array.dtype)
        _poison(fresh)
        self.kept.append(fresh)
        self.copies.append((array, fresh))
        return _device_array(fresh)

    def workspace(self, specs: dict[str, ArraySpec]) -> int:
        """Poisoned memory for the arrays of a workspace."""
        memory = np.empty(total_bytes(specs) + 256, np.uint8)
        _poison(memory)
        self.kept.append(memory)
        return memory.ctypes.data + -memory.ctypes.data % 256

    def finish(self) -> None:
        """Copy outputs to where the caller wants them."""
        for array, fresh in self.copies:
            array[...] = fresh


def _poison(array: Array) -> None:
    array.reshape(-1).view(np.uint8).fill(POISON)


def _launch(operation: str, shapes: Shapes, arrays: list[Any], workspace: int) -> None:
    addresses = [0 if array is None else array.address for array in arrays]
    plans.record(operation, shapes, arrays).run([*addresses, workspace], HostRunner(shapes))


def morton_encode(x: Array, *, bits: int, bounds: tuple[float, float] | None, num_curves: int, curve: int) -> Array:
    memory = _Memory()
    coordinates = "float64" if x.dtype == np.float64 else "float32"
    codes = np.zeros(len(x), np.uint32 if x.shape[-1] * bits <= 32 else np.uint64)
    given = memory.input(np.ascontiguousarray(x, coordinates)), memory.output(codes)
    run = HostRunner(calls.morton_configuration(coordinates, x.shape[-1]))
    calls.morton_encode(*given, bits=bits, bounds=bounds, num_curves=num_curves, curve=curve, run=run)
    memory.finish()
    return codes


def morton_decode(codes: Array, *, dims: int, bits: int) -> Array:
    memory = _Memory()
    cells = np.zeros((len(codes), dims), np.uint32)
    given = memory.input(np.ascontiguousarray(codes)), memory.output(cells)
    calls.morton_decode(*given, bits=bits, run=HostRunner(calls.morton_configuration("float32", dims)))
    memory.finish()
    return cells


def causal_topk(problem: Problem, q: Array, k: Array, cu_seqlens: Array | None, indices: Array) -> None:
    """See `zeta_ops.backends.Backend`, as for all functions below."""
    memory = _Memory()
    points = (memory.input(x, problem.coordinate_dtype) for x in (q, k))
    borders, written = memory.input(cu_seqlens, "int32"), memory.output(indices)
    workspace = memory.workspace(calls.workspace_specs("select", problem))
    _launch("select", problem, [*points, borders, written], workspace)
    memory.finish()


def residual_specs(problem: Problem) -> tuple[ArraySpec, ...]:
    return calls.residual_specs(problem)


def attention_forward(
    problem: Problem,
    q: Array,
    k: Array,
    v: Array,
    gamma: Array,
    cu_seqlens: Array | None,
    out: Array,
    normalizer: Array,
    residuals: tuple[Array, ...],
) -> None:
    memory, coordinates = _Memory(), problem.coordinate_dtype
    inputs = (
        memory.input(q, coordinates),
        memory.input(k, coordinates),
        memory.input(v),
        memory.input(gamma, coordinates),
    )
    outputs = memory.input(cu_seqlens, "int32"), memory.output(out), memory.output(normalizer)
    kept = tuple(memory.output(x) for x in residuals)
    workspace = memory.workspace(calls.workspace_specs("search_forward", problem))
    _launch("search_forward", problem, [*inputs, *outputs, *kept], workspace)
    memory.finish()


def attention_backward(
    problem: Problem,
    grad_out: Array,
    q: Array,
    k: Array,
    v: Array,
    gamma: Array,
    cu_seqlens: Array | None,
    normalizer: Array,
    residuals: tuple[Array, ...],
    grad_q: Array,
    grad_k: Array,
    grad_v: Array,
    grad_gamma: Array,
) -> None:
    memory, coordinates = _Memory(), problem.coordinate_dtype
    points = memory.input(q, coordinates), memory.input(k, coordinates)
    inputs = memory.input(grad_out), *points, memory.input(v), memory.input(gamma, coordinates)
    kept = memory.input(cu_seqlens, "int32"), memory.input(normalizer), *map(memory.input, residuals)
    gradients = memory.output(grad_q, coordinates), memory.output(grad_k, coordinates), memory.output(grad_v)
    last = memory.output(grad_gamma, coordinates)
    workspace = memory.workspace(calls.workspace_specs("search_backward", problem))
    arrays = [*inputs, *kept, *gradients, last]
    _launch("search_backward", problem, arrays, workspace)
    memory.finish()


def cauchy_forward(
    shapes: Shapes, q: Array, k: Array, v: Array, indices: Array, gamma: Array, out: Array, normalizer: Array
) -> None:
    memory, coordinates = _Memory(), shapes.coordinate_dtype
    points = memory.input(q, coordinates), memory.input(k, coordinates)
    inputs = *points, memory.input(v), memory.input(np.ascontiguousarray(indices)), memory.input(gamma, coordinates)
    outputs = memory.output(out), memory.output(normalizer)
    width = indices.shape[-1]
    workspace = memory.workspace(calls.workspace_specs("given_forward", shapes, width))
    _launch("given_forward", shapes, [*inputs, *outputs], workspace)
    memory.finish()


def cauchy_backward(
    shapes: Shapes,
    grad_out: Array,
    q: Array,
    k: Array,
    v: Array,
    indices: Array,
    gamma: Array,
    normalizer: Array,
    grad_q: Array,
    grad_k: Array,
    grad_v: Array,
    grad_gamma: Array,
) -> None:
    memory, coordinates = _Memory(), shapes.coordinate_dtype
    points = memory.input(q, coordinates), memory.input(k, coordinates)
    given = memory.input(np.ascontiguousarray(indices)), memory.input(gamma, coordinates), memory.input(normalizer)
    inputs = memory.input(grad_out), *points, memory.input(v), *given
    gradients = memory.output(grad_q, coordinates), memory.output(grad_k, coordinates), memory.output(grad_v)
    last = memory.output(grad_gamma, coordinates)
    width = indices.shape[-1]
    workspace = memory.workspace(calls.workspace_specs("given_backward", shapes, width))
    _launch("given_backward", shapes, [*inputs, *gradients, last], workspace)
    memory.finish()
