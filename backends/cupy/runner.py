"""What executes the steps of a call on a GPU: kernels compiled by CuPy, on a given stream, and a library's sort."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from zeta_ops.backends import Execution
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.availability import check_device
from zeta_ops.backends.cupy.calls import largest_sort, workspace_specs
from zeta_ops.backends.cupy.memory import total_bytes
from zeta_ops.backends.cupy.sources import KERNELS, Configuration, configuration_of, kernel_names, source_of
from zeta_ops.backends.radix_sort import Stream, sort_bytes, sort_pairs
from zeta_ops.options import Shapes

if TYPE_CHECKING:
    from zeta_ops.backends.cupy.selection import Runner

__all__ = ["DeviceRunner", "observed", "runner_for", "runner_of"]

# Of the process and not of a thread: frameworks run backward passes in threads of their own.
_observers: list[Callable[[Runner], Runner]] = []

_LOGGER = logging.getLogger("zeta_ops")
_WORTH_A_LINE = 1.0  # seconds
_OnePointer = ctypes.c_void_p * 1


class _Functions(dict[str, int]):
    """The driver's handles of kernels, for a device that is current: found where they are first asked for."""

    def __init__(self, device: int, configuration: Configuration) -> None:
        super().__init__()
        self._device, self._configuration = device, configuration

    def __missing__(self, kernel: str) -> int:
        file = kernel_names()[kernel]
        module = _module(self._device, file, self._configuration.of_file(file))
        handle: int = module.get_function(kernel).kernel.ptr
        self[kernel] = handle
        return handle


_functions = cache(_Functions)


@cache
def _module(device: int, file: str, configuration: Configuration) -> Any:
    """Compile a file, or take it from CuPy's cache on disk."""
    import cupy

    check_device(device)
    options = "-std=c++17", f"-I{KERNELS}", *configuration.definitions
    started = time.perf_counter()
    with cupy.cuda.Device(device):
        module = cupy.RawModule(code=source_of(file), options=options)
        module.compile()
    seconds = time.perf_counter() - started
    if seconds > _WORTH_A_LINE:
        _LOGGER.warning("compiled %s for %s in %.1f s; the next process finds it on disk", file, configuration, seconds)
    return module


@cache
def _launcher() -> Any:
    from cupy.cuda import driver

    return driver.launchKernel


@cache
def _runtime() -> Any:
    from cupy.cuda import runtime

    return runtime


class DeviceRunner:
    """Executes steps on one stream.

    Parameters
    ----------
    on : Execution
    functions : mapping of str to int
        Handles of kernels.
    storage, storage_bytes : int
        Address and size of memory for the sorts.
    """

    def __init__(self, on: Execution, functions: Mapping[str, int], storage: int, storage_bytes: int) -> None:
        self._device, self._functions, self._handle = on.device, functions, on.stream
        self._stream, self._storage = Stream(on.stream), (storage, storage_bytes)
        self._launch = _launcher()
        self._args: Args | None = None

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        """Launch a kernel; the driver copies `args`."""
        if args is not self._args:
            self._args = args
            self._parameters = _OnePointer(ctypes.addressof(args))
            self._address = ctypes.addressof(self._parameters)
        self._launch(self._functions[kernel], blocks, 1, 1, threads, 1, 1, 0, self._handle, self._address, 0)

    def sort_pairs(
        self, keys: int, values: int, sorted_keys: int, sorted_values: int, count: int, bits: int, dtype: str = "uint64"
    ) -> None:
        """Sort pairs stably by the lowest bits of the keys."""
        arrays = keys, values, sorted_keys, sorted_values
        sort_pairs(self._device, self._stream, *self._storage, *arrays, count, bits, dtype)


def _enter_context(device: int) -> None:
    """Make the device's context current for the driver.

    A framework's device may be current in a thread that has called nothing of the CUDA runtime yet, such as one that
    runs backward passes and finds all memory in a cache: the driver launches nothing there.
    """
    _runtime().setDevice(device)


@lru_cache(maxsize=256)
def _needs(operation: str, shapes: Shapes, width: int, device: int) -> tuple[Mapping[str, int], int, int]:
    """Find what all calls of one shape share: the kernels, and where memory for sorts is and how much."""
    before = total_bytes(workspace_specs(operation, shapes, width))
    storage = sort_bytes(device, *largest_sort(operation, shapes, width))
    return _functions(device, configuration_of(shapes)), before, storage


def runner_for(operation: str, shapes: Shapes, on: Execution, width: int = 0) -> Runner:
    """Make what executes the steps of an operation; the end of its workspace is the sorts'."""
    functions, before, storage = _needs(operation, shapes, width, on.device)
    return _runner(functions, on, on.workspace + before, storage)


def runner_of(configuration: Configuration, on: Execution) -> Runner:
    """Make what executes steps without sorts for a configuration."""
    return _runner(_functions(on.device, configuration), on, 0, 0)


def _runner(functions: Mapping[str, int], on: Execution, storage: int, storage_bytes: int) -> Runner:
    _enter_context(on.device)
    runner: Runner = DeviceRunner(on, functions, storage, storage_bytes)
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
