"""The types of device that tensors can be on: how a backend gets their memory, and where a call runs.

One entry of `DEVICES` for each; the ops, and all that is registered with torch, are the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from zeta_ops.adapters.operations import (
    STRIDED,
    Packing,
    kept_packing,
    out_of_memory,
    plan,
    result_specs,
    run,
    width_of,
)
from zeta_ops.adapters.torch.memory import as_array, pieces_of, torch_dtype
from zeta_ops.backends import ADDRESS_UNIT, INDICES, ArraySpec, DeviceArray, Execution, Launch
from zeta_ops.options import Shapes

__all__ = ["APART", "DEVICES", "Device", "Kept"]

_FORWARD = ("search_forward", "given_forward")
_MOST_CALLS = 1024


class Kept(NamedTuple):
    """What becomes of that which a forward pass leaves for the backward pass: the normalizer and residuals.

    Attributes
    ----------
    apart : int or None
        So many of them, from the first on, are tensors of their own; the others are one tensor of bytes, as
        `operations.kept_packing` lays them out. None where all are tensors of their own.
    dropped : bool
        Whether nobody is going to read that tensor, so that it may have more behind them.
    """

    apart: int | None
    dropped: bool = False


APART = Kept(None)


class Device(Protocol):
    """A type of device."""

    dispatch_key: str

    def compute(
        self,
        backend: Any,
        operation: str,
        shapes: Shapes,
        arguments: Sequence[Tensor | None],
        kept: Kept = APART,
    ) -> list[Tensor]:
        """Run an operation on canonical tensors and return what it writes (see `zeta_ops.adapters.operations`).

        `kept` says what becomes of that which a forward pass leaves, or became of it.
        """

    def morton_encode(self, backend: Any, points: Tensor, **options: Any) -> Tensor:
        """Encode `points (n, dk)`."""

    def morton_decode(self, backend: Any, codes: Tensor, *, dims: int, bits: int) -> Tensor:
        """Decode `codes (n,)`."""


class _Cpu:
    """Tensors are arrays of NumPy to the backend."""

    dispatch_key = "CPU"

    def compute(
        self,
        backend: Any,
        operation: str,
        shapes: Shapes,
        arguments: Sequence[Tensor | None],
        kept: Kept = APART,
    ) -> list[Tensor]:
        specs = result_specs(backend, operation, shapes, kept.apart)
        device = _device(arguments)
        results = [torch.empty(spec.shape, dtype=torch_dtype(spec.dtype), device=device) for spec in specs]
        given: list[Any] = [*arguments]
        written: list[Any] = [*results]
        if kept.apart is not None:
            holder = written if operation in _FORWARD else given
            holder.extend(pieces_of(holder.pop(), kept_packing(backend, operation, shapes, kept.apart)))
        taken = [None if x is None else as_array(x) for x in given]
        run(backend, operation, shapes, taken, [as_array(x) for x in written])
        return results

    def morton_encode(self, backend: Any, points: Tensor, **options: Any) -> Tensor:
        return torch.from_numpy(backend.morton_encode(as_array(points), **options))

    def morton_decode(self, backend: Any, codes: Tensor, *, dims: int, bits: int) -> Tensor:
        return torch.from_numpy(backend.morton_decode(as_array(codes), dims=dims, bits=bits))


class _Gpu:
    """Tensors are addresses to the backend, which launches kernels on torch's current stream of their device.

    torch's allocator gives all memory. It hands memory out again in the order of the stream, so that a workspace may be
    let go as soon as all is launched.
    """

    dispatch_key = "CUDA"

    def __init__(self) -> None:
        self._calls: dict[Any, _Call] = {}

    # Of torch's own, which a torch for CPUs alone has not: the number of the current device; and for such a number the
    # handle of the current stream, which in the thread that runs a backward pass is that of the forward pass.
    current_device: Any = getattr(torch._C, "_cuda_getDevice", None)
    stream_of: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)

    def device_of(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make a device the current one: the dispatcher does not, for kernels written in Python."""
        return torch.cuda.device(device)

    def compute(
        self,
        backend: Any,
        operation: str,
        shapes: Shapes,
        arguments: Sequence[Tensor | None],
        kept: Kept = APART,
    ) -> list[Tensor]:
        device = arguments[0].device  # type: ignore[union-attr]
        if self.current_device() != device.index:
            with self.device_of(device):
                return self._compute(backend, operation, shapes, arguments, kept, device)
        return self._compute(backend, operation, shapes, arguments, kept, device)

    def _compute(
        self,
        backend: Any,
        operation: str,
        shapes: Shapes,
        arguments: Sequence[Tensor | None],
        kept: Kept,
        device: torch.device,
    ) -> list[Tensor]:
        addresses, union = [], 0
        layout: list[Any] = [operation, shapes, backend, device, kept]
        for x in arguments:  # a comprehension for each list would take longer, of every call
            address = 0
            if x is None:
                layout.append(None)
            else:
                address = x.data_ptr()
                union |= address
                layout.append(x.stride())
            addresses.append(address)
        if union % ADDRESS_UNIT:
            layout += [address % ADDRESS_UNIT for address in addresses]
        if operation in INDICES:
            layout.append(width_of(operation, arguments))
        key = tuple(layout)
        call = self._calls.get(key)
        if call is None:
            call = _prepare(backend, operation, shapes, arguments, kept, device)
            if len(self._calls) >= _MOST_CALLS:
                self._calls.clear()
            self._calls[key] = call
        launch, copied, allocations, pieces, workspace_of, offset = call
        try:
            copies = [arguments[place].contiguous() for place in copied] if copied else ()  # type: ignore[union-attr]
            results = [allocate() for allocate in allocations]
            workspace = results[-1] if workspace_of is None else workspace_of()
        except torch.OutOfMemoryError as error:
            planned = plan(backend, operation, shapes, width_of(operation, arguments))
            raise torch.OutOfMemoryError(out_of_memory(operation, planned, device.index)) from error
        for place, copy in zip(copied, copies, strict=True):
            addresses[place] = copy.data_ptr()
        if pieces and operation not in _FORWARD:
            start = addresses.pop()
            addresses += [start + place for place in pieces]
        addresses += [x.data_ptr() for x in results]
        if pieces and operation in _FORWARD:
            start = addresses.pop()
            addresses += [start + place for place in pieces]
        addresses.append(workspace.data_ptr() + offset)
        launch(addresses, self.stream_of(device.index))
        return results

    def morton_encode(self, backend: Any, points: Tensor, **options: Any) -> Tensor:
        wide = points.shape[1] * options["bits"] > 32
        points = points.to(torch.float64 if points.dtype == torch.float64 else torch.float32).contiguous()
        with self.device_of(points.device):
            codes = torch.empty(points.shape[:1], dtype=torch.uint64 if wide else torch.uint32, device=points.device)
            backend.morton_encode(_view(points), _view(codes), **options, on=self._without_workspace(points))
        return codes

    def morton_decode(self, backend: Any, codes: Tensor, *, dims: int, bits: int) -> Tensor:
        codes = codes.contiguous()
        with self.device_of(codes.device):
            cells = torch.empty((codes.shape[0], dims), dtype=torch.uint32, device=codes.device)
            on = self._without_workspace(codes)
            backend.morton_decode(_view(codes), _view(cells), dims=dims, bits=bits, on=on)
        return cells

    def _without_workspace(self, x: Tensor) -> Execution:
        return Execution(x.device.index, self.stream_of(x.device.index), 0)


class _Call(NamedTuple):
    """What all calls alike have in common on a device.

    Attributes
    ----------
    copied : tuple of int
        Places of arguments that are brought into a layout which the backend takes.
    results : tuple of callables
        They allocate what the call returns.
    pieces : tuple of int
        Offsets of what is in one tensor of bytes, the last result or argument; else nothing.
    workspace : callable or None
        It allocates workspace; None where that lies in the last result.
    offset : int
        Where it begins.
    """

    launch: Launch
    copied: tuple[int, ...]
    results: tuple[Callable[[], Tensor], ...]
    pieces: tuple[int, ...]
    workspace: Callable[[], Tensor] | None
    offset: int


def _prepare(
    backend: Any,
    operation: str,
    shapes: Shapes,
    arguments: Sequence[Tensor | None],
    kept: Kept,
    device: torch.device,
) -> _Call:
    planned = plan(backend, operation, shapes, width_of(operation, arguments))
    strided = STRIDED[operation]
    copied = tuple(n for n, x in enumerate(arguments) if x is not None and not _is_laid_out(x, n < strided))
    given: list[Any] = [
        x if x is None else _view_of_copy(x) if n in copied else _view(x) for n, x in enumerate(arguments)
    ]
    specs = [*result_specs(backend, operation, shapes, kept.apart)]
    written: list[Any] = [_view_of_spec(spec) for spec in specs]
    packing = Packing((), 0) if kept.apart is None else kept_packing(backend, operation, shapes, kept.apart)
    if packing.pieces:
        holder = written if operation in _FORWARD else given
        whole = holder.pop()
        holder += [_view_of_spec(spec)._replace(address=whole.address) for spec, _, _ in packing.pieces]
    if kept.dropped:  # one allocation less
        specs[-1] = ArraySpec((packing.size + planned.workspace,), "uint8")
    is_apart = planned.workspace > 0 and not kept.dropped
    return _Call(
        launch=backend.prepare(operation, shapes, [*given, *written], device.index),
        copied=copied,
        results=tuple(_allocation(spec, device) for spec in specs),
        pieces=tuple(offset for _, offset, _ in packing.pieces),
        workspace=_allocation(ArraySpec((planned.workspace,), "uint8"), device) if is_apart else None,
        offset=packing.size if kept.dropped else 0,
    )


def _allocation(spec: ArraySpec, device: torch.device) -> Callable[[], Tensor]:
    """Make what allocates an array: with the strides of a contiguous one, in half the time that it takes without."""
    dtype = torch_dtype(spec.dtype)
    return partial(torch.empty_strided, spec.shape, _strides(spec.shape), dtype=dtype, device=device)


def _view_of_spec(spec: ArraySpec) -> DeviceArray:
    return DeviceArray(0, spec.shape, _strides(spec.shape), spec.dtype)


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = [max(1, size) for size in shape]  # as torch counts strides of empty tensors
    return tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))


DEVICES: dict[str, Device] = {"cpu": _Cpu(), "cuda": _Gpu()}


def _device(tensors: Sequence[Tensor | None]) -> torch.device:
    assert tensors[0] is not None
    return tensors[0].device


def _is_laid_out(x: Tensor, strided: bool) -> bool:
    """Whether a backend takes the layout: contiguous, or with strides and a contiguous last axis."""
    return (strided and x.stride(-1) == 1) or x.is_contiguous()


def _view(x: Tensor) -> DeviceArray:
    strides = *x.stride()[:-1], 1  # of an axis of length 1 it may be another
    return DeviceArray(x.data_ptr(), tuple(x.shape), strides, str(x.dtype).removeprefix("torch."))


def _view_of_copy(x: Tensor) -> DeviceArray:
    return _view_of_spec(ArraySpec(tuple(x.shape), str(x.dtype).removeprefix("torch.")))
