"""What executes the steps of a call on a GPU: kernels compiled by Numba, on a given stream, and CCCL's sort."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from numba import cuda

from zeta_ops.backends import Execution
from zeta_ops.backends.cupy.memory import total_bytes
from zeta_ops.backends.numba_cuda.availability import check_device
from zeta_ops.backends.numba_cuda.calls import Runner
from zeta_ops.backends.numba_cuda.compiling import Kernel, Memory, signature_of
from zeta_ops.backends.numba_cuda.sizes import largest_sort, workspace_specs
from zeta_ops.backends.radix_sort import Stream, sort_bytes, sort_keys, sort_pairs
from zeta_ops.options import Shapes

__all__ = ["DeviceRunner", "observed", "runner_for", "runner_of", "workspace_bytes"]

# Of the process and not of a thread: frameworks run backward passes in threads of their own.
_observers: list[Callable[[Runner], Runner]] = []


class DeviceRunner:
    """Executes steps on one stream.

    Parameters
    ----------
    on : Execution
    storage, storage_bytes : int
        Address and size of memory for the sorts.
    """

    def __init__(self, on: Execution, storage: int, storage_bytes: int) -> None:
        self._device, self._stream = on.device, Stream(on.stream)
        self._numba_stream = _stream(on.device, on.stream)
        self._storage, self._storage_bytes = storage, storage_bytes

    def launch(self, kernel: Kernel, blocks: int, threads: int | tuple[int, int], arguments: tuple[Any, ...]) -> None:
        """Launch a kernel."""
        values = [argument.address if type(argument) is Memory else argument for argument in arguments]
        compiled = kernel.compiled_for(signature_of(arguments))
        block = (*threads, 1) if type(threads) is tuple else (threads, 1, 1)
        compiled.launch(values, (blocks, 1, 1), block, self._numba_stream)

    def sort(
        self, keys: Memory, values: Memory, sorted_keys: Memory, sorted_values: Memory, count: int, bits: int
    ) -> None:
        """Sort pairs stably by the lowest bits of the keys."""
        addresses = keys.address, values.address, sorted_keys.address, sorted_values.address
        sort_pairs(self._device, self._stream, self._storage, self._storage_bytes, *addresses, count, bits)

    def sort_keys(self, keys: Memory, sorted_keys: Memory, count: int, first_bit: int, bits: int) -> None:
        """Sort keys stably by some of their bits."""
        storage = self._storage, self._storage_bytes
        addresses = keys.address, sorted_keys.address
        sort_keys(self._device, self._stream, *storage, *addresses, count, first_bit, bits)


@lru_cache(maxsize=64)
def _stream(device: int, handle: int) -> Any:
    check_device(device)
    return cuda.external_stream(handle)


def _enter_context(device: int) -> None:
    """Make the device's context current for the driver: a framework's thread may have called nothing of CUDA yet."""
    from cuda.bindings import runtime

    runtime.cudaSetDevice(device)


def workspace_bytes(operation: str, shapes: Shapes, width: int) -> int:
    """Count the bytes of an operation's arrays, and of memory for its sorts after them."""
    storage = sort_bytes(0, *largest_sort(operation, shapes, width))
    return total_bytes(workspace_specs(operation, shapes, width)) + storage


@lru_cache(maxsize=256)
def _storage(operation: str, shapes: Shapes, width: int, device: int) -> tuple[int, int]:
    """Find where memory for sorts begins in the workspace, and how much it is."""
    storage = sort_bytes(device, *largest_sort(operation, shapes, width))
    return total_bytes(workspace_specs(operation, shapes, width)), storage


def runner_for(operation: str, shapes: Shapes, on: Execution, width: int = 0) -> Runner:
    """Make what executes the steps of an operation; the end of its workspace is the sorts'."""
    before, storage_bytes = _storage(operation, shapes, width, on.device)
    return runner_of(on, on.workspace + before, storage_bytes)


def runner_of(on: Execution, storage: int = 0, storage_bytes: int = 0) -> Runner:
    """Make what executes steps, with memory for sorts where there are any."""
    _enter_context(on.device)
    runner: Runner = DeviceRunner(on, storage, storage_bytes)
    for wrap in _observers:
        runner = wrap(runner)
    return runner


@contextmanager
def observed(wrap: Callable[[Runner], Runner]) -> Iterator[None]:
    """Let `wrap` stand around the runner of every call that starts in this context, in whatever thread."""
    _observers.append(wrap)
    try:
        yield
    finally:
        _observers.remove(wrap)
