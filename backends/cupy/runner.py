"""What executes the steps of a call on a GPU: kernels compiled by CuPy, on a given stream, and cuda.compute's sort.

The sort is the radix sort of NVIDIA's CCCL, through its package cuda-cccl: it is stable, takes temporary storage and a
stream from the caller, and sorts by the bits that are in use. CuPy's own sort does none of the three.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from zeta_ops.backends import Execution
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.availability import check_device
from zeta_ops.backends.cupy.calls import sorted_pairs, workspace_specs
from zeta_ops.backends.cupy.memory import total_bytes
from zeta_ops.backends.cupy.sources import KERNELS, Configuration, configuration_of, kernel_names, source_of
from zeta_ops.options import Shapes

if TYPE_CHECKING:
    from zeta_ops.backends.cupy.selection import Runner

__all__ = ["DeviceRunner", "observed", "runner_for", "runner_of", "sort_bytes"]

# Of the process and not of a thread: frameworks run backward passes in threads of their own.
_observers: list[Callable[[Runner], Runner]] = []

_LOGGER = logging.getLogger("zeta_ops")
_WORTH_A_LINE = 1.0  # seconds
_SOMEWHERE = 256  # stands for an address where nothing is read; 0 would mean that there are no values to sort


class _Memory:
    """Elements at an address of the device, as other libraries take them."""

    def __init__(self, address: int, count: int, dtype: str) -> None:
        self.nbytes = count * np.dtype(dtype).itemsize
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": (count,),
            "strides": None,
            "typestr": np.dtype(dtype).str,
            "version": 3,
        }


class _Stream:
    """A stream by its handle, as `cuda.compute` takes it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


@cache
def _function(device: int, kernel: str, configuration: Configuration) -> int:
    """Find the driver's handle of a kernel, for a device that is current."""
    file = kernel_names()[kernel]
    handle: int = _module(device, file, configuration.of_file(file)).get_function(kernel).kernel.ptr
    return handle


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
def _sorter(device: int, dtype: str) -> Any:
    from cuda.compute import SortOrder, make_radix_sort

    keys, values = _Memory(_SOMEWHERE, 1, dtype), _Memory(_SOMEWHERE, 1, "int32")
    return make_radix_sort(
        d_in_keys=keys, d_out_keys=keys, d_in_values=values, d_out_values=values, order=SortOrder.ASCENDING
    )


@lru_cache(maxsize=256)
def sort_bytes(device: int, count: int, dtype: str) -> int:
    """Size of the temporary storage of a sort of `count` pairs, with keys of a dtype."""
    keys, values = _Memory(_SOMEWHERE, count, dtype), _Memory(_SOMEWHERE, count, "int32")
    return int(
        _sorter(device, dtype)(
            temp_storage=None,
            d_in_keys=keys,
            d_out_keys=keys,
            d_in_values=values,
            d_out_values=values,
            num_items=count,
        )
    )


class DeviceRunner:
    """Executes steps on one stream.

    Parameters
    ----------
    on : Execution
    configuration : Configuration
        For which the kernels are compiled.
    storage, storage_bytes : int
        Address and size of memory for the sorts.
    """

    def __init__(self, on: Execution, configuration: Configuration, storage: int, storage_bytes: int) -> None:
        self._device, self._configuration = on.device, configuration
        self._stream, self._storage = _Stream(on.stream), _Memory(storage, storage_bytes, "uint8")
        self._launch = _launcher()

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        """Launch a kernel; the driver copies `args`."""
        function = _function(self._device, kernel, self._configuration)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        self._launch(function, blocks, 1, 1, threads, 1, 1, 0, self._stream.handle, ctypes.addressof(parameters), 0)

    def sort(
        self,
        keys: int,
        values: int,
        sorted_keys: int,
        sorted_values: int,
        count: int,
        bits: int,
        dtype: str = "uint64",
    ) -> None:
        """Sort pairs stably by the lowest bits of the keys."""
        _sorter(self._device, dtype)(
            temp_storage=self._storage,
            d_in_keys=_Memory(keys, count, dtype),
            d_out_keys=_Memory(sorted_keys, count, dtype),
            d_in_values=_Memory(values, count, "int32"),
            d_out_values=_Memory(sorted_values, count, "int32"),
            num_items=count,
            begin_bit=0,
            end_bit=bits,
            stream=self._stream,
        )


def _enter_context(device: int) -> None:
    """Make the device's context current for the driver.

    A framework's device may be current in a thread that has called nothing of the CUDA runtime yet, such as one that
    runs backward passes and finds all memory in a cache: the driver launches nothing there.
    """
    from cupy.cuda import runtime

    runtime.setDevice(device)


@lru_cache(maxsize=256)
def _needs(operation: str, shapes: Shapes, width: int, device: int) -> tuple[Configuration, int, int]:
    """Find what all calls of one shape share: the configuration, and where memory for sorts is and how much."""
    pairs, dtype = sorted_pairs(operation, shapes, width)
    before = total_bytes(workspace_specs(operation, shapes, width)) if pairs else 0
    return configuration_of(shapes), before, sort_bytes(device, pairs, dtype) if pairs else 0


def runner_for(operation: str, shapes: Shapes, on: Execution, width: int = 0) -> Runner:
    """Make what executes the steps of an operation; the end of its workspace is the sorts'."""
    configuration, before, storage = _needs(operation, shapes, width, on.device)
    return runner_of(configuration, on, on.workspace + before, storage)


def runner_of(configuration: Configuration, on: Execution, storage: int = 0, storage_bytes: int = 0) -> Runner:
    """Make what executes steps for a configuration, with memory for sorts where there are any."""
    _enter_context(on.device)
    runner: Runner = DeviceRunner(on, configuration, storage, storage_bytes)
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
