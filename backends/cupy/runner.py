"""What executes the steps of a call on a GPU: kernels compiled by CuPy, on a given stream, and a library's sort."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from zeta_ops.backends import Execution
from zeta_ops.backends.cupy.args import Args
from zeta_ops.backends.cupy.availability import check_device
from zeta_ops.backends.cupy.calls import largest_sort, workspace_specs
from zeta_ops.backends.cupy.memory import total_bytes
from zeta_ops.backends.cupy.plans import Plan, PlannedLaunch, PlannedSort
from zeta_ops.backends.cupy.sources import KERNELS, Configuration, configuration_of, kernel_names, source_of
from zeta_ops.backends.radix_sort import Stream, sort_bytes, sort_pairs
from zeta_ops.options import Shapes

if TYPE_CHECKING:
    from zeta_ops.backends.cupy.selection import Runner

__all__ = ["DeviceRunner", "Prepared", "observed", "runner_of"]

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

    def launch(self, kernel: str, blocks: int, threads: int, args: Args) -> None:
        """Launch a kernel; the driver copies `args`."""
        parameters = _OnePointer(ctypes.addressof(args))
        address = ctypes.addressof(parameters)
        _launcher()(self._functions[kernel], blocks, 1, 1, threads, 1, 1, 0, self._handle, address, 0)

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


class Prepared:
    """A plan with the kernels of a device: what all calls alike launch there.

    Parameters
    ----------
    plan : Plan
    operation, shapes, width
        See `zeta_ops.backends.DeviceBackend.workspace_bytes`.
    device : int
        It is current.
    """

    def __init__(self, plan: Plan, operation: str, shapes: Shapes, width: int, device: int) -> None:
        _enter_context(device)
        self._plan, self._device = plan, device
        self._functions, self._before_storage, self._storage_bytes = _needs(operation, shapes, width, device)
        self._steps = [self._bound(step) for step in plan.steps]
        self._launch, self._enter = _launcher(), _runtime().setDevice

    def _bound(self, step: PlannedLaunch | PlannedSort) -> tuple[int, int, int, int] | PlannedSort:
        if isinstance(step, PlannedSort):
            return step
        return self._functions[step.kernel], step.blocks, step.threads, step.variant

    def __call__(self, addresses: Sequence[int], stream: int) -> None:
        """See `zeta_ops.backends.Launch`."""
        if _observers:
            self._plan.run(addresses, self._runner(addresses, stream))
            return
        self._enter(self._device)
        launch, arguments = self._launch, self._plan.take(addresses)
        parameters = arguments.parameters
        for step in self._steps:
            if isinstance(step, PlannedSort):
                step.run(addresses, self._runner(addresses, stream))
                continue
            function, blocks, threads, variant = step  # what a runner would do, in a third of the time
            launch(function, blocks, 1, 1, threads, 1, 1, 0, stream, parameters[variant], 0)
        self._plan.give_back(arguments)

    def _runner(self, addresses: Sequence[int], stream: int) -> Runner:
        """Make what executes steps one by one; the end of a workspace is the sorts'."""
        on = Execution(self._device, stream, addresses[-1])
        return _runner(self._functions, on, on.workspace + self._before_storage, self._storage_bytes)


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
