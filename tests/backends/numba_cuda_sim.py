"""The numba_cuda backend on NumPy arrays: kernels run as Python in the CUDA simulator of Numba.

It offers what a CPU backend offers, so that the shared tests run on it where NUMBA_ENABLE_CUDASIM=1 is set. What a call
is to write is poisoned before.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda_host import _Memory as HostMemory

from zeta_ops.backends import ArraySpec
from zeta_ops.options import Problem, Shapes

__all__ = ["SimulatedRunner", "unavailable_reason"]

Array = npt.NDArray[Any]


@cache
def unavailable_reason() -> str | None:
    """Say why kernels cannot be simulated."""
    try:
        import numba_cuda  # noqa: F401
    except ImportError:
        return "numba-cuda is not installed"
    from numba.core import config

    return None if config.ENABLE_CUDASIM else "the simulator is off: set NUMBA_ENABLE_CUDASIM=1"


class _BlockThread(threading.Thread):
    """One thread of a block, which runs while nobody else does: until it waits for the others, or ends."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], block: Any, thread: Any) -> None:
        super().__init__(daemon=True)
        self.function, self.arguments, self.blockIdx, self.threadIdx = function, arguments, block, thread
        self.go, self.paused = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.ended = False
        self.value = False  # what it brings to a barrier, and then what any thread brought

    def run(self) -> None:
        try:
            with np.errstate(all="ignore"):
                self.function(*self.arguments)
        except BaseException as error:
            self.error = error
        self.ended = True
        self.paused.release()

    def syncthreads(self) -> None:
        self.paused.release()
        self.go.acquire()

    def syncthreads_or(self, value: Any) -> bool:
        self.value = bool(value)
        self.syncthreads()
        return self.value


def _run_block(function: Any, arguments: tuple[Any, ...], block: Any, threads: list[Any]) -> None:
    if not {"syncthreads", "shared"} & set(function.__code__.co_names):  # one after another, in this thread
        here: Any = threading.current_thread()
        here.blockIdx = block
        for thread in threads:
            here.threadIdx = thread
            function(*arguments)
        return
    waiting = [_BlockThread(function, arguments, block, thread) for thread in threads]
    for one in waiting:
        one.start()
        one.paused.acquire()
    while waiting:
        for one in waiting:
            if one.error is not None:
                raise one.error
        waiting = [one for one in waiting if not one.ended]
        value = any(one.value for one in waiting)
        for one in waiting:
            one.value = value
            one.go.release()
            one.paused.acquire()


@cache
def _simulator() -> Any:
    """Let Numba's simulator run the threads of a block in turn: its own poll, which takes milliseconds a block."""
    from numba.cuda.simulator import kernel as simulator
    from numba.cuda.simulator.kernelapi import Dim3

    class BlockManager(simulator.BlockManager):  # type: ignore[misc]
        def run(self, grid_point: Any, *args: Any) -> None:
            threads = [Dim3(*point) for point in np.ndindex(*self._block_dim)]
            # Its arrays within kernels take a microsecond an element.
            plain = tuple(getattr(getattr(x, "_item", x), "_ary", x) for x in args)
            _run_block(self._f, plain, Dim3(*grid_point), threads)

    simulator.BlockManager = BlockManager
    return simulator


class SimulatedRunner:
    """Executes the steps of a call at once, on NumPy memory."""

    def __init__(self) -> None:
        _simulator()

    def launch(self, kernel: Any, blocks: int, threads: Any, arguments: tuple[Any, ...]) -> None:
        """Run every thread of every block."""
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        from zeta_ops.backends.numba_cuda.compiling import Memory

        assert blocks > 0, f"{kernel.name}: an empty grid is an error in CUDA"
        given = [FakeCUDAArray(_view(x)) if isinstance(x, Memory) else x for x in arguments]
        with np.errstate(all="ignore"):
            kernel.compiled_for(())[blocks, threads](*given)

    def sort(self, keys: Any, values: Any, sorted_keys: Any, sorted_values: Any, count: int, bits: int) -> None:
        """Sort pairs stably by the lowest bits of the keys."""
        assert bits <= 64
        order = np.argsort(_view(keys)[:count] & np.uint64(2**bits - 1), kind="stable")
        _view(sorted_keys)[:count] = _view(keys)[:count][order]
        _view(sorted_values)[:count] = _view(values)[:count][order]

    def sort_keys(self, keys: Any, sorted_keys: Any, count: int, first_bit: int, bits: int) -> None:
        """Sort keys stably by some of their bits."""
        assert first_bit + bits <= 64
        given = _view(keys)[:count]
        order = np.argsort(given >> np.uint64(first_bit) & np.uint64(2**bits - 1), kind="stable")
        _view(sorted_keys)[:count] = given[order]


def _view(memory: Any) -> Array:
    if memory.count == 0:
        return np.empty(0, memory.dtype)
    size = memory.count * np.dtype(memory.dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(memory.address), memory.dtype)


def _launch(operation: str, shapes: Shapes, memory: HostMemory, arrays: list[Any], width: int = 0) -> None:
    from zeta_ops.backends.numba_cuda import operations, sizes

    workspace = memory.workspace(sizes.workspace_specs(operation, shapes, width))
    operations.launch(operation, shapes, arrays, workspace=workspace, run=SimulatedRunner())
    memory.finish()


def morton_encode(x: Array, *, bits: int, bounds: tuple[float, float] | None, num_curves: int, curve: int) -> Array:
    from zeta_ops.backends.numba_cuda import operations

    memory = HostMemory()
    coordinates = "float64" if x.dtype == np.float64 else "float32"
    codes = np.zeros(len(x), np.uint32 if x.shape[-1] * bits <= 32 else np.uint64)
    given = memory.input(np.ascontiguousarray(x, coordinates)), memory.output(codes)
    options = {"bits": bits, "bounds": bounds, "num_curves": num_curves, "curve": curve}
    operations.morton_encode(*given, **options, run=SimulatedRunner())
    memory.finish()
    return codes


def morton_decode(codes: Array, *, dims: int, bits: int) -> Array:
    from zeta_ops.backends.numba_cuda import operations

    memory = HostMemory()
    cells = np.zeros((len(codes), dims), np.uint32)
    given = memory.input(np.ascontiguousarray(codes)), memory.output(cells)
    operations.morton_decode(*given, dims=dims, bits=bits, run=SimulatedRunner())
    memory.finish()
    return cells


def residual_specs(problem: Problem) -> tuple[ArraySpec, ...]:
    from zeta_ops.backends.numba_cuda import residual_specs

    return residual_specs(problem)


def causal_topk(problem: Problem, q: Array, k: Array, cu_seqlens: Array | None, indices: Array) -> None:
    """See `zeta_ops.backends.Backend`, as for all functions below."""
    memory = HostMemory()
    given = _inputs(memory, problem, "qkc", [q, k, cu_seqlens])
    _launch("select", problem, memory, [*given, memory.output(indices)])


def attention_forward(problem: Problem, *arrays: Any) -> None:
    memory = HostMemory()
    *inputs, out, normalizer, residuals = arrays
    outputs = memory.output(out), memory.output(normalizer), *map(memory.output, residuals)
    _launch("search_forward", problem, memory, [*_inputs(memory, problem, "qkvgc", inputs), *outputs])


def attention_backward(problem: Problem, *arrays: Any) -> None:
    memory = HostMemory()
    *inputs, normalizer, residuals, grad_q, grad_k, grad_v, grad_gamma = arrays
    kept = memory.input(normalizer), *map(memory.input, residuals)
    gradients = _gradients(memory, problem, grad_q, grad_k, grad_v, grad_gamma)
    _launch("search_backward", problem, memory, [*_inputs(memory, problem, "oqkvgc", inputs), *kept, *gradients])


def cauchy_forward(shapes: Shapes, *arrays: Any) -> None:
    memory = HostMemory()
    *inputs, out, normalizer = arrays
    given = _inputs(memory, shapes, "qkvig", inputs)
    _launch(
        "given_forward", shapes, memory, [*given, memory.output(out), memory.output(normalizer)], arrays[3].shape[-1]
    )


def cauchy_backward(shapes: Shapes, *arrays: Any) -> None:
    memory = HostMemory()
    *inputs, normalizer, grad_q, grad_k, grad_v, grad_gamma = arrays
    given = *_inputs(memory, shapes, "oqkvig", inputs), memory.input(normalizer)
    gradients = _gradients(memory, shapes, grad_q, grad_k, grad_v, grad_gamma)
    _launch("given_backward", shapes, memory, [*given, *gradients], arrays[4].shape[-1])


def _inputs(memory: HostMemory, shapes: Shapes, letters: str, arrays: list[Any]) -> list[Any]:
    """Hand inputs over: `q`, `k` and `gamma` in the coordinate dtype, borders and indices contiguous."""
    given = []
    for letter, array in zip(letters, arrays, strict=True):
        if letter in "ci":
            array = None if array is None else np.ascontiguousarray(array, "int32")
        elif min(array.strides, default=0) < 0:  # NumPy's view of the memory begins at the first element
            array = np.ascontiguousarray(array)
        given.append(memory.input(array, shapes.coordinate_dtype if letter in "qkg" else None))
    return given


def _gradients(memory: HostMemory, shapes: Shapes, q: Array, k: Array, v: Array, gamma: Array) -> list[Any]:
    coordinates = shapes.coordinate_dtype
    outputs = memory.output(q, coordinates), memory.output(k, coordinates), memory.output(v)
    return [*outputs, memory.output(gamma, coordinates)]
